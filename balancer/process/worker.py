"""A process that serves, from start to drained."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop

from balancer import malloc
from balancer.admin.ipc import pair
from balancer.admin.pool_view import Usage
from balancer.admin.process_report import Reporter
from balancer.config.parts import part
from balancer.config.settings import Settings, SettingsError
from balancer.errors import FAILED, UNUSABLE
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.tls import Certificate
from balancer.loadbalancer import LoadBalancer
from balancer.loop_time import Limit, loop_time
from balancer.process.admin_listener import Admin, serve_admin
from balancer.process.data_listener import DataListener, wait_empty
from balancer.process.drains import Drains
from balancer.process.handover import WorkerContext, WorkerSpec
from balancer.process.log_setup import LOG_FORMAT
from balancer.process.signals import Signals
from balancer.routing.pools import Pools
from balancer.routing.table import Table
from balancer.telemetry import log_output
from balancer.telemetry.access_log import AccessLog, as_json, as_text
from balancer.telemetry.observer import Observer
from balancer.telemetry.stats import Stats
from balancer.version import __version__
from balancer.words import counted

if TYPE_CHECKING:
    from balancer.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# Seconds between two rounds of ending streams: some clients connect again as soon as theirs has ended.
END_STREAMS_SECONDS = 0.2
# Seconds that a replaced process waits for one more request on idle connections: closing one while a request is on
# its way would lose that request.
LEAVE_SECONDS = 5.0
# Seconds that a successor waits for DNS and the first answer of each member.
READY_LIMIT = 20.0


@dataclass(frozen=True)
class WorkerConfig:
    """The task of one process. ``data``: the socket that it accepts clients on; ``admin``: the admin listener's.

    ``settings`` are those of all processes together, of which this is number ``number`` (from 0). ``channel``: for
    reports to the admin process.
    """

    settings: Settings
    data: socket.socket
    admin: socket.socket | None = None
    certificate: Certificate | None = None
    routes: Table | None = None
    number: int = 0
    processes: int = 1
    channel: socket.socket | None = None


def worker_specs(
    settings: Settings,
    data: Sequence[socket.socket],
    admin: socket.socket | None,
    certificate: Certificate | None,
    routes: Table | None,
    processes: int,
) -> list[WorkerSpec]:
    """Return the processes to run: ``processes`` that serve and, if these are several, one for the admin listener."""
    own_admin = [admin] if admin else []
    if processes == 1:
        return [
            WorkerSpec(
                "0", partial(serve, WorkerConfig(settings, data[0], admin, certificate, routes)), [*data, *own_admin]
            )
        ]
    channels = [pair() for _ in range(processes)] if admin else []
    found = []
    for number in range(processes):
        sock = data[number % len(data)]
        channel = channels[number][0] if channels else None
        config = WorkerConfig(settings, sock, None, certificate, routes, number, processes, channel)
        found.append(WorkerSpec(str(number), partial(serve, config), [sock]))
    if admin:
        ends = [end for _, end in channels]
        found.append(WorkerSpec("admin", lambda context: _run(serve_admin(settings, admin, ends, context)), own_admin))
    return found


def prepare() -> None:
    """Prepare this process once, before others are forked from it."""
    raise_file_limit()
    malloc.keep()
    # Objects of the start stay for good: the collector need not check them again. It need not run as often as by
    # default, because objects of a request are freed by counting references.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def serve(config: WorkerConfig, context: WorkerContext) -> None:
    """Serve on the listening sockets until SIGTERM, or until successors serve; then drain."""
    if config.processes > 1:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(LOG_FORMAT.replace("%(message)", f"[{config.number}] %(message)")))
    _run(_serve(config, context))


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_with_log_output(main))
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(UNUSABLE) from None


async def _with_log_output(main: Coroutine[Any, Any, None]) -> None:
    ticking = asyncio.create_task(log_output.keep_ticking())
    try:
        await main
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


def raise_file_limit() -> None:
    """Allow this process as many descriptors as it may have.

    A request under way takes two, and a soft limit of 1024 is common. It is that low for programs that use select(),
    and the balancer does not.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:  # where "unlimited" is more than the system gives
        log.warning("the limit on open files stays as it is: %s", error)


class Worker:
    """A process that serves: the data listener, and the admin listener where no other process has it.

    Its life: ``_start``, a signal of the supervisor, ``_announce`` or ``_hand_over``, ``_drain``, ``_close``.
    """

    def __init__(self, config: WorkerConfig, context: WorkerContext) -> None:
        self._config = config
        self._context = context
        self._settings = part(config.settings, config.number, config.processes)
        render = partial(as_text, coloured=sys.stdout.isatty()) if self._settings.access_log == "text" else as_json
        self._access_log = AccessLog(sys.stdout, render)
        self._tracing = self._make_tracing()
        self._observers: list[Observer] = [self._access_log] if self._settings.access_log else []
        if self._tracing:
            self._observers.append(self._tracing)
        self._balancer = self._make_balancer()
        self._signals = Signals(context, self._read_again)
        # Requests are cut at SHUTDOWN_TIMEOUT; a second later, so are clients that do not read what was sent.
        self._limit = self._settings.shutdown_timeout + 1.0
        self._clients = ClientRegistry(self._balancer.proxy, self._settings)
        self._listener = DataListener(self._settings, config.data, self._clients, self._balancer, config.certificate)
        self._admin: Admin | None = None
        self._reports: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until drained."""
        async with self._balancer, asyncio.TaskGroup() as tasks:
            await self._start(tasks)
            await self._signals.either()
            if self._signals.stop.is_set():
                await self._announce()
            else:
                await self._hand_over()
            await self._drain()
            self._close()
        self._access_log.flush()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)
        log.info("stopped")

    def _make_tracing(self) -> Tracing | None:
        if not self._settings.otel_endpoint:
            return None
        from balancer.telemetry.tracing import Tracing

        return Tracing.to(self._settings.otel_endpoint)

    def _make_balancer(self) -> LoadBalancer | Pools:
        config = self._config
        has_stats = config.admin or config.channel

        def pool(settings: Settings) -> LoadBalancer:
            drains = Drains(self._context.drains, settings, lambda member: made.drain(member))
            made = LoadBalancer(
                part(settings, config.number, config.processes),
                observers=[*self._observers, drains],
                stats=Stats() if has_stats else None,
                trace=self._tracing.begin if self._tracing else None,
            )
            made.identity, made.own_addresses.listener = self._context.identity, settings.bind
            return made

        if not config.routes:
            return pool(config.settings)
        stats = Stats() if has_stats else None
        return Pools(config.settings, config.routes, pool, observers=self._observers, stats=stats)

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        """Listen, and report that to the supervisor."""
        config, balancer = self._config, self._balancer
        if self._context.succeeds and not all(
            await asyncio.gather(*(pool.ready(READY_LIMIT) for pool in balancer.current()))
        ):
            log.error("DNS or members have not answered within %g s", READY_LIMIT)
            raise SystemExit(FAILED)
        await self._listener.start()
        aliases = (
            sorted({pool.alias for pool in config.routes.pools.values()}) if config.routes else [self._settings.alias]
        )
        log.info("balancer %s: %s on %s", __version__, ", ".join(aliases), self._settings.bind)
        if config.admin:
            unrouted = (lambda: balancer.stats) if isinstance(balancer, Pools) else (lambda: None)
            stopping = self._signals.stop.is_set
            self._admin = Admin(
                balancer.current,
                self._settings,
                self._context,
                unrouted,
                lambda: [Usage.own(self._clients.limits)],
                stopping,
            )
            tasks.create_task(self._admin.serve(config.admin))
            log.info("admin on %s", self._settings.admin_bind)
        if config.channel:
            self._reports = tasks.create_task(
                Reporter(config.number, config.channel, balancer, self._clients.limits).run()
            )
        self._context.ready()

    async def _announce(self) -> None:
        """Go on for SHUTDOWN_DELAY, in which proxies in front and clients turn to other balancers."""
        if delay := self._settings.shutdown_delay:
            log.info("leaving: clients are sent elsewhere for %g s", delay)
            self._clients.stop(delay)
            await self._signals.delay(delay)

    async def _hand_over(self) -> None:
        """Finish requests within RELOAD_TIMEOUT: successors serve."""
        limit = self._settings.reload_timeout
        log.info("replaced: %s in progress", counted(self._balancer.proxy.active, "request"))
        if self._admin:
            self._admin.stop()  # From now on the new one answers.
        self._clients.stop(min(LEAVE_SECONDS, limit))
        await self._listener.close()
        tasks = [asyncio.create_task(wait) for wait in (wait_empty(self._clients), self._signals.stop.wait())]
        with suppress(TimeoutError):
            async with Limit(limit):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _drain(self) -> None:
        """Accept no more clients, and finish what is under way within SHUTDOWN_TIMEOUT."""
        proxy = self._balancer.proxy
        log.info("stopping: %s in progress", counted(proxy.active, "request"))
        loop_time().call_later(self._settings.shutdown_timeout, proxy.abort_all)
        self._clients.stop(0.0)
        await proxy.end_streams()
        await self._listener.close()
        closed = asyncio.create_task(self._listener.wait_closed(self._limit))
        while not closed.done():
            await asyncio.wait([closed], timeout=END_STREAMS_SECONDS)
            await proxy.end_streams()
        await closed

    def _read_again(self) -> None:
        """Read certificate, routes and token again, on SIGHUP."""
        certificate, balancer, token = self._config.certificate, self._balancer, self._settings.admin_token_file
        if certificate:
            certificate.reload()
        if isinstance(balancer, Pools):
            balancer.reload()
        if self._admin:
            self._admin.read_token_again()
        if not (certificate or token or isinstance(balancer, Pools)):
            log.info("SIGHUP: there is no file to read again: no certificate, no routes, no token")

    def _close(self) -> None:
        if self._admin:
            self._admin.stop()
        if self._reports:
            self._reports.cancel()


async def _serve(config: WorkerConfig, context: WorkerContext) -> None:
    await Worker(config, context).run()
