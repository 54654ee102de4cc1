"""What a server sends over HTTP/2, frame by frame, read strictly and without the library that wrote it (RFC 9113)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")
# Section 8.2.2.
_FORBIDDEN = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}

Fields = list[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def literal(fields: Fields) -> bytes:
    """A field block (RFC 7541 section 6.2.2) in which everything is written out."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes([size]) + data
    rest, size = b"\x7f", size - 127
    while size >= 128:
        rest, size = rest + bytes([size % 128 + 128]), size // 128
    return rest + bytes([size]) + data


@dataclass
class Response:
    """What has come on a stream. ``status``: of the final head, 0 before there is one."""

    status: int = 0
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: bool = False

    def value(self, name: bytes) -> bytes:
        return dict(self.fields).get(name, b"")


class ServerFrames:
    """Reads what a server sends. ``asked``: streams that the client has opened. ``faults``: what is wrong, in words."""

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self.responses: dict[int, Response] = {}
        self.faults: list[str] = []
        self.goaway = False
        self._data = b""
        self._first = True
        self._block: tuple[int, int, bytes] | None = None
        self._decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self._decoder.max_allowed_table_size = 1 << 32

    def feed(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= 9:
            end = 9 + int.from_bytes(self._data[:3])
            if len(self._data) < end:
                return
            head, payload, self._data = self._data[:9], self._data[9:end], self._data[end:]
            self._frame(head[3], head[4], int.from_bytes(head[5:9]), payload)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._first and (kind != SETTINGS or flags & ACK):
            self.faults.append(f"the first frame is of type {kind}")
        self._first = False
        if self._block and (kind != CONTINUATION or stream != self._block[0]):
            self.faults.append("a field block is interrupted")
        if kind in (DATA, HEADERS, RST_STREAM, CONTINUATION):
            self._on_stream(kind, flags, stream, payload)
        elif kind == GOAWAY:
            self.goaway = True
        elif kind == WINDOW_UPDATE and not int.from_bytes(payload):
            self.faults.append("a window grows by nothing")
        elif kind == PUSH_PROMISE:
            self.faults.append("a push")

    def _on_stream(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if stream not in self.asked:
            self.faults.append(f"a frame of type {kind} for a stream that was not opened: {stream}")
            return
        response = self.responses.setdefault(stream, Response())
        if response.ended and kind != RST_STREAM:
            self.faults.append(f"a frame of type {kind} after the end; stream {stream}")
        elif kind == RST_STREAM:
            response.reset = True
        elif kind == DATA:
            if not response.status:
                self.faults.append("a body without a head")
            response.body += payload
            self._end(response, flags & END_STREAM)
        else:
            before = self._block if kind == CONTINUATION else (stream, flags, b"")
            if before is None:
                self.faults.append("a continuation of nothing")
                return
            self._block = stream, before[1], before[2] + payload
            if flags & END_HEADERS:
                _, first_flags, block = self._block
                self._block = None
                self._head(response, block, first_flags & END_STREAM)

    def _head(self, response: Response, block: bytes, ends: int) -> None:
        try:
            fields = [(bytes(it[0]), bytes(it[1])) for it in self._decoder.decode(block, raw=True)]
        except hpack.HPACKError as error:
            self.faults.append(f"a field block is none: {type(error).__name__}")
            return
        status = [value for name, value in fields if name == b":status"]
        rest = fields[len(status) :]
        for name, value in rest:
            if not _NAME.fullmatch(name) or name in _FORBIDDEN:
                self.faults.append(f"a field that is none in HTTP/2; {name!r}")
            if not _VALUE.fullmatch(value):
                self.faults.append(f"a value that is none in HTTP/2; {value!r}")
        if response.status:
            if status or not ends:
                self.faults.append(f"a second head; {fields}")
        elif len(status) != 1 or not re.fullmatch(rb"[1-9][0-9][0-9]", status[0]) or status[0] == b"101":
            self.faults.append(f"a head without a status; {fields}")
        elif not status[0].startswith(b"1"):
            response.status, response.fields = int(status[0]), rest
        elif ends:
            self.faults.append("an interim response is the last")
        self._end(response, ends)

    def _end(self, response: Response, ends: int) -> None:
        response.ended = bool(ends)
        length = response.value(b"content-length")
        if ends and length and response.body and int(length) != len(response.body):
            self.faults.append(f"a body of another length than announced: {len(response.body)} for {length!r}")
