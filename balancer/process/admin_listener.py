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
    settings: Settings, sock: socket.socket, channels: Sequence[socket.socket], post: WorkerContext
) -> None:
    signals = Signals(post, lambda: None)
    hub = Aggregator(channels)
    admin = Admin(hub.current, settings, post, hub.unrouted, hub.processes, signals.stop.is_set)
    log.info("admin on %s", settings.admin_bind)
    serving = asyncio.create_task(admin.serve(sock))
    post.ready()
    await signals.either()
    if signals.stop.is_set():
        await signals.delay(settings.shutdown_delay)
    admin.stop()
    await serving
    hub.close()


class Listener(uvicorn.Server):
    """A uvicorn server among others in this process: signals are not its business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for ``stop``. uvicorn's own looks ten times a second whether it has been told."""
        await self.on_tick(0)
        await self._stopped.wait()

    def stop(self) -> None:
        """Accept no connection any more, and end when those that are open have."""
        self.should_exit = True
        self._stopped.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_listener(app: App, keepalive: float, drain_limit: int) -> Listener:
    """An ASGI server for one socket; ``keepalive`` and ``drain_limit`` (for its shutdown) are in seconds."""
    return Listener(
        uvicorn.Config(
            app,
            interface="asgi3",
            http="httptools",
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


class Admin:
    """The admin listener and what is kept for its page.

    ``pools``: those that are given requests just now; ``unrouted``: of requests that no route led to a pool;
    ``processes``: those that serve. ``stopping``: whether the balancer has been told to stop.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[View]],
        settings: Settings,
        post: WorkerContext | None = None,
        unrouted: Callable[[], Stats | None] = lambda: None,
        processes: Callable[[], Sequence[Usage]] = lambda: [Usage.own()],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        names = ContainerNames([settings.resolver] if settings.resolver else system_nameservers())
        self._board = StatusFeed(pools, names, access=access(settings))
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
