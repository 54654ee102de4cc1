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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn
import uvloop

from balancer import __version__
from balancer.acceptor import Acceptor, TlsEdge, hang_up
from balancer.accesslog import AccessLog, as_json, as_text
from balancer.admin.app import admin_app
from balancer.admin.board import Board
from balancer.admin.guard import access
from balancer.admin.names import Names
from balancer.discovery import system_nameservers
from balancer.edge import Clients
from balancer.headers import RequestHeaders
from balancer.loadbalancer import LoadBalancer
from balancer.observer import Observer
from balancer.pools import Pools
from balancer.routes import Table
from balancer.settings import Settings
from balancer.stats import Stats
from balancer.tls import Certificate
from balancer.visit import Receive, Scope, Send
from balancer.websocket import MAX_MESSAGE

App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)

# How often the stop looks for TLS clients that have all that is theirs.
HANG_UP_SECONDS = 0.2


class Listener(uvicorn.Server):
    """A uvicorn server among others in this process: signals are not its business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    settings: Settings,
    data: socket.socket,
    admin: socket.socket | None,
    certificate: Certificate | None = None,
    routes: Table | None = None,
) -> None:
    """Run on two listening sockets until SIGTERM or SIGINT, then drain."""
    raise_file_limit()
    # What start-up made stays for good: the collector need not look at it again, and need not look as
    # often as by default, because what a request makes is freed by counting references.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, data, admin, certificate, routes))


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


async def _serve(
    settings: Settings,
    data_socket: socket.socket,
    admin_socket: socket.socket | None,
    certificate: Certificate | None,
    routes: Table | None,
) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    form = partial(as_text, coloured=sys.stdout.isatty()) if settings.access_log == "text" else as_json
    access_log = AccessLog(sys.stdout, form)
    observers: list[Observer] = [access_log] if settings.access_log else []
    tracing = None
    if settings.otel_endpoint:
        from balancer.tracing import Tracing

        tracing = Tracing.to(settings.otel_endpoint)
        observers.append(tracing)

    def pool(settings: Settings) -> LoadBalancer:
        return LoadBalancer(
            settings,
            observers=observers,
            stats=Stats() if admin_socket else None,
            trace=tracing.begin if tracing else None,
        )

    balancer: LoadBalancer | Pools
    if routes:
        balancer = Pools(settings, routes, pool, observers=observers, stats=Stats() if admin_socket else None)
    else:
        balancer = pool(settings)
    loop.add_signal_handler(signal.SIGHUP, _read_again, balancer, certificate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    async with balancer, asyncio.TaskGroup() as listeners:
        # Requests are cut at SHUTDOWN_SECONDS; a second later, so are clients that do not read what was sent.
        limit = math.ceil(settings.shutdown_seconds) + 1
        clients = Clients(balancer.proxy, settings)
        data = make_listener(balancer, settings.keepalive_timeout, limit, clients)
        acceptor = accept(settings, data_socket, data, certificate)
        data_done = listeners.create_task(data.serve(sockets=[] if acceptor else [data_socket]))
        aliases = sorted({it.alias for it in routes.pools.values()}) if routes else [settings.alias]
        log.info("balancer %s: %s on %s", __version__, ", ".join(aliases), settings.bind)
        admin = Admin(balancer.current, settings, stop.is_set) if admin_socket else None
        if admin and admin_socket:
            listeners.create_task(admin.serve(admin_socket))
            log.info("admin on %s", settings.admin)
        await stop.wait()
        if settings.shutdown_delay:
            await _leave(clients, settings.shutdown_delay, at_once)
        log.info("stopping: %d requests in progress", balancer.proxy.active)
        loop.call_later(settings.shutdown_seconds, balancer.proxy.cut)
        await balancer.proxy.end_endless()
        if acceptor:
            await acceptor.close()
        data.should_exit = True
        while not data_done.done():
            await asyncio.wait([data_done], timeout=HANG_UP_SECONDS)
            if certificate:
                hang_up(data.server_state.connections)
            # Those who came before the listener closed: some connect again as soon as they have been told to leave.
            await balancer.proxy.end_endless()
        await data_done
        if admin:
            admin.stop()
    access_log.flush()
    if tracing:
        await asyncio.to_thread(tracing.close)
    log.info("stopped")


async def _leave(clients: Clients | None, seconds: float, at_once: asyncio.Event) -> None:
    """Go on serving for so long, or until ``at_once`` is set, so that whoever sends clients here can learn to stop.

    That is what a balancer in front, or the engine's routing mesh, takes time for; and clients with open connections
    are told with their next response.
    """
    log.info("leaving: clients are sent elsewhere for %g s", seconds)
    if clients:
        clients.leave()
    try:
        async with asyncio.timeout(seconds):
            await at_once.wait()
    except TimeoutError:
        pass


class Admin:
    """The admin listener and what is kept for its page.

    ``pools``: those that are given requests just now. ``leaving``: whether the balancer has been told to stop.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[LoadBalancer]],
        settings: Settings,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        names = Names([settings.resolver] if settings.resolver else system_nameservers())
        self._board = Board(pools, names, access=access(settings))
        self._listener = make_listener(admin_app(pools, settings, self._board, leaving), keepalive=5, drain_limit=1)

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
        self._listener.should_exit = True


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
        from balancer.http2 import Http2Edge

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
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
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
