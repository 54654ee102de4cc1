"""The doors of a balancer, and clients that come through them: a bound or a rule has to hold at every one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from balancer.types import UnixSocket
from tests.support import wire
from tests.support.http2 import Http2Client
from tests.support.proxy_header import V1, announced
from tests.support.tls import issue, trusting
from tests.support.wire import LIMIT, Connection, Member, Running, balance

Fields = Sequence[tuple[bytes, bytes]]

# A frame of HTTP/2 that begins a head on stream 1, and does not end it (RFC 9113 section 6.2): END_HEADERS is not set.
HALF_HEAD = b"\x00\x00\x01" + b"\x01" + b"\x00" + b"\x00\x00\x00\x01" + b"\x82"


class Reply(NamedTuple):
    """What a client has got: a status (0: none) and a token of the balancer's."""

    status: int
    token: str = ""


class Door:
    """A balancer behind a front end of HTTP/1.1. ``own``: that is the balancer's, and not a server's beneath ASGI."""

    speaks_http2 = False

    def __init__(
        self, running: Running, tls: ssl.SSLContext | None = None, first: bytes = b"", own: bool = True
    ) -> None:
        self.running = running
        self.own = own
        self._tls = tls
        self._first = first

    @property
    def reached(self) -> dict[str, int]:
        """The bounds that clients have reached, other than those of requests."""
        assert self.running.clients
        return {limit: count for limit, count in self.running.clients.limits.counts.items() if count}

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Return a connection that is ready for HTTP."""
        return self.running.client(self._tls, self._first)

    async def ask(
        self,
        method: bytes = b"GET",
        target: bytes = b"/",
        fields: Fields = (),
        body: bytes | None = None,
        length: int | None = None,
    ) -> Reply:
        """Send a request, and return what comes back.

        ``body``: of unknown length, if there is one; ``length``: of one that is announced, and not sent.
        """
        fields = [*fields, (b"Content-Length", b"%d" % length)] if length else fields
        async with self.connect() as client:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
            framed = b"Transfer-Encoding: chunked\r\n" if body is not None else b""
            head = b"%b %b HTTP/1.1\r\nHost: a\r\n%b%b\r\n" % (method, target, lines, framed)
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b""
            await self._send(client, head + chunks)
            return await self.reply(client)

    @staticmethod
    async def _send(client: Connection, data: bytes) -> None:
        try:
            await client.send(data)
        except ConnectionError:
            pass  # It is refused already.

    @staticmethod
    async def reply(client: Connection) -> Reply:
        """Return the response that a connection gets next, of which only the head is read."""
        try:
            head = await client.head()
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(0)
        token = head.partition(b"\r\nx-balancer-error: ")[2].partition(b"\r\n")[0]
        return Reply(int(head.split(b" ")[1]), token.decode())

    # Clients that do not go on. Each returns what they got by the end of their connection or stream.

    async def say_nothing(self) -> Reply:
        """Connect, and send nothing of HTTP."""
        async with self.connect() as client:
            return await self.reply(client)

    async def send_half_a_head(self) -> Reply:
        async with self.connect() as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-")
            return await self.reply(client)

    async def send_half_a_body(self) -> Reply:
        async with self.connect() as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            return await self.reply(client)

    async def stay_idle(self) -> Reply:
        """Have one answer, and send nothing more."""
        async with self.connect() as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await self.reply(client)).status == 200
            await client.exactly(2)
            return await self.reply(client)

    async def read_nothing(self) -> None:
        """Have a large answer sent, and read none of it until the connection has been cut off."""
        async with self.connect() as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            await self.cut_off()

    async def cut_off(self) -> None:
        """Wait until the balancer has no connection of a client any more."""
        clients = self.running.clients
        assert clients
        await wire.eventually(lambda: bool(clients.connections))
        await wire.eventually(lambda: not clients.connections)


class Http2Door(Door):
    """A balancer that speaks HTTP/2 over TLS."""

    speaks_http2 = True

    @asynccontextmanager
    async def _client(self, window: int = 1 << 20) -> AsyncIterator[Http2Client]:
        async with self.connect() as connection:
            client = Http2Client(connection, window)
            await client.begin()
            yield client

    async def ask(
        self,
        method: bytes = b"GET",
        target: bytes = b"/",
        fields: Fields = (),
        body: bytes | None = None,
        length: int | None = None,
    ) -> Reply:
        async with self._client() as client:
            lower = [(name.lower(), value) for name, value in fields]
            if length:
                lower.append((b"content-length", b"%d" % length))
            stream = await client.ask(*lower, method=method, path=target, end=body is None and not length)
            if body is not None:
                await client.send(stream, body, end=True)
            return await self._answer(client, stream)

    @staticmethod
    async def _answer(client: Http2Client, stream: int) -> Reply:
        answer = await client.answer(stream)
        return Reply(answer.status, dict(answer.headers).get(b"x-balancer-error", b"").decode())

    @staticmethod
    async def _end(client: Http2Client) -> Reply:
        async with asyncio.timeout(LIMIT):
            while not client.ended:
                await client.read()
        return Reply(0)

    async def say_nothing(self) -> Reply:
        async with self.connect() as client:
            await client.to_end()
            return Reply(0)

    async def send_half_a_head(self) -> Reply:
        async with self._client() as client:
            await client.connection.send(HALF_HEAD)
            return await self._end(client)

    async def send_half_a_body(self) -> Reply:
        async with self._client() as client:
            stream = await client.ask((b"content-length", b"9"), method=b"POST", end=False)
            await client.send(stream, b"abc")
            return await self._answer(client, stream)

    async def stay_idle(self) -> Reply:
        async with self._client() as client:
            assert (await client.get("/")).status == 200
            return await self._end(client)

    async def read_nothing(self) -> None:
        async with self._client(window=1 << 30) as client:
            client.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.ask(path=b"/large")
            await self.cut_off()


# Opens a door of a balancer over a member. Settings as fields of Settings.
Opens = Callable[..., AbstractAsyncContextManager[Door]]


@asynccontextmanager
async def http(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    async with balance(member, **settings) as running:
        yield Door(running)


@asynccontextmanager
async def tls(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    async with balance(member, **issue(folder), **settings) as running:
        yield Door(running, trusting())


@asynccontextmanager
async def http2(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    async with balance(member, http2=True, **issue(folder), **settings) as running:
        yield Http2Door(running, trusting("h2"))


@asynccontextmanager
async def proxy_header(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    async with announced(member, **settings) as running:
        yield Door(running, first=V1)


@asynccontextmanager
async def proxy_header_and_tls(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    async with announced(member, **issue(folder), **settings) as running:
        yield Door(running, trusting(), V1)


@asynccontextmanager
async def unix_socket(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    path = folder / "balancer.sock"
    async with balance(member, unix=UnixSocket(str(path)), **settings) as running:
        yield Door(running)
    path.unlink()


@asynccontextmanager
async def asgi(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Door]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "edge", False)
        async with balance(member, **settings) as running:
            yield Door(running, own=False)


HTTP1: dict[str, Opens] = {
    "HTTP/1.1": http,
    "TLS": tls,
    "PROXY": proxy_header,
    "PROXY and TLS": proxy_header_and_tls,
    "Unix socket": unix_socket,
}
# With connections of the balancer's own.
OWN: dict[str, Opens] = {**HTTP1, "HTTP/2": http2}
# All through which requests come.
ALL: dict[str, Opens] = {**OWN, "ASGI": asgi}
