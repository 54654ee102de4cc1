"""A client that sends as fast as it can, through each door of the balancer, and what the balancer makes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Self

import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

import zttp

from balancer.frontend.http1_parser import RequestParser
from tests.support.doors import OpenDoor
from tests.support.wire import OK, Connection

MEBI = 1 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    """A frame of HTTP/2 (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


CHUNKED = b"POST /flood HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"
# What begins each flood, and what it repeats.
HTTP1 = {"1-byte chunks": CHUNKED}
HTTP2 = {
    "PING": (PREFACE, frame(0x6, b"12345678")),
    "SETTINGS": (PREFACE, frame(0x4)),
    "table size": (PREFACE, frame(0x4, b"\0\x01\0\0\x10\0")),
    "WINDOW_UPDATE": (PREFACE, frame(0x8, b"\0\0\0\x01")),
}


async def sink(connection: Connection) -> None:
    """A member that reads uploads without end, and answers all other requests."""
    while True:
        if (await connection.head()).startswith(b"POST"):
            while await connection.reader.read(1 << 20):
                pass
            return
        await connection.send(OK)


class Flood:
    """A thread that sends up to ``size`` bytes of a flood: what begins it, and what it repeats.

    ``sent``: bytes that have gone out. ``has_ended``: the balancer has closed the connection.
    """

    def __init__(self, door: OpenDoor, kind: tuple[bytes, bytes], size: int) -> None:
        self._door = door
        self._begin, self._piece = kind
        self._size = size
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._ends = False
        self._received = b""
        self.sent = 0
        self.has_ended = False

    @property
    def goaway(self) -> int | None:
        """The error code of the last frame, if it is GOAWAY (RFC 9113 section 6.8)."""
        last = self._received[-17:]
        return int.from_bytes(last[-4:]) if last.startswith(b"\0\0\x08\x07\0\0\0\0\0") else None

    async def _run(self) -> None:
        piece = self._piece * (MEBI // len(self._piece))
        async with self._door.client() as connection:
            reading = asyncio.create_task(self._read(connection.reader))
            try:
                await connection.send(self._begin)
                while self.sent < self._size and not self._ends:
                    await connection.send(piece)
                    self.sent += len(piece)
            except OSError:
                pass  # It was cut off.
            while not self._ends and not reading.done():
                await asyncio.sleep(0.01)
            reading.cancel()
            connection.writer.transport.abort()
        await asyncio.sleep(0.01)  # The transport is closed in the next turn.

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(MEBI):
                self._received = (self._received + data)[-200:]
        except OSError:
            pass
        self.has_ended = True

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._ends = True
        await asyncio.to_thread(self._thread.join)


class Turns:
    """What parsers take in each turn of the event loop. ``most``: bytes in one turn; ``total``: of all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self.total = self._now = 0
        feed = RequestParser.feed
        connection: Any = zttp.Connection

        def feed_and_count(parser: RequestParser, data: bytes) -> bytes | None:
            self.count(len(data))
            return feed(parser, data)

        monkeypatch.setattr(RequestParser, "feed", feed_and_count)
        counting = SimpleNamespace(
            **vars(zttp) | {"Connection": lambda *of, **more: _Counting(self, connection(*of, **more))}
        )
        monkeypatch.setattr("uvicorn.protocols.http.zttp_h2_impl.zttp", counting)

    def count(self, size: int) -> None:
        self._now += size
        self.total += size
        self.most = max(self.most, self._now)

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        ends = False

        def turn() -> None:
            self._now = 0
            if not ends:
                loop.call_soon(turn)

        turn()
        try:
            yield
        finally:
            ends = True


class _Counting:
    """zttp's connection, and a count of what it gets."""

    def __init__(self, turns: Turns, connection: Any) -> None:
        self._turns = turns
        self._connection = connection

    def receive_data(self, data: bytes) -> None:
        self._turns.count(len(data))
        self._connection.receive_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
