"""How slow and how silent a client may be in mid-body, both ways: each rule at every front end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from balancer.asgi import app
from balancer.frontend import client_registry, progress
from balancer.types import UnixSocket
from tests.support.doors import ALL, HTTP1, OWN, Door, OpenDoor, at_once
from tests.support.http2 import Http2Client
from tests.support.http2_door import CANCEL
from tests.support.tls import trusting
from tests.support.wire import LIMIT, OK, Connection, Member, Running, eventually

# Seconds between two pieces of what trickles, and bytes that no kernel and no window hold.
TICK = 0.02
FLOOD = 100_000_000
FILM = 6_000_000
# Rates that no client of a test comes to, and that each of them does, in bytes a second.
HIGH, LOW = 1 << 30, 20_000
# Seconds that are over at once, and that a test is not to last.
SOON, LATER = 0.4, LIMIT


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts open with tenths of seconds."""
    monkeypatch.setattr(progress, "RATE_SECONDS", SOON)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(app, "WATCH_SECONDS", 0.05)


UPGRADE = b"Connection: upgrade\r\nUpgrade: tcp\r\n\r\n"
SWITCHES = b"HTTP/1.1 101 Switching Protocols\r\n" + UPGRADE


async def serve(connection: Connection) -> None:
    """Read bodies whole, and answer by the path: much, or a little now and then."""
    while True:
        head = await connection.head()
        if head.startswith(b"POST"):
            # However long it takes: a member that gave up would free its place by itself.
            await connection.reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            await connection.send(OK)
        elif head.startswith((b"GET /flood", b"GET /film")):
            size = FLOOD if b"/flood" in head else FILM
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // 100_000):
                connection.writer.write(bytes(100_000))
                await connection.writer.drain()
        elif head.startswith(b"GET /tunnel"):
            await connection.send(SWITCHES + bytes(FLOOD))
        elif head.startswith(b"GET /events"):
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(30):
                await connection.send(b"4\r\ntick\r\n")
                await asyncio.sleep(0.05)
            await connection.send(b"0\r\n\r\n")
        else:
            await connection.send(OK)


class Http1:
    """A client of HTTP/1.1 that sends a request in pieces, and takes its response in pieces."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def post(self, size: int) -> None:
        await self._connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)

    async def get(self, path: str) -> None:
        await self._connection.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())

    async def switch(self) -> None:
        await self._connection.send(b"GET /tunnel HTTP/1.1\r\nHost: a\r\n" + UPGRADE)

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            await self._connection.send(data)

    async def take(self, size: int) -> bool:
        """Take up to so many bytes of the response; False at its end."""
        async with asyncio.timeout(LIMIT):
            with suppress(ConnectionError):
                piece = await self._connection.reader.read(size)
                self._connection.received += piece
                return bool(piece) and not self.is_whole
        return False

    @property
    def is_whole(self) -> bool:
        received = self._connection.received
        return len(received) > FILM or received.endswith((b"0\r\n\r\n", b"\r\n\r\nok"))

    async def refusal(self) -> bytes:
        """The text of an answer, which begins with its status."""
        head = await self._connection.head()
        return await self._connection.exactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))

    async def is_cut_off(self) -> bool:
        while await self.take(1 << 20):
            pass
        return not self.is_whole

    async def is_answered(self) -> bool:
        while await self.take(1 << 20):
            pass
        return self.is_whole


class Http2:
    """The same over a stream of HTTP/2. What the client takes is what its windows let pass."""

    def __init__(self, client: Http2Client) -> None:
        self._client = client
        self._client.acknowledges = False
        self._stream = 0
        self._reading: asyncio.Task[None] | None = None

    async def post(self, size: int) -> None:
        self._stream = await self._client.ask((b"content-length", b"%d" % size), method=b"POST", end=False)
        self._read_on()

    async def get(self, path: str) -> None:
        self._stream = await self._client.ask(path=path.encode())
        self._read_on()

    def _read_on(self) -> None:
        self._reading = asyncio.create_task(self._client.until(lambda: False))

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    @property
    def _answer(self) -> Any:
        return self._client.answers[self._stream]

    def _is_over(self) -> bool:
        return self._answer.ended or self._answer.reset is not None

    async def send(self, data: bytes) -> None:
        while data and not self._is_over():
            room = min(self._client.h2.local_flow_control_window(self._stream), 16_384)
            piece, data = data[:room], data[room:]
            if piece:
                self._client.h2.send_data(self._stream, piece)
                await self._client.flush()
            else:
                await asyncio.sleep(0.001)

    async def take(self, size: int) -> bool:
        if not self._is_over():
            for stream in (None, self._stream):
                self._client.h2.increment_flow_control_window(size, stream)
            await self._client.flush()
            await asyncio.sleep(0)
        return not self._is_over()

    async def refusal(self) -> bytes:
        await eventually(self._is_over)
        return bytes(self._answer.body)

    async def is_cut_off(self) -> bool:
        await eventually(self._is_over)
        answer = self._answer
        # The connection goes on.
        other = await self._client.ask()
        await eventually(lambda: self._client.answers[other].ended)
        return bool(answer.reset == CANCEL)

    async def is_answered(self) -> bool:
        await self.take(2 * FILM)
        await eventually(self._is_over)
        return bool(self._answer.ended and self._answer.status == 200)


Client = Http1 | Http2


@dataclass
class Here:
    """A balancer behind one front end, and its clients."""

    running: Running
    client: Callable[[], Any]

    async def ended_as(self, error: str, unread: int = 0) -> None:
        """The one request has ended so, and so often clients were cut off for what they have not read."""
        await eventually(lambda: bool(self.running.records))
        assert self.running.records[0].error == error
        if self.running.clients:
            assert self.running.clients.limits.counts["unread"] == unread

    async def is_served(self) -> None:
        await self.running.idle()
        assert [it.error for it in self.running.records] == [""]


@asynccontextmanager
async def connected(here: OpenDoor) -> AsyncIterator[Connection]:
    """A connection of whose bytes kernel and program take little before the test does."""
    listens = here.running.listens
    is_unix = isinstance(listens, UnixSocket)
    sock = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, listens.path if isinstance(listens, UnixSocket) else listens)
    make = asyncio.open_unix_connection if is_unix else asyncio.open_connection
    reader, writer = await make(sock=sock, limit=16_384)
    try:
        writer.write(here.door.first)
        if here.door.protocol:
            await writer.start_tls(trusting(here.door.protocol), server_hostname="127.0.0.1")
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def balanced(door: Door, folder: Path, **limits: Any) -> AsyncIterator[Here]:
    """A balancer with this front end, before a member that plays ``serve``."""
    async with Member(serve) as member, door.open(member, folder, **limits) as opened:

        @asynccontextmanager
        async def client() -> AsyncIterator[Client]:
            async with connected(opened) as connection:
                if not door.speaks_http2:
                    yield Http1(connection)
                    return
                speaker = Http2Client(connection, window=1000)
                await speaker.begin()
                spoken = Http2(speaker)
                yield spoken
                await spoken.close()

        yield Here(opened.running, client)


async def trickle(step: Callable[[], Awaitable[Any]], times: int = 1_000_000) -> None:
    """Do it again and again."""
    for _ in range(times):
        await step()
        await asyncio.sleep(TICK)


@asynccontextmanager
async def beside(step: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
    """Do it again and again for as long as the context lasts."""
    task = asyncio.create_task(trickle(step))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


# Uploads.

SILENT = b"408 no byte of the body for %g s" % SOON
SLOW = b"408 the body came with less than %d bytes/s" % HIGH


@at_once(ALL)
@pytest.mark.parametrize("rate", [0, LOW])
async def test_upload_that_stops_is_refused(rate: int, door: Door, tmp_path: Path) -> None:
    async with balanced(door, tmp_path, min_body_rate=rate, stream_idle_timeout=SOON) as here, here.client() as client:
        await client.post(FLOOD)
        await client.send(bytes(50_000))
        assert (await client.refusal()).startswith(SILENT)
        await here.ended_as("request_timeout")


@at_once(ALL)
@pytest.mark.parametrize("burst", [0, 1000])
async def test_upload_that_trickles_in_is_refused(burst: int, door: Door, tmp_path: Path) -> None:
    async with balanced(door, tmp_path, min_body_rate=HIGH) as here, here.client() as client:
        await client.post(FLOOD)
        await client.send(bytes(burst))
        async with beside(lambda: client.send(b"a")):
            assert (await client.refusal()).startswith(SLOW)
        await here.ended_as("request_timeout")


@at_once(ALL)
@pytest.mark.parametrize("size", [2000, 20_000])
async def test_upload_that_is_slow_but_honest_is_served(size: int, door: Door, tmp_path: Path) -> None:
    """It comes at five or fifty times the least rate, in pieces; or with pauses that are longer than RATE_SECONDS."""
    limits = {"min_body_rate": LOW, "stream_idle_timeout": LATER}
    async with balanced(door, tmp_path, **limits) as here, here.client() as client:
        await client.post(50 * size)
        await trickle(lambda: client.send(bytes(size)), times=25)
        await asyncio.sleep(2 * SOON)
        await trickle(lambda: client.send(bytes(size)), times=25)
        assert await client.is_answered()
        await here.is_served()


# Downloads.


@at_once(OWN)
async def test_client_that_reads_nothing_is_cut_off(door: Door, tmp_path: Path) -> None:
    async with balanced(door, tmp_path, min_body_rate=0, stream_idle_timeout=SOON) as here, here.client() as client:
        await client.get("/flood")
        await here.ended_as("client_gone", unread=1)
        assert await client.is_cut_off()


@at_once(OWN)
async def test_client_that_reads_a_little_now_and_then_is_cut_off(door: Door, tmp_path: Path) -> None:
    async with balanced(door, tmp_path, min_body_rate=HIGH) as here, here.client() as client:
        await client.get("/flood")
        async with beside(lambda: client.take(100)):
            await here.ended_as("client_gone", unread=1)
        assert await client.is_cut_off()


@at_once(OWN)
async def test_client_that_is_slow_but_honest_gets_all(door: Door, tmp_path: Path) -> None:
    limits = {"min_body_rate": LOW, "stream_idle_timeout": LATER}
    async with balanced(door, tmp_path, **limits) as here, here.client() as client:
        await client.get("/film")
        for _ in range(25):
            assert await client.take(20_000)
            await asyncio.sleep(TICK)
        await asyncio.sleep(3 * SOON)  # As a player pauses.
        assert await client.is_answered()
        await here.is_served()


@at_once(OWN)
async def test_member_that_sends_slowly_is_not_its_clients_fault(door: Door, tmp_path: Path) -> None:
    limits = {"min_body_rate": HIGH, "stream_idle_timeout": LATER}
    async with balanced(door, tmp_path, **limits) as here, here.client() as client:
        await client.get("/events")
        assert await client.is_answered()
        await here.is_served()


@pytest.mark.parametrize("reads", [0, 100])
@at_once(HTTP1)
async def test_client_that_reads_too_little_of_a_tunnel_is_cut_off(door: Door, reads: int, tmp_path: Path) -> None:
    limits = {"min_body_rate": HIGH} if reads else {"min_body_rate": 0, "stream_idle_timeout": SOON}
    async with balanced(door, tmp_path, **limits) as here, here.client() as client:
        await client.switch()
        async with beside(lambda: client.take(reads)) if reads else nullcontext():
            await eventually(lambda: bool(here.running.records))
        assert here.running.clients
        assert here.running.clients.limits.counts["unread"] == 1


# What becomes of the places that the slow ones had.


@at_once(OWN)
@pytest.mark.parametrize("way", ["up", "down"])
async def test_slow_clients_do_not_keep_all_places(way: str, door: Door, tmp_path: Path) -> None:
    limits = {"min_body_rate": HIGH, "max_requests_per_member": 20, "queue_timeout": LATER}
    async with balanced(door, tmp_path, **limits) as here, AsyncExitStack() as stack:
        for _ in range(20):
            client = await stack.enter_async_context(here.client())
            await (client.post(FLOOD) if way == "up" else client.get("/flood"))
            step = (lambda it=client: it.send(b"a")) if way == "up" else (lambda it=client: it.take(100))
            await stack.enter_async_context(beside(step))
        await eventually(lambda: here.running.balancer.proxy.active + len(here.running.records) == 20)
        honest = await stack.enter_async_context(here.client())
        await honest.get("/")
        assert await honest.is_answered()


async def test_slow_uploads_beside_each_other_on_one_connection_are_refused(tmp_path: Path) -> None:
    limits = {"min_body_rate": HIGH, "max_requests_per_member": 20, "queue_timeout": LATER}
    async with balanced(OWN["HTTP/2"], tmp_path, **limits) as here, here.client() as client:
        speaker = client._client
        uploads = [await speaker.ask((b"content-length", b"%d" % FLOOD), method=b"POST", end=False) for _ in range(20)]
        assert (await speaker.get("/")).body == b"ok"
        for upload in uploads:
            answer = await speaker.answer(upload)
            assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (408, b"request_timeout")


async def test_client_that_opens_its_windows_and_reads_a_little_is_cut_off(tmp_path: Path) -> None:
    async with balanced(OWN["HTTP/2"], tmp_path, min_body_rate=HIGH) as here, AsyncExitStack() as stack:
        client = await stack.enter_async_context(here.client())
        speaker = client._client
        speaker.h2.update_settings({0x4: 2**31 - 1})
        speaker.h2.increment_flow_control_window(2**30)
        await speaker.ask(path=b"/flood")
        async with beside(lambda: speaker.connection.reader.read(100)):
            await here.ended_as("client_gone", unread=1)
