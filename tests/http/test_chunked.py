"""A body in chunks, read: what is one, what is none, and that where it is cut changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.http.chunked import BODY_WORTH, ChunkedReader, MalformedChunk, chunk, last_chunk
from balancer.http.headers import Headers

SOUND: dict[str, tuple[bytes, bytes, Headers]] = {
    "one chunk": (b"3\r\nabc\r\n0\r\n\r\n", b"abc", []),
    "two chunks": (b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde", []),
    "no chunk but the last": (b"0\r\n\r\n", b"", []),
    "hexadecimal digits": (b"A\r\n0123456789\r\n0a\r\nabcdefghij\r\n0\r\n\r\n", b"0123456789abcdefghij", []),
    "leading zeros": (b"0000000000000000000003\r\nabc\r\n000\r\n\r\n", b"abc", []),
    "extensions": (b'3;a;b=c;d="e;\\"\xff"\r\nabc\r\n0;last\r\n\r\n', b"abc", []),
    "an extension with an empty value": (b"3;a=\r\nabc\r\n0\r\n\r\n", b"abc", []),
    "line breaks in the data": (b"4\r\n\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r", []),
    "trailers": (b"0\r\nX-Sum: 1 \r\nX:\r\n\r\n", b"", [(b"x-sum", b"1"), (b"x", b"")]),
}

MALFORMED: dict[str, bytes] = {
    "no size": b"\r\nabc\r\n",
    "an extension and no size": b";a\r\n",
    "no digit": b"x\r\n",
    "a sign": b"+3\r\n",
    "a prefix": b"0x3\r\n",
    "an underscore": b"1_0\r\n",
    "white space before the size": b" 3\r\n",
    "white space behind the size": b"3 \r\n",
    "white space before an extension": b"3 ;a\r\n",
    "white space around an extension's value": b"3;a = b\r\n",
    "an extension without a name": b"3;=b\r\n",
    "an open quote": b'3;a="b\r\n',
    "a NUL in an extension": b"3;a=\0\r\n",
    "16 digits": b"FFFFFFFFFFFFFFFB\r\n",
    "17 digits": b"10000000000000003\r\n",
    "zeros and 16 digits": b"00001000000000000000\r\n",
    "a bare LF behind the size": b"3\nabc\r\n",
    "a bare CR behind the size": b"3\rabc\r\n",
    "a bare LF behind the data": b"3\r\nabc\n0\r\n\r\n",
    "more data than the size says": b"2\r\nabc\r\n",
    "less data than the size says": b"4\r\nabc\r\n0\r\n\r\n",
    "a bare LF at the end": b"0\r\n\n",
    "a trailer without a colon": b"0\r\nx\r\n\r\n",
    "a trailer with white space before the colon": b"0\r\nx : y\r\n\r\n",
    "a folded trailer": b"0\r\nx: y\r\n z\r\n\r\n",
    "a trailer with a NUL": b"0\r\nx: \0\r\n\r\n",
    "a trailer that frames": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a trailer that says a length": b"0\r\nContent-Length: 3\r\n\r\n",
}


def read(*pieces: bytes) -> tuple[bytes, ChunkedReader, bytes]:
    """The body, its reader, and what follows it."""
    reader = ChunkedReader()
    body, rest = b"", b""
    for piece in pieces:
        found, behind = reader.feed(piece)
        body += b"".join(found)
        rest += behind
    return body, reader, rest


def cuts(data: bytes) -> list[list[bytes]]:
    """Whole, in two at every place, and byte by byte."""
    in_two = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], *in_two, [data[at : at + 1] for at in range(len(data))]]


@pytest.mark.parametrize(("data", "body", "trailers"), SOUND.values(), ids=SOUND)
def test_sound_body_is_the_same_wherever_it_is_cut(data: bytes, body: bytes, trailers: Headers) -> None:
    for pieces in cuts(data + b"GET /"):
        found, reader, rest = read(*pieces)
        assert (found, reader.trailers, rest, reader.complete) == (body, trailers, b"GET /", True)


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_body_is_refused_wherever_it_is_cut(data: bytes) -> None:
    for pieces in cuts(data):
        with pytest.raises(MalformedChunk):
            read(*pieces)


@pytest.mark.parametrize("size", [b"FFFFFFFFFFFFFFFB", b"0" * 40 + b"1" * 16])
def test_size_of_sixteen_digits_is_refused_before_any_data(size: bytes) -> None:
    with pytest.raises(MalformedChunk, match="more than 15 digits"):
        read(size + b"\r\n")


@given(st.lists(st.binary(min_size=1, max_size=50)), st.data())
def test_chunks_that_are_written_are_read(pieces: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(map(chunk, pieces)) + last_chunk([(b"x", b"y")])
    places = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    cut = [wire[start:end] for start, end in zip([0, *places], [*places, len(wire)], strict=True)]
    body, reader, rest = read(*cut)
    assert (body, reader.trailers, rest, reader.complete) == (b"".join(pieces), [(b"x", b"y")], b"", True)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_malformed(data: bytes) -> None:
    try:
        body, reader, rest = read(data)
    except MalformedChunk:
        return
    assert len(body) + len(rest) <= len(data)
    assert not rest or reader.complete


def test_overhead_counts_lines_and_less_for_data() -> None:
    _, reader, _ = read(b"3;" + b"a" * 100 + b"\r\n")
    assert reader.overhead == 104
    reader.feed(b"abc")
    assert reader.overhead == 104 - 3 * BODY_WORTH
    reader.feed(b"\r\n40\r\n" + b"x" * 64)
    assert reader.overhead == 0
