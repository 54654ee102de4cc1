"""HTTP/1.1 read by somebody else: h11, which is strict and shares no code with httptools.

``Requests`` and ``Responses`` take a stream of bytes in any pieces and give the messages in it, whole or begun.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import h11

Fields = list[tuple[bytes, bytes]]

# Enough for everything that the balancer accepts as a head.
_HEAD_MAX = 1 << 20
# h11 takes no bytes beyond ASCII in a target, which are not allowed and common all the same.
_SPACES = re.compile(rb" +")
_ASCII = bytes(min(it, 0x7E) for it in range(256))


@dataclass
class Message:
    """A request or a response. ``offset``, ``end``: where it is in its stream; ``complete``: its end has come."""

    offset: int
    end: int = 0
    method: bytes = b""
    target: bytes = b""
    version: bytes = b""
    status: int = 0
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    complete: bool = False
    # Responses before the final one, by status.
    interim: list[int] = field(default_factory=list)

    def values(self, name: bytes) -> list[bytes]:
        return [value for field_name, value in self.fields if field_name == name]

    @property
    def told(self) -> tuple[object, ...]:
        """Everything that whoever reads it learns from it."""
        return (
            self.method, self.target, self.status, self.interim, self.fields, self.body, self.trailers, self.complete,
        )  # fmt: skip


class Requests:
    """Requests one after another. ``error``: why the stream is not one of requests from there on."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.error = ""
        self._pending = b""  # before h11 gets it
        self._fed = 0
        self._parser: h11.Connection | None = None

    def feed(self, data: bytes) -> None:
        self._pending += data
        self._fed += len(data)
        while not self.error and self._step():
            pass

    @property
    def whole(self) -> list[Message]:
        return [it for it in self.messages if it.complete]

    @property
    def half_head(self) -> bytes:
        """Bytes of a head whose end has not come."""
        if self.messages and not self.messages[-1].complete:
            return b""
        return self._pending.lstrip(b"\r\n") + (bytes(self._parser.trailing_data[0]) if self._parser else b"")

    def _step(self) -> bool:
        """Go on by a message, if there is one."""
        if self._parser is None:
            self._pending = self._pending.lstrip(b"\r\n")  # RFC 9112 section 2.2
            line, newline, rest = self._pending.partition(b"\n")
            if not newline:
                return False
            self._offset = self._fed - len(self._pending)
            # RFC 9112 section 3: words may be parted by more than one space.
            self._pending = _SPACES.sub(b" ", line.translate(_ASCII)) + newline + rest
            self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_MAX)
        try:
            if self._pending:
                self._parser.receive_data(self._pending)
                self._pending = b""
            while (event := self._parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Request):
                    fields = list(event.headers)
                    self.messages.append(
                        Message(
                            self._offset,
                            method=event.method,
                            target=event.target,
                            version=event.http_version,
                            fields=fields,
                        )
                    )
                elif isinstance(event, h11.Data):
                    self.messages[-1].body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.messages[-1].complete = True
                    self.messages[-1].trailers = list(event.headers)
                    self._pending = self._parser.trailing_data[0]
                    self._parser = None
                    self.messages[-1].end = self._fed - len(self._pending)
                    return True
        except h11.RemoteProtocolError as error:
            self.error = str(error)
        return False


class Responses:
    """Responses one after another. ``method``: the method of the request that the so-and-so-manieth of them answers.

    After a 101 the stream is another protocol's: ``tunnel`` has its bytes.
    """

    def __init__(self, method: Callable[[int], bytes]) -> None:
        self.messages: list[Message] = []
        self.error = ""
        self.tunnel: bytes | None = None
        self._method = method
        self._fed = 0
        self._parser: h11.Connection | None = None
        self._waiting = b""
        self._interim: list[int] = []

    def feed(self, data: bytes) -> None:
        self._fed += len(data)
        while data and not self.error and self.tunnel is None:
            if self._parser is None:
                self._parser = _asked(self._method(len(self.messages)))
                self._offset = self._fed - len(data)
            data = self._read(data)
        if self.tunnel is not None:
            self.tunnel += data

    def end(self) -> None:
        """The connection has ended in order, which ends a body without a length, and leaves any other incomplete."""
        if self._parser and not self.error and self.tunnel is None:
            self._read(b"")
            self.error = ""

    @property
    def begun(self) -> bool:
        """Whether a response has begun, whose head is not complete."""
        if self._parser is None or self.tunnel is not None:
            return False
        return not self.messages or self.messages[-1].complete

    @property
    def half_head(self) -> bytes:
        """Bytes of a head whose end has not come."""
        return bytes(self._parser.trailing_data[0]) if self._parser and self.begun else b""

    def _read(self, data: bytes) -> bytes:
        parser = self._parser
        assert parser
        try:
            parser.receive_data(data)
            while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.InformationalResponse):
                    self._interim.append(event.status_code)
                    if event.status_code == 101:
                        self._begin(event)
                        self.messages[-1].complete = True
                        self.tunnel = b""
                        return parser.trailing_data[0]
                elif isinstance(event, h11.Response):
                    self._begin(event)
                elif isinstance(event, h11.Data):
                    self.messages[-1].body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.messages[-1].complete = True
                    self.messages[-1].trailers = list(event.headers)
                    self._parser = None
                    return parser.trailing_data[0]
                elif isinstance(event, h11.ConnectionClosed):
                    break
        except h11.RemoteProtocolError as error:
            self.error = str(error)
        return b""

    def _begin(self, event: h11.Response | h11.InformationalResponse) -> None:
        message = Message(self._offset, status=event.status_code, fields=list(event.headers), interim=self._interim)
        self.messages.append(message)
        self._interim = []


def _asked(method: bytes) -> h11.Connection:
    """A client that has sent a request, and would take another protocol for an answer."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_MAX)
    fields = [(b"host", b"a"), (b"connection", b"upgrade"), (b"upgrade", b"x")]
    parser.send(h11.Request(method=b"HEAD" if method == b"HEAD" else b"GET", target=b"/", headers=fields))
    parser.send(h11.EndOfMessage())
    return parser
