"""The doors of a balancer, in one table, and clients that come through them: a bound or a rule holds at every one."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from balancer.frontend.client_registry import ClientRegistry
from balancer.types import UnixSocket
from tests.support import wire
from tests.support.http2 import Http2Client
from tests.support.proxy_header import LOOPBACK, V1
from tests.support.tls import issue, trusting
from tests.support.wire import LIMIT, Connection, Member, Running, balance

# The beginning of a TLS handshake, which never goes on.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)
# A frame of HTTP/2 that begins a head on stream 1, and does not end it (RFC 9113 section 6.2): END_HEADERS is not set.
HALF_HEAD = b"\x00\x00\x01" + b"\x01" + b"\x00" + b"\x00\x00\x00\x01" + b"\x82"


@dataclass(frozen=True)
class Door:
    """A front end, and what it takes to come to HTTP there.

    ``stalls``: what a client has sent when it stays where HTTP has not begun. ``protocol``: that a client agrees on in
    TLS, if there is TLS. ``first``: what a client sends before that. ``own``: the balancer serves the connections, and
    not a server beneath ASGI.
    """

    name: str
    stalls: tuple[bytes, ...] = ()
    protocol: str = ""
    first: bytes = b""
    unix: bool = False
    own: bool = True

    @property
    def speaks_http2(self) -> bool:
        return self.protocol == "h2"

    def settings(self, folder: Path) -> dict[str, Any]:
        """The settings that open it, but for the address."""
        found: dict[str, Any] = issue(folder) if self.protocol else {}
        if self.speaks_http2:
            found["http2"] = True
        if self.first:
            found |= {"proxy_protocol": True, "trusted_proxies": LOOPBACK}
        return found

    @asynccontextmanager
    async def open(self, member: Member, folder: Path, **settings: Any) -> AsyncIterator[OpenDoor]:
        """A balancer with this door, before a member. Settings as fields of Settings."""
        if self.speaks_http2:
            pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
        unix = UnixSocket(str(folder / "balancer.sock")) if self.unix else None
        async with balance(member, unix=unix, own_edge=self.own, **self.settings(folder) | settings) as running:
            yield (OpenHttp2Door if self.speaks_http2 else OpenDoor)(self, running)


@dataclass(frozen=True)
class Asked:
    """A request. ``body``: of unknown length, if there is one; ``length``: of one that is announced, and not sent."""

    method: bytes = b"GET"
    target: bytes = b"/"
    fields: Sequence[tuple[bytes, bytes]] = ()
    body: bytes | None = None
    length: int = 0


@dataclass(frozen=True)
class Reply:
    """What a client has got: a status (0: none), a token of the balancer's, and for a closer look, the body."""

    status: int
    token: str = ""
    body: bytes = field(default=b"", compare=False)


Test = Callable[..., Coroutine[Any, Any, None]]
# Sends a request, of the fields of Asked, and returns what comes back.
Ask = Callable[..., Awaitable[Reply]]


class OpenDoor:
    """A balancer behind a door of HTTP/1.1, and its clients."""

    def __init__(self, door: Door, running: Running) -> None:
        self.door = door
        self.running = running

    @property
    def clients(self) -> ClientRegistry:
        assert self.running.clients
        return self.running.clients

    @property
    def reached(self) -> dict[str, int]:
        """The bounds that clients have reached, other than those of requests."""
        return {limit: count for limit, count in self.clients.limits.counts.items() if count}

    def client(self, host: str = "") -> AbstractAsyncContextManager[Connection]:
        """A client that has come to HTTP, from the address ``host``, which a PROXY header names where there is one."""
        first = self.door.first.replace(b"192.0.2.7", host.encode()) if host else self.door.first
        tls = trusting(self.door.protocol) if self.door.protocol else None
        return self.running.client(tls, first, "" if first else host)

    @asynccontextmanager
    async def stalled(self, sent: bytes = b"") -> AsyncIterator[Connection]:
        """A client that has connected, and sent no more than these bytes."""
        async with self.running.client() as client:
            await client.send(sent)
            yield client

    @asynccontextmanager
    async def asking(self, host: str = "") -> AsyncIterator[Ask]:
        """A client whose connection stays open between its requests."""
        async with self.client(host) as client:

            async def ask(**request: Any) -> Reply:
                await self._send(client, Asked(**request))
                return await self.reply(client)

            yield ask

    async def ask(self, host: str = "", **request: Any) -> Reply:
        """Send a request on a connection of its own."""
        try:
            async with self.asking(host) as ask:
                return await ask(**request)
        except (ConnectionError, ssl.SSLError):
            return Reply(0)

    @staticmethod
    async def _send(client: Connection, it: Asked) -> None:
        fields = [(b"Host", b"a"), *it.fields]
        if it.length:
            fields.append((b"Content-Length", b"%d" % it.length))
        if it.body is not None:
            fields.append((b"Transfer-Encoding", b"chunked"))
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(it.body), it.body) if it.body else b""
        lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
        try:
            await client.send(b"%b %b HTTP/1.1\r\n%b\r\n%b" % (it.method, it.target, lines, chunks))
        except ConnectionError:
            pass  # It is refused already.

    @staticmethod
    async def reply(client: Connection) -> Reply:
        """Return the response that a connection gets next."""
        try:
            while (head := await client.head()).startswith(b"HTTP/1.1 1"):
                pass
            length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            body = await client.exactly(int(length or b"0"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(0)
        token = head.partition(b"\r\nx-balancer-error: ")[2].partition(b"\r\n")[0]
        return Reply(int(head.split(b" ")[1]), token.decode(), body)

    # Clients that do not go on. Each returns what they got by the end of their connection or stream.

    async def say_nothing(self) -> Reply:
        """Connect, and send nothing of HTTP."""
        async with self.client() as client:
            return await self.reply(client)

    async def send_half_a_head(self) -> Reply:
        async with self.client() as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-")
            return await self.reply(client)

    async def send_half_a_body(self) -> Reply:
        async with self.client() as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            return await self.reply(client)

    async def stay_idle(self) -> Reply:
        """Have one answer, and send nothing more."""
        async with self.client() as client:
            await self._send(client, Asked())
            assert await self.reply(client) == Reply(200)
            return await self.reply(client)

    async def read_nothing(self) -> None:
        """Have a large answer sent, and read none of it until the connection has been cut off."""
        async with self.client() as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await self._send(client, Asked(target=b"/large"))
            await self.cut_off()

    async def cut_off(self) -> None:
        """Wait until the balancer has no connection of a client any more."""
        await wire.eventually(lambda: bool(self.clients.connections))
        await wire.eventually(lambda: not self.clients.connections)


class OpenHttp2Door(OpenDoor):
    """A balancer that speaks HTTP/2 over TLS, and its clients."""

    @asynccontextmanager
    async def _spoken(self, window: int = 1 << 20, host: str = "") -> AsyncIterator[Http2Client]:
        async with self.client(host) as connection:
            client = Http2Client(connection, window)
            await client.begin()
            yield client

    @asynccontextmanager
    async def asking(self, host: str = "") -> AsyncIterator[Ask]:
        async with self._spoken(host=host) as client:

            async def ask(**request: Any) -> Reply:
                it = Asked(**request)
                if client.ended or client.goaway:
                    return Reply(0)
                fields = [(name.lower(), value) for name, value in it.fields]
                if it.length:
                    fields.append((b"content-length", b"%d" % it.length))
                is_whole = it.body is None and not it.length
                stream = await client.ask(*fields, method=it.method, path=it.target, end=is_whole)
                if it.body is not None:
                    await client.send(stream, it.body, end=True)
                return await self._answer(client, stream)

            yield ask

    @staticmethod
    async def _answer(client: Http2Client, stream: int) -> Reply:
        answer = await client.answer(stream)
        return Reply(answer.status, dict(answer.headers).get(b"x-balancer-error", b"").decode(), answer.body)

    @staticmethod
    async def _end(client: Http2Client) -> Reply:
        async with asyncio.timeout(LIMIT):
            await client.until(lambda: False)
        return Reply(0)

    async def say_nothing(self) -> Reply:
        async with self.client() as client:
            await client.to_end()
            return Reply(0)

    async def send_half_a_head(self) -> Reply:
        async with self._spoken() as client:
            await client.connection.send(HALF_HEAD)
            return await self._end(client)

    async def send_half_a_body(self) -> Reply:
        async with self._spoken() as client:
            stream = await client.ask((b"content-length", b"9"), method=b"POST", end=False)
            await client.send(stream, b"abc")
            return await self._answer(client, stream)

    async def stay_idle(self) -> Reply:
        async with self._spoken() as client:
            assert (await client.get("/")).status == 200
            return await self._end(client)

    async def read_nothing(self) -> None:
        async with self._spoken(window=1 << 30) as client:
            client.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.ask(path=b"/large")
            await self.cut_off()


# All through which requests come.
ALL = {
    it.name: it
    for it in (
        Door("HTTP/1.1"),
        Door("Unix socket", unix=True),
        Door("PROXY", (b"", V1[:9]), first=V1),
        Door("PROXY on a Unix socket", (b"", V1[:9]), first=V1, unix=True),
        Door("TLS", (b"", HELLO), "http/1.1"),
        Door("HTTP/2", (b"", HELLO), "h2"),
        Door("PROXY and TLS", (b"", V1, V1 + HELLO), "http/1.1", V1),
        Door("ASGI", own=False),
    )
}
# With connections of the balancer's own.
OWN = {name: door for name, door in ALL.items() if door.own}
HTTP1 = {name: door for name, door in OWN.items() if not door.speaks_http2}


def folder(parent: Path, number: int) -> Path:
    """A new folder with a short path: that of a Unix socket has 107 bytes at most."""
    made = parent / str(number)
    made.mkdir()
    return made


def at_once(doors: Mapping[str, Door]) -> Callable[[Test], Test]:
    """Run a test that waits for time to pass at these doors at the same time, each with a folder of its own."""

    def decorate(test: Test) -> Test:
        async def at(door: Door, tmp_path: Path, **given: Any) -> None:
            try:
                await test(door=door, tmp_path=tmp_path, **given)
            except BaseException as error:
                error.add_note(f"at the door {door.name}")
                raise

        @wraps(test)
        async def at_all(tmp_path: Path, **given: Any) -> None:
            if any(door.speaks_http2 for door in doors.values()):
                pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
            async with asyncio.TaskGroup() as group:
                for number, door in enumerate(doors.values()):
                    group.create_task(at(door, folder(tmp_path, number), **given))

        signature = inspect.signature(test)
        others = [it for name, it in signature.parameters.items() if name != "door"]
        at_all.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return at_all

    return decorate
