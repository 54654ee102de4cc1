"""The admin listener, in a process of its own or beside the data listener."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from balancer.admin.aggregate import Aggregator
from balancer.admin.app import Supervised, admin_app
from balancer.admin.auth import access
from balancer.admin.pool_view import Usage, View
from balancer.admin.status_feed import StatusFeed
from balancer.asgi.websocket import MAX_MESSAGE
from balancer.config.settings import Settings
from balancer.discovery.container_names import ContainerNames
from balancer.discovery.resolver import system_nameservers
from balancer.process.handover import WorkerContext
from balancer.process.signals import Signals
from balancer.telemetry.stats import Stats
from balancer.types import Receive, Scope, Send

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def serve_admin(
    settings: Settings, sock: socket.socket, channels: Sequence[socket.socket], context: WorkerContext
) -> None:
    """Serve the admin port with the sum of the reports of ``channels``, until a signal of the supervisor."""
    signals = Signals(context, lambda: None)
    aggregator = Aggregator(channels)
    admin = Admin(aggregator.current, settings, context, aggregator.unrouted, aggregator.processes, signals.stop.is_set)
    log.info("admin on %s", settings.admin_bind)
    serving = asyncio.create_task(admin.serve(sock))
    context.ready()
    await signals.either()
    if signals.stop.is_set():
        await signals.delay(settings.shutdown_delay)
    admin.stop()
    await serving
    aggregator.close()


class Listener(uvicorn.Server):
    """A uvicorn server among others in this process: it leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for ``stop``. uvicorn's own loop checks a flag ten times a second."""
        await self.on_tick(0)
        await self._stopped.wait()

    def stop(self) -> None:
        """Accept no more connections, and end when the open ones have ended."""
        self.should_exit = True
        self._stopped.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals of this process as they are."""
        yield


def make_listener(app: App, keepalive: float, drain_limit: int) -> Listener:
    """Return an ASGI server for one socket; ``keepalive`` and ``drain_limit`` (for its shutdown) are in seconds."""
    return Listener(
        uvicorn.Config(
            app,
            interface="asgi3",
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE,
            # Messages of members are not compressed either: messages cross as they are.
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


class Admin:
    """The admin listener and the data of its page.

    ``pools``: those that get requests now; ``unrouted``: figures of requests that no route led to a pool;
    ``processes``: those that serve. ``stopping``: whether the balancer is about to stop.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[View]],
        settings: Settings,
        context: WorkerContext | None = None,
        unrouted: Callable[[], Stats | None] = lambda: None,
        processes: Callable[[], Sequence[Usage]] = lambda: [Usage.own()],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        names = ContainerNames([settings.resolver] if settings.resolver else system_nameservers())
        self._feed = StatusFeed(pools, names, access=access(settings))
        supervised = Supervised(context.supervisor, context.generation) if context else None
        app = admin_app(pools, settings, self._feed, unrouted, processes, supervised, stopping)
        self._listener = make_listener(app, keepalive=5, drain_limit=1)

    async def serve(self, sock: socket.socket) -> None:
        """Serve until ``stop``."""
        feed = asyncio.create_task(self._feed.run())
        try:
            await self._listener.serve(sockets=[sock])
        finally:
            feed.cancel()
            await asyncio.gather(feed, return_exceptions=True)

    def stop(self) -> None:
        """End the streams of open pages, and the listener."""
        self._feed.close()
        self._listener.stop()
