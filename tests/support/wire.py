"""Real sockets on loopback: members that record every byte, a balancer between, a client that sends raw bytes."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Self

from balancer.config.settings import Settings
from balancer.discovery.loop import Resolve
from balancer.dispatch.context import RequestRecord
from balancer.dispatch.interfaces import Trace
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.tls import Certificate
from balancer.hooks import Hooks
from balancer.loadbalancer import LoadBalancer
from balancer.members import probe_scheduler
from balancer.members.probe import Probe
from balancer.policies import PolicyLike
from balancer.process.data_listener import DataListener
from balancer.process.sockets import listen
from balancer.routing.pools import Pools
from balancer.telemetry.observer import Observer
from balancer.telemetry.stats import Stats
from balancer.types import Address, UnixSocket
from balancer.upstream.base import Timeouts, Upstream
from balancer.upstream.native import NativeUpstream
from tests.support.messages import GET
from tests.support.mounting import make_listener
from tests.support.scripted import ScriptedResolver

# What requests go through unless a test brings its own.
upstream_class: Callable[[Timeouts], Upstream] = NativeUpstream

# Whether clients are served by our own front end or through ASGI.
edge = True

# Settings that differ from the product's defaults for the test under way.
defaults: dict[str, Any] = {}

# Balancers that wait for their first members, and the step of probes for all others.
starting, tick = 0, probe_scheduler.TICK

# Longer than anything here takes; only a failing test waits for it.
LIMIT = 10.0

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# One connection to a member: what it reads and writes is up to the script.
Script = Callable[["Connection"], Awaitable[None]]


def in_lower_case(head: bytes) -> bytes:
    """The head with the names of its headers in lower case."""
    return re.sub(rb"\n[^:\r\n]+:", lambda found: found[0].lower(), head)


class Connection:
    """A stream of bytes with a recorder: ``received`` is all that was read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    async def until(self, mark: bytes) -> bytes:
        """Read up to and including ``mark``."""
        async with asyncio.timeout(LIMIT):
            piece = await self.reader.readuntil(mark)
        self.received += piece
        return piece

    async def head(self) -> bytes:
        """The next head, with the names of its headers in lower case: how they are written means nothing."""
        async with asyncio.timeout(LIMIT):
            head = in_lower_case(await self.reader.readuntil(b"\r\n\r\n"))
        self.received += head
        return head

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(LIMIT):
            piece = await self.reader.readexactly(size)
        self.received += piece
        return piece

    async def to_end(self) -> bytes:
        """Read until the peer closes or resets."""
        async with asyncio.timeout(LIMIT):
            try:
                while piece := await self.reader.read(65536):
                    self.received += piece
            except ConnectionResetError:
                pass
        return self.received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(LIMIT):
            await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close so that the peer sees a reset rather than an end."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()


@asynccontextmanager
async def connected(
    to: Address | UnixSocket, tls: ssl.SSLContext | None = None, first: bytes = b"", host: str = ""
) -> AsyncIterator[Connection]:
    """A raw connection. ``first``: bytes that are sent before the TLS handshake; ``host``: an own address."""
    if isinstance(to, UnixSocket):
        reader, writer = await asyncio.open_unix_connection(to.path)
    else:
        reader, writer = await asyncio.open_connection(*to, local_addr=(host, 0) if host else None)
    try:
        writer.write(first)
        if tls:
            await writer.start_tls(tls, server_hostname="127.0.0.1")
        yield Connection(reader, writer)
    finally:
        # What the peer does not take would keep the transport open.
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()
        else:
            writer.close()


async def keep_answering(connection: Connection) -> None:
    """The usual member: 200 and "ok" for every request without a body, on a connection that stays open."""
    while True:
        await connection.head()
        await connection.send(OK)


class Member:
    """A server that plays a script on each connection that brings a byte; probes bring none."""

    def __init__(self, script: Script = keep_answering, host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script
        self.address = Address(host, port)
        self.connections: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, *self.address)
        self.address = Address(self.address.host, self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def start_again(self) -> None:
        await self.__aenter__()

    @property
    def received(self) -> list[bytes]:
        """What came in on each connection."""
        return [it.received for it in self.connections if it.received]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        connection = Connection(reader, writer)
        self.connections.append(connection)
        try:
            await self.script(connection)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


class Running:
    """A balancer that serves on ``address``. ``records`` has a record for every finished request.

    ``clients``: of its own front end, None where a server beneath ASGI has them.
    """

    def __init__(
        self,
        balancer: LoadBalancer,
        address: Address | UnixSocket,
        records: list[RequestRecord],
        certificate: Certificate | None,
        clients: ClientRegistry | None,
    ) -> None:
        self.balancer = balancer
        self.listens = address
        self.records = records
        self.certificate = certificate
        self.clients = clients

    @property
    def address(self) -> Address:
        assert isinstance(self.listens, Address)
        return self.listens

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.address}"

    def client(
        self, tls: ssl.SSLContext | None = None, first: bytes = b"", host: str = ""
    ) -> AbstractAsyncContextManager[Connection]:
        """A raw connection to the balancer, as ``connected`` makes them."""
        return connected(self.listens, tls, first, host)

    async def exchange(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own; everything that comes back until the balancer closes."""
        async with self.client() as client:
            await client.send(request)
            return await client.to_end()

    async def available(self, count: int) -> None:
        """Wait until so many members are available."""
        await eventually(lambda: len(self.balancer.membership.available) == count)

    async def idle(self) -> None:
        """Wait until no request is in progress."""
        await eventually(lambda: self.balancer.proxy.active == 0)


class _Recorder(Observer):
    def __init__(self, records: list[RequestRecord]) -> None:
        self._records = records

    def done(self, record: RequestRecord) -> None:
        self._records.append(record)


@contextmanager
def quick_probes() -> Iterator[None]:
    """Begin first probes at once, and not in one step with others that may come; several balancers may start so."""
    global starting
    starting += 1
    probe_scheduler.TICK = 0.001
    try:
        yield
    finally:
        starting -= 1
        if not starting:
            probe_scheduler.TICK = tick


@asynccontextmanager
async def balance(
    *members: Member | Address,
    resolve: Resolve | None = None,
    upstream: Upstream | None = None,
    probe: Probe | None = None,
    own_policy: PolicyLike | None = None,
    hooks: Sequence[Hooks] = (),
    stats: Stats | None = None,
    wait: bool = True,
    unix: UnixSocket | None = None,
    own_edge: bool | None = None,
    observers: Sequence[Observer] = (),
    trace: Trace | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """A balancer over these members on a loopback port, or on ``unix``; ``settings`` as fields of Settings.

    ``own_policy`` takes the place of the one in the settings, and ``own_edge`` of ``edge``.
    """
    addresses = [it.address if isinstance(it, Member) else it for it in members]
    records: list[RequestRecord] = []
    effective = Settings(**{**defaults, **settings})
    balancer = LoadBalancer(
        effective,
        resolve=resolve or ScriptedResolver(*addresses),
        upstream=upstream or upstream_class(Timeouts.of(effective)),
        probe=probe,
        observers=[_Recorder(records), *observers],
        stats=stats or Stats(),
        trace=trace,
        policy=own_policy,
        hooks=hooks,
    )
    sock = listen("BIND", unix or Address("127.0.0.1", 0))
    address = unix or Address("127.0.0.1", sock.getsockname()[1])
    async with balancer:
        clients = ClientRegistry(balancer.proxy, effective) if (edge if own_edge is None else own_edge) else None
        certificate = Certificate.of(effective)
        async with listening(balancer, sock, clients, certificate):
            running = Running(balancer, address, records, certificate, clients)
            if wait:
                with quick_probes():
                    await running.available(len(addresses))
            yield running


@asynccontextmanager
async def listening(
    app: LoadBalancer | Pools,
    sock: socket.socket,
    clients: ClientRegistry | None,
    certificate: Certificate | None = None,
) -> AsyncIterator[None]:
    """Serve ``app`` on a socket: by the own front end where there are ``clients``, else by uvicorn."""
    if clients:
        data = DataListener(clients.settings, sock, clients, app, certificate)
        await data.start()
        try:
            yield
        finally:
            await data.close()
            await data.wait_closed(1.0)
    else:
        server = make_listener(app, keepalive=75, drain_limit=1)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield
        finally:
            server.stop()
            await serving


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something has become true; TimeoutError if it does not."""
    pause = 0.001
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.01)


async def answer_all(connection: Connection) -> None:
    """A member that reads whole requests, bodies too, and answers each."""
    while True:
        head = await connection.head()
        if b"expect: 100-continue" in head:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            await connection.until(b"\r\n\r\n")
        elif b"content-length: " in head:
            await connection.exactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await connection.send(OK)


@asynccontextmanager
async def steady_requests(running: Running) -> AsyncIterator[Counter[bytes]]:
    """Four clients that send one request after the other for as long as the context lasts; counts the status lines."""
    answers: Counter[bytes] = Counter()
    stop = False

    async def client() -> None:
        async with running.client() as connection:
            while not stop:
                await connection.send(GET)
                head = await connection.head()
                await connection.exactly(2)
                answers[head[: head.index(b"\r\n")]] += 1
                await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as clients:
        for _ in range(4):
            clients.create_task(client())
        yield answers
        stop = True
