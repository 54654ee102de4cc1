"""Runs the data listener and the admin listener in one process, from start to drained."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn
import uvloop

from balancer import __version__
from balancer.admin.aggregate import Hub
from balancer.admin.app import Supervised, admin_app
from balancer.admin.auth import access
from balancer.admin.ipc import pair
from balancer.admin.pool_view import Usage, View
from balancer.admin.process_report import Reporter
from balancer.admin.status_feed import Board
from balancer.asgi.websocket import MAX_MESSAGE
from balancer.config.settings import Settings, SettingsError
from balancer.discovery.container_names import Names
from balancer.discovery.resolver import system_nameservers
from balancer.drains import Drains
from balancer.exits import FAILED, UNUSABLE
from balancer.frontend.acceptor import Acceptor, TlsEdge, hang_up
from balancer.frontend.clients import Clients
from balancer.frontend.tls import Certificate
from balancer.http.headers import RequestHeaders
from balancer.loadbalancer import LoadBalancer
from balancer.routing.pools import Pools
from balancer.routing.table import Table
from balancer.supervisor import LEAVE, Post, Slot
from balancer.telemetry.access_log import AccessLog, as_json, as_text
from balancer.telemetry.observer import Observer
from balancer.telemetry.stats import Stats
from balancer.types import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)

# How often the stop looks for TLS clients that have all that is theirs.
HANG_UP_SECONDS = 0.2
# How long a process that others have replaced waits for one more request on connections that are idle, in seconds: to
# close one while a request is on its way to it would lose that.
LEAVE_SECONDS = 5.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
# How long a process that is to take another's place waits for DNS and the first word of each member, in seconds.
READY_LIMIT = 20.0


class Listener(uvicorn.Server):
    """A uvicorn server among others in this process: signals are not its business. ``accepting``: it has begun to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()
        self._stopped = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def main_loop(self) -> None:
        """Does not look ten times a second whether it is to stop, as uvicorn's does, but is told."""
        await self.on_tick(0)
        await self._stopped.wait()

    def stop(self) -> None:
        """Accept nobody any more, and end when the connections have."""
        self.should_exit = True
        self._stopped.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Work:
    """What one process is to do. ``data``: the sockets that it accepts clients on; ``admin``: the admin listener's.

    ``settings`` are those of all processes together, of which this is number ``number`` (from 0). ``channel``: where
    the process that shows what all of them do is told of this one's part.
    """

    settings: Settings
    data: socket.socket
    admin: socket.socket | None = None
    certificate: Certificate | None = None
    routes: Table | None = None
    number: int = 0
    processes: int = 1
    channel: socket.socket | None = None


def slots(
    settings: Settings,
    data: Sequence[socket.socket],
    admin: socket.socket | None,
    certificate: Certificate | None,
    routes: Table | None,
    processes: int,
) -> list[Slot]:
    """What is to run: so many processes that serve and, where they are several, one that shows what they do."""
    own_admin = [admin] if admin else []
    if processes == 1:
        return [Slot("0", partial(serve, Work(settings, data[0], admin, certificate, routes)), [*data, *own_admin])]
    channels = [pair() for _ in range(processes)] if admin else []
    found = []
    for number in range(processes):
        sock = data[number % len(data)]
        channel = channels[number][0] if channels else None
        work = Work(settings, sock, None, certificate, routes, number, processes, channel)
        found.append(Slot(str(number), partial(serve, work), [sock]))
    if admin:
        ends = [end for _, end in channels]
        found.append(Slot("admin", lambda post: _run(_serve_admin(settings, admin, ends, post)), own_admin))
    return found


def prepare() -> None:
    """What is done once, before there are processes."""
    raise_file_limit()
    # What start-up made stays for good: the collector need not look at it again, and need not look as
    # often as by default, because what a request makes is freed by counting references.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def serve(work: Work, post: Post) -> None:
    """Run on the listening sockets until SIGTERM, or until others have taken their place; then drain."""
    if work.processes > 1:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(LOG_FORMAT.replace("%(message)", f"[{work.number}] %(message)")))
    _run(_serve(work, post))


def _run(life: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(life)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(UNUSABLE) from None


def raise_file_limit() -> None:
    """Allow this process as many descriptors as it may have.

    A request under way takes two, and a soft limit of 1024 is common: it is that low for the sake of programs
    that use select(), which this is not.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:  # where "unlimited" is more than the system gives
        log.warning("the limit on open files stays as it is: %s", error)


class Signals:
    """What the supervisor wants: ``stop`` is set when all is to end, ``leave`` when others have taken the place.

    ``at_once`` is set when all is to end without a delay.
    """

    def __init__(self, post: Post, read_again: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self.leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminated)
        loop.add_signal_handler(LEAVE, self.leave.set)
        loop.add_signal_handler(signal.SIGHUP, read_again)
        loop.add_reader(post.lifeline, self._orphaned, post.lifeline)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, LEAVE, signal.SIGHUP})

    def _terminated(self) -> None:
        (self.at_once if self.stop.is_set() else self.stop).set()

    def _orphaned(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        log.error("the supervisor is gone")
        self.at_once.set()
        self.stop.set()

    async def either(self) -> None:
        """Wait for the first of both."""
        waits = [asyncio.ensure_future(it.wait()) for it in (self.stop, self.leave)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def delay(self, seconds: float) -> None:
        """Wait for so long, or until it is to be at once."""
        try:
            async with asyncio.timeout(seconds):
                await self.at_once.wait()
        except TimeoutError:
            pass


async def _serve(work: Work, post: Post) -> None:
    settings = work.settings.part(work.number, work.processes)
    form = partial(as_text, coloured=sys.stdout.isatty()) if settings.access_log == "text" else as_json
    access_log = AccessLog(sys.stdout, form, shared=work.processes > 1)
    observers: list[Observer] = [access_log] if settings.access_log else []
    tracing = None
    if settings.otel_endpoint:
        from balancer.telemetry.tracing import Tracing

        tracing = Tracing.to(settings.otel_endpoint)
        observers.append(tracing)
    watched = work.admin or work.channel

    def pool(settings: Settings) -> LoadBalancer:
        drains = Drains(post.drains, settings, lambda member: made.drain(member))
        made = LoadBalancer(
            settings.part(work.number, work.processes),
            observers=[*observers, drains],
            stats=Stats() if watched else None,
            trace=tracing.begin if tracing else None,
        )
        return made

    balancer: LoadBalancer | Pools
    if work.routes:
        balancer = Pools(work.settings, work.routes, pool, observers=observers, stats=Stats() if watched else None)
    else:
        balancer = pool(work.settings)
    signals = Signals(post, partial(_read_again, balancer, work.certificate))
    async with balancer, asyncio.TaskGroup() as listeners:
        if post.succeeds and not all(await asyncio.gather(*(it.ready(READY_LIMIT) for it in balancer.current()))):
            log.error("DNS or members have not answered within %g s", READY_LIMIT)
            raise SystemExit(FAILED)
        # Requests are cut at SHUTDOWN_SECONDS; a second later, so are clients that do not read what was sent.
        limit = math.ceil(settings.shutdown_seconds) + 1
        clients = Clients(balancer.proxy, settings)
        data = make_listener(balancer, settings.keepalive_timeout, limit, clients)
        acceptor = accept(settings, work.data, data, work.certificate)
        data_done = listeners.create_task(data.serve(sockets=[] if acceptor else [work.data]))
        aliases = sorted({it.alias for it in work.routes.pools.values()}) if work.routes else [settings.alias]
        log.info("balancer %s: %s on %s", __version__, ", ".join(aliases), settings.bind)
        admin = None
        if work.admin:
            unrouted = (lambda: balancer.stats) if isinstance(balancer, Pools) else (lambda: None)
            admin = Admin(balancer.current, settings, post, unrouted, stopping=signals.stop.is_set)
            listeners.create_task(admin.serve(work.admin))
            log.info("admin on %s", settings.admin)
        reports = None
        if work.channel:
            reports = listeners.create_task(Reporter(work.number, work.channel, balancer).run())
        await data.accepting.wait()
        post.ready()
        await signals.either()
        if signals.stop.is_set():
            if settings.shutdown_delay:
                # Whoever sends clients here learns to stop, and clients are told with their next response.
                log.info("leaving: clients are sent elsewhere for %g s", settings.shutdown_delay)
                clients.stop(settings.shutdown_delay)
                await signals.delay(settings.shutdown_delay)
        else:
            log.info("replaced: %d requests in progress", balancer.proxy.active)
            if admin:
                admin.stop()  # From now on the new one tells.
            data.config.timeout_graceful_shutdown = math.ceil(settings.reload_seconds) + limit
            clients.stop(min(LEAVE_SECONDS, settings.reload_seconds))
            if acceptor:
                await acceptor.close()
            data.stop()
            stop = listeners.create_task(signals.stop.wait())
            await asyncio.wait([data_done, stop], timeout=settings.reload_seconds, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
        log.info("stopping: %d requests in progress", balancer.proxy.active)
        asyncio.get_running_loop().call_later(settings.shutdown_seconds, balancer.proxy.cut)
        clients.stop(0.0)
        await balancer.proxy.end_endless()
        if acceptor:
            await acceptor.close()
        data.stop()
        while not data_done.done():
            await asyncio.wait([data_done], timeout=HANG_UP_SECONDS)
            if work.certificate:
                hang_up(data.server_state.connections)
            # Those who came before the listener closed: some connect again as soon as they have been told to leave.
            await balancer.proxy.end_endless()
        await data_done
        if admin:
            admin.stop()
        if reports:
            reports.cancel()
    access_log.flush()
    if tracing:
        await asyncio.to_thread(tracing.close)
    log.info("stopped")


async def _serve_admin(settings: Settings, sock: socket.socket, channels: Sequence[socket.socket], post: Post) -> None:
    signals = Signals(post, lambda: None)
    hub = Hub(channels)
    admin = Admin(hub.current, settings, post, hub.unrouted, hub.processes, signals.stop.is_set)
    log.info("admin on %s", settings.admin)
    serving = asyncio.create_task(admin.serve(sock))
    post.ready()
    await signals.either()
    if signals.stop.is_set():
        await signals.delay(settings.shutdown_delay)
    admin.stop()
    await serving
    hub.close()


class Admin:
    """The admin listener and what is kept for its page.

    ``pools``: those that are given requests just now; ``unrouted``: of requests that no route led to a pool;
    ``processes``: those that serve. ``stopping``: whether the balancer has been told to stop.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[View]],
        settings: Settings,
        post: Post | None = None,
        unrouted: Callable[[], Stats | None] = lambda: None,
        processes: Callable[[], Sequence[Usage]] = lambda: [Usage.own()],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        names = Names([settings.resolver] if settings.resolver else system_nameservers())
        self._board = Board(pools, names, access=access(settings))
        supervised = Supervised(post.supervisor, post.generation) if post else None
        app = admin_app(pools, settings, self._board, unrouted, processes, supervised, stopping)
        self._listener = make_listener(app, keepalive=5, drain_limit=1)

    async def serve(self, sock: socket.socket) -> None:
        """Until it is stopped."""
        board = asyncio.create_task(self._board.run())
        try:
            await self._listener.serve(sockets=[sock])
        finally:
            board.cancel()
            await asyncio.gather(board, return_exceptions=True)

    def stop(self) -> None:
        self._board.close()
        self._listener.stop()


def _read_again(balancer: LoadBalancer | Pools, certificate: Certificate | None) -> None:
    """SIGHUP: take over what has changed in files."""
    if certificate:
        certificate.reload()
    if isinstance(balancer, Pools):
        balancer.reload()
    elif not certificate:
        log.info("SIGHUP: there is neither a certificate nor a file of routes to read again")


def make_listener(app: App, keepalive: float, drain_limit: int, clients: Clients | None = None) -> Listener:
    """A server for one socket; ``keepalive`` and ``drain_limit`` (for its shutdown) are in seconds.

    ``clients``: our own front end in place of uvicorn's. What is not plain HTTP goes to ``app`` all the same.
    """
    return Listener(
        uvicorn.Config(
            app,
            interface="asgi3",
            # uvicorn calls it as it would call a class.
            http=cast("type[asyncio.Protocol]", clients) if clients else "httptools",
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE,
            # What members send is not compressed either: messages cross as they are.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(keepalive),
            timeout_graceful_shutdown=drain_limit,
        )
    )


def accept(
    settings: Settings, sock: socket.socket, listener: Listener, certificate: Certificate | None
) -> Acceptor | None:
    """What accepts in place of uvicorn, if a connection of ``listener`` begins with anything before HTTP."""
    if not certificate and not settings.proxy_protocol:
        return None
    config, state = listener.config, listener.server_state
    config.load()
    clients = cast(Clients, config.http)
    over_tls: Callable[..., asyncio.Protocol] = TlsEdge
    if settings.http2:
        from balancer.frontend.http2 import Http2Edge

        over_http2: Callable[..., asyncio.Protocol] = Http2Edge

    def make(http2: bool) -> asyncio.Protocol:
        if http2:
            return over_http2(clients, config, state, {})
        return over_tls(clients, state) if certificate else clients(config, state, {})

    trusts = RequestHeaders(settings.trusted_proxies).trusts

    def announced(peer: str) -> bool:
        # Whoever reaches a Unix socket has been let by the file's mode.
        return settings.proxy_protocol and (not peer or trusts(peer))

    return Acceptor(sock, make, settings, certificate, announced)


def configure_logging() -> None:
    """Log lines go to standard error: standard output belongs to the access log."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(logging.WARNING)
    uvicorn_log.addFilter(_expected)


def _expected(record: logging.LogRecord) -> bool:
    """False for what uvicorn reports as somebody's mistake and the balancer does on purpose or cannot help."""
    return not record.getMessage().startswith(
        (
            "ASGI callable returned without completing response",  # how a broken response is broken for the client
            "Unsupported upgrade request",
            "No supported WebSocket library",
            "Invalid HTTP request received",
            "Invalid HTTP/2 frame received",
        )
    )
