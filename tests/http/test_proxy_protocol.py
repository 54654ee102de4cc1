from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.http.proxy_protocol import FIXED, LINE_MAX, REST_MAX, SIGNATURE, Header, Malformed, parse

IPv4_BLOCK = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + b"\xdc\x04\x01\xbb"
IPv6_BLOCK = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("::1").packed + b"\xdc\x04\x01\xbb"
UNIX_BLOCK = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")
TLV = b"\x04\x00\x03abc"


def v2(block: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, family]) + (len(block) if length is None else length).to_bytes(2) + block


WHOLE = {
    "TCP4": (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", "192.0.2.7"),
    "TCP4, the shortest": (b"PROXY TCP4 1.1.1.1 1.1.1.1 0 0\r\n", "1.1.1.1"),
    "TCP4, the longest": (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
    "TCP6": (b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n", "2001:db8::7"),
    "TCP6, the longest": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ),
    "TCP6, written at length": (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:7 ::1 1 2\r\n", "2001:db8::7"),
    "TCP6 of an IPv4 client": (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 1 2\r\n", "203.0.113.9"),
    "TCP6 of an IPv4 client, in hexadecimal digits": (b"PROXY TCP6 ::ffff:cb00:7109 ::1 1 2\r\n", "203.0.113.9"),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", ""),
    "UNKNOWN with something": (b"PROXY UNKNOWN ffff::1 whatever it is\r\n", ""),
    "UNKNOWN, the longest": (b"PROXY UNKNOWN ".ljust(LINE_MAX - 2, b"x") + b"\r\n", ""),
    "v2 IPv4": (v2(IPv4_BLOCK), "192.0.2.7"),
    "v2 IPv4 and a field": (v2(IPv4_BLOCK + TLV), "192.0.2.7"),
    "v2 IPv6": (v2(IPv6_BLOCK, 0x21), "2001:db8::7"),
    "v2 IPv6 and a field": (v2(IPv6_BLOCK + TLV, 0x21), "2001:db8::7"),
    "v2 IPv6 of an IPv4 client": (
        v2(ipaddress.ip_address("::ffff:203.0.113.9").packed + IPv6_BLOCK[16:], 0x21),
        "203.0.113.9",
    ),
    "v2 Unix": (v2(UNIX_BLOCK, 0x31), ""),
    "v2 unspecified": (v2(b"", 0x00), ""),
    "v2 unspecified and a field": (v2(TLV, 0x00), ""),
    "v2 LOCAL": (v2(b"", 0x00, command=0x20), ""),
    "v2 LOCAL with addresses": (v2(IPv4_BLOCK, command=0x20), ""),
    "v2 LOCAL of a family that nobody knows": (v2(b"x", 0xFF, command=0x20), ""),
    "v2, the longest": (v2(IPv4_BLOCK.ljust(REST_MAX, b"\0")), "192.0.2.7"),
}

BAD = {
    "no header": b"GET / HTTP/1.1\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00",
    "lower case": b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "UDP": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "nothing": b"PROXY \r\n",
    "no family": b"PROXY  192.0.2.7 198.51.100.1 1 2\r\n",
    "an IPv6 address for TCP4": b"PROXY TCP4 ::1 198.51.100.1 1 2\r\n",
    "an IPv4 address for TCP6": b"PROXY TCP6 192.0.2.7 ::1 1 2\r\n",
    "a destination that is none": b"PROXY TCP4 192.0.2.7 example 1 2\r\n",
    "a number too large": b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
    "leading zeros": b"PROXY TCP4 192.0.02.7 198.51.100.1 1 2\r\n",
    "a zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "an address in Arabic digits": "PROXY TCP4 ١٩٢.0.2.7 198.51.100.1 1 2\r\n".encode(),
    "a port too many": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
    "a port too few": b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    "a port too large": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    "a port with a zero before it": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    "a space at the end": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
    "a bare LF": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\nGET / HTTP/1.1\r\n",
    "a line too long": b"PROXY UNKNOWN ".ljust(LINE_MAX - 1, b"x") + b"\r\n",
    "a line without an end": b"PROXY TCP4 " + b"1" * LINE_MAX,
    "another signature": b"\r\n\r\n\0\r\nQUIX\n" + v2(IPv4_BLOCK)[12:],
    "v2 with version 1": v2(IPv4_BLOCK, command=0x11),
    "v2 with version 3": v2(IPv4_BLOCK, command=0x31),
    "v2 with another command": v2(IPv4_BLOCK, command=0x22),
    "v2 for datagrams": v2(IPv4_BLOCK, 0x12),
    "v2 of no transport": v2(IPv4_BLOCK, 0x10),
    "v2 of another family": v2(IPv4_BLOCK, 0x41),
    "v2 with half an address": v2(IPv4_BLOCK[:11]),
    "v2 with an IPv4 block for IPv6": v2(IPv4_BLOCK, 0x21),
    "v2 with half a path": v2(UNIX_BLOCK[:-1], 0x31),
    "v2 too long": v2(IPv4_BLOCK, length=REST_MAX + 1),
}


def read(pieces: list[bytes]) -> str | tuple[str, int]:
    """What somebody who reads piece by piece learns: the source and the size, or that it is malformed or not whole."""
    data = b""
    for piece in pieces:
        data += piece
        try:
            header = parse(data)
        except Malformed:
            return "malformed"
        if header:
            return header
    return "not whole"


@pytest.mark.parametrize(("header", "source"), WHOLE.values(), ids=WHOLE.keys())
def test_header_is_read_and_what_follows_is_left(header: bytes, source: str) -> None:
    for rest in (b"", b"GET / HTTP/1.1\r\n", b"\r\n", header):
        assert parse(header + rest) == Header(source, len(header))


@pytest.mark.parametrize(("header", "source"), WHOLE.values(), ids=WHOLE.keys())
def test_header_that_is_not_whole_is_waited_for(header: bytes, source: str) -> None:
    assert all(parse(header[:size]) is None for size in range(len(header)))


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_proxy_header_that_is_none_is_malformed_however_it_comes(data: bytes) -> None:
    with pytest.raises(Malformed, match=r"^[a-z ]"):
        parse(data)
    assert read([bytes([byte]) for byte in data]) == "malformed"


@given(
    data=st.one_of(
        st.sampled_from([it for it, _ in WHOLE.values()] + list(BAD.values())),
        st.binary(max_size=64),
        st.builds(lambda rest: b"PROXY " + rest, st.binary(max_size=150)),
        st.builds(lambda rest: SIGNATURE + rest, st.binary(max_size=64)),
        st.builds(v2, st.binary(max_size=64), st.integers(0, 255), st.sampled_from([0x20, 0x21])),
    ),
    rest=st.binary(max_size=8),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_every_split_has_the_same_outcome(data: bytes, rest: bytes, cuts: list[int]) -> None:
    data += rest
    edges = [0, *sorted(min(it, len(data)) for it in cuts), len(data)]
    assert read([data[a:b] for a, b in itertools.pairwise(edges)]) == read([data])


@given(st.binary(max_size=200))
def test_proxy_header_of_any_bytes_is_a_header_or_malformed(data: bytes) -> None:
    try:
        header = parse(data)
    except Malformed:
        return
    assert header is None or header.size <= len(data)


mapped = st.ip_addresses(v=4).map(lambda it: ipaddress.ip_address(f"::ffff:{it}"))


@given(address=st.ip_addresses() | mapped, port=st.integers(0, 65535))
def test_every_address_is_read(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    line = f"PROXY TCP{address.version} {address} {address} {port} {port}\r\n".encode()
    block = address.packed * 2 + port.to_bytes(2) * 2
    source = str((address.version == 6 and address.ipv4_mapped) or address)
    assert parse(line) == Header(source, len(line))
    assert parse(v2(block, 0x11 if address.version == 4 else 0x21)) == Header(source, FIXED + len(block))


def test_proxy_header_holds_no_more_than_the_bounds() -> None:
    assert parse(v2(b"x" * REST_MAX, command=0x20)[:-1]) is None
    assert read([b"PROXY UNKNOWN ".ljust(LINE_MAX, b"x")]) == "malformed"
