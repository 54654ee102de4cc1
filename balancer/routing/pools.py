"""Several pools behind one listener: the pool of each request, and changes of pools while requests are under way.

Rules:
* A pool is a ``LoadBalancer``, which is identified by its settings. Where the routes change and a pool's
  settings do not, it goes on as it is: members, connections, counts.
* A change takes effect in one step, once DNS and the members of each new pool have answered, or
  after READY_SECONDS.
* A pool that no route leads to any more gets no new request. It goes on, with its probes, until its requests, also
  queued ones, are over; then it is closed. If it is wanted before that, it is taken back.
* A file that cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from balancer.asgi.app import Proxy
from balancer.config.display import variable
from balancer.config.settings import Settings, SettingsError
from balancer.dispatch.context import RequestContext, RequestRecord, request_ids
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import DirectSink, RequestHandler, Sink
from balancer.dispatch.refusals import refuse
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.routing.parse import inline, read
from balancer.routing.table import Table
from balancer.telemetry.observer import Observer, all_done
from balancer.telemetry.stats import Stats
from balancer.types import Clock, Receive, Scope, Send
from balancer.words import counted

log = logging.getLogger(__name__)

# Seconds that a change of routes waits for new pools, and between two checks whether an old one is idle.
READY_SECONDS = 3.0
RETIRE_SECONDS = 0.1

Done = Callable[[RequestRecord], None]


class RoutedProxy(Proxy):
    """The front end of several dispatchers. ``switch`` sets them; until then there is no route."""

    def __init__(self, on_done: Done, clock: Clock, limits: Settings) -> None:
        super().__init__(None, limits)
        self._on_done = on_done
        self._clock = clock
        self._new_id = request_ids()
        self._table = Table([], {})
        self._pools: dict[str, Dispatcher] = {}

    def switch(self, table: Table, pools: dict[str, Dispatcher]) -> None:
        """Lead requests by these routes to these pools, by their names, from the next one on."""
        self._table, self._pools = table, pools

    def choose(self, request: Request) -> RequestHandler:
        """Return the handler of a request; called in the step that begins it."""
        try:
            return self._pools[self._table.find(request).name]
        except Refusal as refusal:
            # Its traceback would keep alive the frames that it came through.
            return NoRouteHandler(refusal.with_traceback(None), self._on_done, self._clock, self._new_id)

    def refused(self, request: Request, refusal: Refusal) -> bytes:
        """Record a request that a front end has refused before any dispatcher had it; return its id."""
        record = RequestRecord(request, self._clock(), request.id or self._new_id())
        record.status, record.error, record.reason = refusal.status, refusal.token, refusal.reason
        self._on_done(record)
        return record.id

    def serves(self, dispatcher: Dispatcher) -> bool:
        """Whether any request of this dispatcher is under way."""
        return any(active.context.dispatcher is dispatcher for active in self.in_flight)


class NoRouteHandler(RequestHandler):
    """A handler where no route leads to a dispatcher: it answers every request with the same refusal."""

    def __init__(self, refusal: Refusal, on_done: Done, clock: Clock, new_id: Callable[[], bytes]) -> None:
        self._refusal = refusal
        self._on_done = on_done
        self._clock = clock
        self._new_id = new_id

    def begin(self, request: Request) -> RequestContext:
        context = RequestContext(request, self._clock(), request.id or self._new_id())
        context.dispatcher = self
        return context

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        return False

    def on_response_progress(self, context: RequestContext, sink: DirectSink) -> None:
        raise AssertionError("nothing was sent to a member")

    async def run(self, context: RequestContext, sink: Sink) -> None:
        context.error, context.reason = self._refusal.token, self._refusal.reason
        try:
            await refuse(self._refusal, sink, context)
        finally:
            context.duration = self._clock() - context.started
            self._on_done(context)


class Pools:
    """The pools of a table, an ASGI application over them, and their changes; use it within ``async with``.

    ``make``: makes a pool of its settings. ``observers`` and ``stats`` get the requests that reach no pool.
    Raises SettingsError where a pool cannot be made.
    """

    def __init__(
        self,
        settings: Settings,
        table: Table,
        make: Callable[[Settings], LoadBalancer],
        *,
        observers: Sequence[Observer] = (),
        stats: Stats | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.settings = settings
        self.stats = stats
        self.proxy = RoutedProxy(all_done([*observers, stats] if stats else observers), clock, settings)
        self._make = make
        self._active = {settings: make(settings) for settings in table.pools.values()}
        # Pools that still have requests, each with the task that waits for their end.
        self._retiring: dict[Settings, tuple[LoadBalancer, asyncio.Task[None]]] = {}
        self._retirements: set[asyncio.Task[None]] = set()
        # Pools whose loops run.
        self._running: set[LoadBalancer] = set()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        self._switch(table)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.proxy(scope, receive, send)

    async def __aenter__(self) -> Pools:
        for pool in self._active.values():
            await self._start(pool)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._retirements, *([self._reloading] if self._reloading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*map(self._close, list(self._running)))

    def current(self) -> list[LoadBalancer]:
        """Return the pools that get requests now."""
        return list(self._active.values())

    def reload(self) -> None:
        """Read the file again soon; the log has the outcome."""
        if inline(self.settings.routes or ""):
            log.info("the routes are those of %s itself, which cannot change", variable("routes"))
        elif self._reloading:
            self._reload_again = True
        else:
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        try:
            again = True
            while again:
                self._reload_again = False
                await self._read_again()
                again = self._reload_again
        finally:
            self._reloading = None

    async def _read_again(self) -> None:
        new: dict[Settings, LoadBalancer] = {}
        try:
            table = read(self.settings)
            assert table
            for name, settings in table.pools.items():
                if settings not in self._active and settings not in self._retiring:
                    new[settings] = self._make(settings)
                    new[settings].name = name
        except SettingsError as error:
            log.error("the routes stay as they were: %s", "; ".join(error.problems))
            return
        except Exception as error:  # of a plug-in, for example
            log.error("the routes stay as they were: a pool cannot be made: %s: %s", type(error).__name__, error)
            return
        restored = {
            settings: self._take_back(settings) for settings in table.pools.values() if settings in self._retiring
        }
        await asyncio.gather(*map(self._start, new.values()))
        await asyncio.gather(*(pool.ready(READY_SECONDS) for pool in new.values()))
        before = self._active
        known = before | restored | new
        self._active = {settings: known[settings] for settings in table.pools.values()}
        self._switch(table)
        gone = {settings: pool for settings, pool in before.items() if settings not in self._active}
        for settings, pool in gone.items():
            self._retire(settings, pool)
        names = (
            ("new", [pool.name for pool in (new | restored).values()]),
            ("gone", [pool.name for pool in gone.values()]),
        )
        changes = "; ".join(f"{word}: {', '.join(found)}" for word, found in names if found) or "the same pools"
        routes, pools = counted(len(table.routes), "route"), counted(len(self._active), "pool")
        log.info("routes read again: %s to %s; %s", routes, pools, changes)

    def _switch(self, table: Table) -> None:
        for name, settings in table.pools.items():
            self._active[settings].name = name
            self._active[settings].listener = self.proxy
        self.proxy.switch(table, {name: self._active[settings].dispatcher for name, settings in table.pools.items()})

    async def _start(self, pool: LoadBalancer) -> None:
        self._running.add(pool)
        await pool.__aenter__()

    async def _close(self, pool: LoadBalancer) -> None:
        self._running.discard(pool)
        await pool.__aexit__(None, None, None)

    def _retire(self, settings: Settings, pool: LoadBalancer) -> None:
        task = asyncio.get_running_loop().create_task(self._close_when_idle(settings, pool))
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)
        self._retiring[settings] = pool, task

    def _take_back(self, settings: Settings) -> LoadBalancer:
        pool, task = self._retiring.pop(settings)
        task.cancel()
        return pool

    async def _close_when_idle(self, settings: Settings, pool: LoadBalancer) -> None:
        while self.proxy.serves(pool.dispatcher):
            await asyncio.sleep(RETIRE_SECONDS)
        del self._retiring[settings]
        await self._close(pool)
        log.info("pool %s closed: its last request is over", pool.name)
