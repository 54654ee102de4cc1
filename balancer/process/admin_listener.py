"""The admin listener, in a process of its own or beside the data listener."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from balancer.admin.aggregate import Aggregator
from balancer.admin.app import Supervised, admin_app
from balancer.admin.auth import access, has_token
from balancer.admin.connections import AdminConnections, admin_limits
from balancer.admin.pool_view import Usage, View
from balancer.admin.status_feed import StatusFeed
from balancer.asgi.application import ApplicationRequests
from balancer.config.settings import Settings, SettingsError
from balancer.config.token_file import read_token
from balancer.discovery.container_names import ContainerNames
from balancer.discovery.resolver import system_nameservers
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.process.data_listener import DataListener
from balancer.process.handover import WorkerContext
from balancer.process.signals import Signals
from balancer.telemetry.client_limits import ClientLimits
from balancer.telemetry.stats import Stats

log = logging.getLogger(__name__)

# Seconds in which answers may go on once the listener has stopped.
DRAIN_SECONDS = 1.0


async def serve_admin(
    settings: Settings, sock: socket.socket, channels: Sequence[socket.socket], context: WorkerContext
) -> None:
    """Serve the admin port with the sum of the reports of ``channels``, until a signal of the supervisor."""
    signals = Signals(context, lambda: admin.read_token_again())
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
        self._settings = settings
        self.read_token_again()
        self._feed = StatusFeed(pools, names, access=access(self._settings))
        supervised = Supervised(context.supervisor, context.generation) if context else None
        self._limits = ClientLimits()
        self._app = admin_app(
            pools,
            lambda: self._settings,
            self._feed,
            unrouted,
            processes,
            supervised,
            stopping,
            self._limits,
        )
        requests = ApplicationRequests(self._app, self._on_refused, self._is_preferred)
        self._clients = AdminConnections(requests, admin_limits(settings), self._limits)
        self._stopped = asyncio.Event()

    async def serve(self, sock: socket.socket) -> None:
        """Serve until ``stop``."""
        listener = DataListener(self._clients.settings, sock, self._clients, self._app)
        feed = asyncio.create_task(self._feed.run())
        try:
            await listener.start()
            await self._stopped.wait()
            self._clients.stop(0.0)
            await listener.close()
            await listener.wait_closed(DRAIN_SECONDS)
        finally:
            feed.cancel()
            await asyncio.gather(feed, return_exceptions=True)

    def stop(self) -> None:
        """End the streams of open pages, and the listener."""
        self._feed.close()
        self._stopped.set()

    def read_token_again(self) -> None:
        """Take the token that is in its file now; where that cannot be used, the one before stays."""
        if not (path := self._settings.admin_token_file):
            return
        try:
            before, token = self._settings.admin_token, read_token(path)
        except SettingsError as error:
            log.error("%s; the token before stays", error)
            return
        self._settings = replace(self._settings, admin_token=token)
        if token != before:
            log.info("the token of the admin port is read again from %s", path)

    def _is_preferred(self, request: Request) -> bool:
        """Whether a request has the token."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        return has_token(self._settings, headers)

    def _on_refused(self, request: Request, refusal: Refusal) -> None:
        """Count and log a request that is refused: the admin port has no access log."""
        if refusal.token != "too_many_connections":  # That is counted as a connection.
            words = f"sends the admin port what is refused: {refusal.status} {refusal.reason}"
            self._limits.reached("admin_request", request.client, words)
