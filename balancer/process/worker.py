"""One process that serves, from start to drained."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop

from balancer.admin.ipc import pair
from balancer.admin.process_report import Reporter
from balancer.config.settings import Settings, SettingsError
from balancer.exit_codes import FAILED, UNUSABLE
from balancer.frontend.registry import ClientRegistry
from balancer.frontend.tls import Certificate
from balancer.loadbalancer import LoadBalancer
from balancer.process.admin_listener import Admin, serve_admin
from balancer.process.data_listener import DataListener
from balancer.process.drains import Drains
from balancer.process.handover import WorkerContext, WorkerSpec
from balancer.process.log_setup import LOG_FORMAT
from balancer.process.signals import Signals
from balancer.routing.pools import Pools
from balancer.routing.table import Table
from balancer.telemetry.access_log import AccessLog, as_json, as_text
from balancer.telemetry.observer import Observer
from balancer.telemetry.stats import Stats
from balancer.version import __version__

if TYPE_CHECKING:
    from balancer.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# How often the stop ends streams: some clients connect again as soon as they have been told to leave.
END_STREAMS_SECONDS = 0.2
# How long a process that others have replaced waits for one more request on connections that are idle, in seconds: to
# close one while a request is on its way to it would lose that.
LEAVE_SECONDS = 5.0
# How long a process that is to take another's place waits for DNS and the first word of each member, in seconds.
READY_LIMIT = 20.0


@dataclass(frozen=True)
class WorkerConfig:
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


def worker_specs(
    settings: Settings,
    data: Sequence[socket.socket],
    admin: socket.socket | None,
    certificate: Certificate | None,
    routes: Table | None,
    processes: int,
) -> list[WorkerSpec]:
    """What is to run: so many processes that serve and, where they are several, one that shows what they do."""
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
        work = WorkerConfig(settings, sock, None, certificate, routes, number, processes, channel)
        found.append(WorkerSpec(str(number), partial(serve, work), [sock]))
    if admin:
        ends = [end for _, end in channels]
        found.append(WorkerSpec("admin", lambda post: _run(serve_admin(settings, admin, ends, post)), own_admin))
    return found


def prepare() -> None:
    """What is done once, before there are processes."""
    raise_file_limit()
    # What start-up made stays for good: the collector need not look at it again, and need not look as
    # often as by default, because what a request makes is freed by counting references.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def serve(work: WorkerConfig, post: WorkerContext) -> None:
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


class Worker:
    """A process that serves: the data listener, and the admin listener where no other process has it.

    Its life: ``_start``, ``_wait`` for the supervisor's word, ``_drain`` or ``_hand_over``, ``_close``.
    """

    def __init__(self, work: WorkerConfig, post: WorkerContext) -> None:
        self._work = work
        self._post = post
        self._settings = work.settings.part(work.number, work.processes)
        form = partial(as_text, coloured=sys.stdout.isatty()) if self._settings.access_log == "text" else as_json
        self._access_log = AccessLog(sys.stdout, form, shared=work.processes > 1)
        self._tracing = self._make_tracing()
        self._observers: list[Observer] = [self._access_log] if self._settings.access_log else []
        if self._tracing:
            self._observers.append(self._tracing)
        self._balancer = self._make_balancer()
        self._signals = Signals(post, partial(_read_again, self._balancer, work.certificate))
        # Requests are cut at SHUTDOWN_TIMEOUT; a second later, so are clients that do not read what was sent.
        self._limit = self._settings.shutdown_timeout + 1.0
        self._clients = ClientRegistry(self._balancer.proxy, self._settings)
        self._listener = DataListener(self._settings, work.data, self._clients, self._balancer, work.certificate)
        self._admin: Admin | None = None
        self._reports: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until drained."""
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
        work = self._work
        watched = work.admin or work.channel

        def pool(settings: Settings) -> LoadBalancer:
            drains = Drains(self._post.drains, settings, lambda member: made.drain(member))
            made = LoadBalancer(
                settings.part(work.number, work.processes),
                observers=[*self._observers, drains],
                stats=Stats() if watched else None,
                trace=self._tracing.begin if self._tracing else None,
            )
            return made

        if not work.routes:
            return pool(work.settings)
        stats = Stats() if watched else None
        return Pools(work.settings, work.routes, pool, observers=self._observers, stats=stats)

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        """Listen, and tell the supervisor."""
        work, balancer = self._work, self._balancer
        if self._post.succeeds and not all(await asyncio.gather(*(it.ready(READY_LIMIT) for it in balancer.current()))):
            log.error("DNS or members have not answered within %g s", READY_LIMIT)
            raise SystemExit(FAILED)
        await self._listener.start()
        aliases = sorted({it.alias for it in work.routes.pools.values()}) if work.routes else [self._settings.alias]
        log.info("balancer %s: %s on %s", __version__, ", ".join(aliases), self._settings.bind)
        if work.admin:
            unrouted = (lambda: balancer.stats) if isinstance(balancer, Pools) else (lambda: None)
            stopping = self._signals.stop.is_set
            self._admin = Admin(balancer.current, self._settings, self._post, unrouted, stopping=stopping)
            tasks.create_task(self._admin.serve(work.admin))
            log.info("admin on %s", self._settings.admin_bind)
        if work.channel:
            self._reports = tasks.create_task(Reporter(work.number, work.channel, balancer).run())
        self._post.ready()

    async def _announce(self) -> None:
        """Go on for SHUTDOWN_DELAY: proxies in front learn to send clients elsewhere, and clients are told."""
        if delay := self._settings.shutdown_delay:
            log.info("leaving: clients are sent elsewhere for %g s", delay)
            self._clients.stop(delay)
            await self._signals.delay(delay)

    async def _hand_over(self) -> None:
        """Other processes have taken the place: finish what is here, within RELOAD_TIMEOUT."""
        limit = self._settings.reload_timeout
        log.info("replaced: %d requests in progress", self._balancer.proxy.active)
        if self._admin:
            self._admin.stop()  # From now on the new one tells.
        self._clients.stop(min(LEAVE_SECONDS, limit))
        await self._listener.close()
        waits = [asyncio.create_task(it) for it in (self._clients.wait_empty(), self._signals.stop.wait())]
        await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _drain(self) -> None:
        """Accept no client any more, and finish what is under way within SHUTDOWN_TIMEOUT."""
        proxy = self._balancer.proxy
        log.info("stopping: %d requests in progress", proxy.active)
        asyncio.get_running_loop().call_later(self._settings.shutdown_timeout, proxy.abort_all)
        self._clients.stop(0.0)
        await proxy.end_streams()
        await self._listener.close()
        closed = asyncio.create_task(self._listener.wait_closed(self._limit))
        while not closed.done():
            await asyncio.wait([closed], timeout=END_STREAMS_SECONDS)
            await proxy.end_streams()

    def _close(self) -> None:
        if self._admin:
            self._admin.stop()
        if self._reports:
            self._reports.cancel()


async def _serve(work: WorkerConfig, post: WorkerContext) -> None:
    await Worker(work, post).run()


def _read_again(balancer: LoadBalancer | Pools, certificate: Certificate | None) -> None:
    """SIGHUP: take over what has changed in files."""
    if certificate:
        certificate.reload()
    if isinstance(balancer, Pools):
        balancer.reload()
    elif not certificate:
        log.info("SIGHUP: there is neither a certificate nor a file of routes to read again")
