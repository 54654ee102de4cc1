"""The PROXY protocol, versions 1 and 2: the client's address, from a proxy in front, before the first byte. No I/O.

Source: "The PROXY protocol, versions 1 & 2" by Willy Tarreau, HAProxy's ``doc/proxy-protocol.txt``; sections below are
of that text. Only the part for a receiver of TCP connections is here, and nothing is guessed. A connection that does
not begin with a header is Malformed and has to be closed, never served as if it were its sender's own (section 2).

A header is taken from bytes that may hold more; what follows it belongs to the connection.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

# Section 2.1: the longest line of version 1, with its CRLF.
LINE_MAX = 107
# Section 2.2: version 2's twelve bytes, then version and command, family, and the length of the rest.
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED = 16
# Bytes that the rest may have. Addresses take 216 at most; type-length-value fields take what is left.
REST_MAX = 4096

_LINE_BEGIN = b"PROXY "
_FAMILIES: dict[bytes, type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]] = {
    b"TCP4": ipaddress.IPv4Address,
    b"TCP6": ipaddress.IPv6Address,
}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
# Section 2.2: the address block of each family, and how much of it is the source's address.
_BLOCKS = {1: (12, 4), 2: (36, 16), 3: (216, 0)}
_LOCAL, _PROXY = 0x20, 0x21
_STREAM = 1


class Malformed(ValueError):
    """The connection does not begin with a header; the text names the fault."""


class Header(NamedTuple):
    """A whole header: ``source`` is the client's IP address, ``size`` the header's length in bytes.

    ``source`` is "" where the sender names no address (UNKNOWN, LOCAL, a Unix socket). The connection's own address is
    the only one there is (sections 2.1 and 2.2).
    """

    source: str
    size: int


def parse(data: bytes) -> Header | None:
    """Return the header that ``data`` begins with, or None while it is not whole. Raises Malformed."""
    if data.startswith(_LINE_BEGIN[: len(data)]):
        return _line(data)
    if data.startswith(SIGNATURE[: len(data)]):
        return _binary(data)
    raise Malformed("it does not begin with a PROXY header")


def _line(data: bytes) -> Header | None:
    """Parse version 1 (section 2.1), ``PROXY TCP4 <source> <destination> <source port> <destination port>``, CRLF."""
    end = data.find(b"\r\n", 0, LINE_MAX)
    if end < 0:
        if len(data) >= LINE_MAX:
            raise Malformed(f"a line may have {LINE_MAX} bytes")
        return None
    family, *rest = data[len(_LINE_BEGIN) : end].split(b" ")
    size = end + 2
    if family == b"UNKNOWN":
        return Header("", size)  # whatever else the line has
    kind = _FAMILIES.get(family)
    if kind is None or len(rest) != 4:
        raise Malformed("it is neither TCP4 nor TCP6 with two addresses and two ports, nor UNKNOWN")
    source, _destination = _address(kind, rest[0]), _address(kind, rest[1])
    for port in rest[2:]:
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise Malformed("a port is not one")
    return Header(source, size)


def _address(kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address], text: bytes) -> str:
    try:
        address = kind(text.decode("ascii"))
    except ValueError:
        raise Malformed("an address is not one of its family") from None
    if b"%" in text:
        raise Malformed("an address has a zone, which means something on the sender's machine only")
    return _text(address)


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return the text of an address; that of IPv4 where it is one mapped to IPv6 (RFC 4291 section 2.5.5.2)."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _binary(data: bytes) -> Header | None:
    """Parse version 2 (section 2.2)."""
    if len(data) < FIXED:
        return None
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:FIXED])
    if command not in (_LOCAL, _PROXY):
        raise Malformed("it is not version 2 with the command LOCAL or PROXY")
    if length > REST_MAX:
        raise Malformed(f"what follows may have {REST_MAX} bytes")
    needed, address = 0, 0
    if command == _PROXY and family:  # of LOCAL the family is to be ignored, and 0 is AF_UNSPEC
        if family & 0x0F != _STREAM or family >> 4 not in _BLOCKS:
            raise Malformed("it is not about a stream of a known family")
        needed, address = _BLOCKS[family >> 4]
    if length < needed:
        raise Malformed("the addresses do not fit into its length")
    size = FIXED + length
    if len(data) < size:
        return None
    source = _text(ipaddress.ip_address(data[FIXED : FIXED + address])) if address else ""
    return Header(source, size)
