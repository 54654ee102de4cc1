"""The PROXY header: what a connection begins with, whole and cut anywhere. A case is those bytes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from balancer.http.proxy_protocol import FIXED, LINE_MAX, REST_MAX, SIGNATURE, Header, Malformed, parse
from tests.fuzz.play import Play

SIZE_MAX = FIXED + REST_MAX + 64
# A header is told apart by then; further cuts are tried at the end.
CUTS = LINE_MAX + FIXED


def player() -> Play:
    return run


def run(data: bytes) -> list[str]:
    """Read a header in every way that a connection may bring it; everything that must not have happened, in words."""
    data = data[:SIZE_MAX]
    whole = _read(data)
    found: list[str] = []
    if isinstance(whole, Header):
        found += _faults(whole, data)
    for end in {*range(min(CUTS, len(data))), *range(max(0, len(data) - CUTS), len(data))}:
        part = _read(data[:end])
        if isinstance(part, Header) and (part.size > end or part != whole):
            found.append(f"a header is read otherwise when cut: {part} for {whole}; at {end}")
        elif isinstance(part, Malformed) and not isinstance(whole, Malformed):
            found.append(f"what is refused when cut is read when whole: {whole}; at {end}")
        elif part is None and isinstance(whole, Header) and whole.size <= end:
            found.append(f"a whole header is waited for: {whole}; at {end}")
    if whole is None and len(data) >= FIXED + REST_MAX:
        found.append(f"no header is so long; {len(data)} bytes")
    return found


def _read(data: bytes) -> Header | Malformed | None:
    try:
        return parse(data)
    except Malformed as error:
        return error


def _faults(header: Header, data: bytes) -> list[str]:
    """What is wrong with a header that was read, by a second reading of its bytes."""
    if header.size > len(data):
        return ["a header is longer than what has come"]
    if parse(data[: header.size]) != header:
        return ["what follows a header is a part of it"]
    try:
        source = _source(data[: header.size])
    except (IndexError, ValueError) as error:
        return [f"it is no header: {error!r}"]
    return [] if source == header.source else [f"another source: {header.source!r} for {source!r}"]


def _source(header: bytes) -> str:
    """The source that a sound header names, in the plainest words."""
    if header.startswith(SIGNATURE):
        family = header[13] >> 4 if header[12] == 0x21 else 0
        packed = header[FIXED : FIXED + {1: 4, 2: 16}.get(family, 0)]
        source = ipaddress.ip_address(packed) if packed else None
    else:
        _, family_name, *rest = header[:-2].decode("latin-1").split(" ")
        source = None if family_name == "UNKNOWN" else ipaddress.ip_address(rest[0])
    mapped = source.ipv4_mapped if isinstance(source, ipaddress.IPv6Address) else None
    return str(mapped or source or "")


def seeds() -> Iterator[bytes]:
    for line in (
        b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 443",
        b"PROXY TCP6 2001:db8::9 ::1 56324 443",
        b"PROXY TCP6 ::ffff:203.0.113.9 ::1 1 65535",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2",
        b"PROXY UNKNOWN",
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 00 65536",
    ):
        yield line + b"\r\n"
        yield line + b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
        yield line
    addresses = {0x11: 12, 0x21: 36, 0x31: 216, 0x00: 0, 0x12: 12, 0x41: 12}
    for command in (0x20, 0x21, 0x22, 0x11):
        for family, length in addresses.items():
            for extra in (b"", b"\x04\0\1x"):
                rest = bytes(range(length % 251)) + extra
                yield SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2) + rest + b"GET /"
    mapped = bytes(10) + b"\xff\xff\xcb\0\x71\x09"
    yield SIGNATURE + b"\x21\x21\0\x24" + mapped * 2 + b"\0\1\0\2"
    yield SIGNATURE + b"\x21\x11" + (REST_MAX + 1).to_bytes(2) + bytes(REST_MAX + 1)
