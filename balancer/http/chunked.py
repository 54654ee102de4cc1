"""Bodies in chunks (RFC 9112 section 7.1): reading them from clients, and writing them. No I/O.

Rules, stricter than the RFC where two servers in a row might read the same bytes differently:
* A size has SIZE_DIGITS hexadecimal digits at most, leading zeros aside: no body is longer.
* Extensions have the grammar of section 7.1.1 without white space around ``;`` and ``=``, and a value may be empty.
* Every line ends with CRLF, also the one behind the data of a chunk.
* A trailer must not change the framing (section 7.1.2).
* Bytes beside the data count as a head does, but for BODY_WORTH of them for each byte of data.

Bodies of members are read by httptools (``balancer.upstream.response_parser``).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from balancer.http.headers import Headers
from balancer.http.validation import TOKEN

# Digits of a chunk's size: 2**60 bytes.
SIZE_DIGITS = 15
# Bytes of chunk sizes and extensions allowed for each byte of a body; more of them count as a head does.
BODY_WORTH = 16

_TOKEN = TOKEN.pattern
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
# What nearly every chunk begins with.
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_SIZE = re.compile(rb"0*+([0-9A-Fa-f]*+)(?:;%b(?:=(?:%b|%b)?)?)*+" % (_TOKEN, _TOKEN, _QUOTED))
_TRAILER = re.compile(rb"(%b):[\t ]*([\t \x21-\x7e\x80-\xff]*)" % _TOKEN)
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class MalformedChunk(ValueError):
    """Bytes that are no chunk; the message has the reason."""


class _Expects(Enum):
    """The part of a body that comes next."""

    SIZE = "size"
    DATA = "data"
    END_OF_DATA = "end of data"
    TRAILER = "trailer"


_SIZE_LINE: Final = _Expects.SIZE
_DATA: Final = _Expects.DATA
_END_OF_DATA: Final = _Expects.END_OF_DATA
_TRAILER_LINE: Final = _Expects.TRAILER


class ChunkedReader:
    """A reader of one body. ``complete``: its end has come. ``trailers``: the lines behind the last chunk.

    ``overhead``: bytes beside the data, less BODY_WORTH for each byte of data.
    """

    __slots__ = ("_expects", "_left", "_line", "complete", "overhead", "trailers")

    def __init__(self) -> None:
        self._expects = _SIZE_LINE
        # Bytes that the chunk still has, and a line as far as it has come.
        self._left = 0
        self._line = b""
        self.complete = False
        self.overhead = 0
        self.trailers: Headers = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the pieces of the body in ``data``, and the bytes behind the body. Raises MalformedChunk."""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.complete:
            if self._expects is _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self.overhead = max(0, self.overhead - BODY_WORTH * len(piece))
                if not self._left:
                    self._expects = _END_OF_DATA
            elif not self._line and self._expects is _SIZE_LINE and (end := self._take_whole_chunk(data, at, pieces)):
                at = end
            else:
                at = self._read_line(data, at)
        return pieces, data[at:]

    def _take_whole_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take a chunk without extensions that is all there: what senders send. Returns where it ends, or 0."""
        found = _PLAIN_SIZE.match(data, at)
        size = int(found[1], 16) if found else 0
        if not found or not size:
            return 0
        end = found.end() + size
        if data[end : end + 2] != b"\r\n":
            return 0
        pieces.append(data[found.end() : end])
        self.overhead = max(0, self.overhead + found.end() - at + 2 - BODY_WORTH * size)
        return end + 2

    def _read_line(self, data: bytes, at: int) -> int:
        """Take the next line, as far as it has come; return where it ends."""
        end = data.find(b"\n", at) + 1
        part = data[at:end] if end else data[at:]
        self._line += part
        self.overhead += len(part)
        if self._expects is _END_OF_DATA and not b"\r\n".startswith(self._line):
            raise MalformedChunk("a chunk is longer than its size")
        if end:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise MalformedChunk("a line of a chunked body ends without CR")
            self._take_line(line[:-2])
        return end or len(data)

    def _take_line(self, line: bytes) -> None:
        if self._expects is _END_OF_DATA:
            self._expects = _SIZE_LINE
        elif self._expects is _SIZE_LINE:
            self._left = _size(line)
            self._expects = _DATA if self._left else _TRAILER_LINE
        elif line:
            self.trailers.append(_trailer(line))
        else:
            self.complete = True


def _size(line: bytes) -> int:
    """Return the size on a chunk's first line. Raises MalformedChunk."""
    found = _SIZE.fullmatch(line)
    if not found or not line[:1].isalnum():
        raise MalformedChunk("a chunk's size is not a hexadecimal number with extensions")
    if len(found[1]) > SIZE_DIGITS:
        raise MalformedChunk(f"a chunk's size has more than {SIZE_DIGITS} digits")
    return int(found[1] or b"0", 16)


def _trailer(line: bytes) -> tuple[bytes, bytes]:
    """Return the trailer on a line. Raises MalformedChunk."""
    found = _TRAILER.fullmatch(line)
    if not found:
        raise MalformedChunk("a trailer is not a header line")
    name = found[1].lower()
    if name in _FRAMING:
        raise MalformedChunk("a trailer must not frame the body")
    return name, found[2].rstrip()


def chunk(piece: bytes) -> bytes:
    """A piece of a body of unknown length; nothing for an empty one, which would mean the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def last_chunk(trailers: Headers) -> bytes:
    """Return the end of a body of unknown length, with the trailers that follow it (section 7.1.2)."""
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % pair for pair in trailers) if trailers else b"0\r\n\r\n"
