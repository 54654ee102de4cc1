"""One run of the simulation: clients, balancers, members and DNS on one virtual clock.

The balancers are ``balancer.LoadBalancer`` as it is, with its discovery, probes, membership, policies, queue and
retries. What they are given in place of the network is in ``bench.simulation.members``; clients and DNS are here.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from random import Random
from typing import Any

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.context import RequestContext, RequestRecord
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import DirectSink
from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.telemetry.observer import Observer
from balancer.types import Address
from balancer.upstream.base import PendingResponse, UpstreamResponse
from bench.simulation.members import Container, Life, Links
from tests.support.virtual import VirtualLoop

# Seconds that DNS takes for an answer.
DNS_DELAY = 0.001
# Clients for each member, which matters to the hash policy alone, and the share of their requests that are POSTs.
CLIENTS, POSTS = 100, 0.1
# The share of requests before anything is counted.
WARM_UP = 0.1


@dataclass(frozen=True)
class Setup:
    """What a run is made of. ``speeds``: of the members, of which each has ``workers``.

    ``service``: mean seconds that a worker of speed 1.0 has to do for a request; the time is exponentially distributed.
    ``load``: requests that come, as a share of what all members can do. ``settings``: the balancers', by field.
    """

    seed: str
    speeds: tuple[float, ...]
    balancers: int
    requests: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 4
    service: float = 0.02
    load: float = 0.5

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.load * sum(self.speeds) * self.workers / self.service

    @property
    def seconds(self) -> float:
        """How long requests come."""
        return self.requests / self.rate


@dataclass(frozen=True)
class Figures:
    """What came of the requests after the warm-up. Latencies are in seconds, as the balancer sees them.

    ``share_error``: of all requests, the share that would have to have gone to another member for each to have had its
    due, which is in proportion to its speed while it served. ``wasted``: attempts at members that brought no answer.
    ``queued``: requests that waited in the balancer for a member. ``failed``: requests that the balancer had to answer
    itself, by the token of ``X-Balancer-Error``. ``shares``: of requests, by member.
    """

    requests: int
    share_error: float
    mean: float
    p50: float
    p99: float
    p999: float
    wasted: int
    queued: int
    failed: Mapping[str, int]
    shares: tuple[float, ...]


Events = Callable[["World"], Awaitable[None]]


class World(Observer):
    """``events``: what happens to members meanwhile. ``arrivals`` and ``service_time`` in place of random ones."""

    def __init__(
        self,
        setup: Setup,
        loop: VirtualLoop,
        events: Events,
        arrivals: Iterator[float] | None = None,
        service_time: Callable[[], float] | None = None,
    ) -> None:
        self.setup = setup
        self.loop = loop
        self.settings = Settings(health_path="/healthz", **setup.settings)
        self.rng = Random(f"{setup.seed} events")
        self.containers: dict[Address, Container] = {}
        self._events = events
        self._arrivals = arrivals or poisson(Random(f"{setup.seed} arrivals"), setup.rate)
        work = Random(f"{setup.seed} work")
        self.service_time = service_time or (lambda: work.expovariate(1 / setup.service))
        self._clients = Random(f"{setup.seed} clients")
        self._everybody: list[Container] = []
        # None while it is to be made anew.
        self._answer: Answer | None = None
        self._links = [Links(self) for _ in range(setup.balancers)]
        self._balancers = [
            LoadBalancer(
                self.settings, upstream=links, resolve=self._resolve, probe=links.probe, observers=[self],
                clock=loop.time, rng=Random(f"{setup.seed} balancer {number}"),
            )
            for number, links in enumerate(self._links)
        ]  # fmt: skip
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = loop.create_future()
        loop.set_exception_handler(self._raised)
        # Speeds of all members that serve, and the sum over the requests so far of 1 / that: a member of speed s is
        # due s times what is added to the sum while it serves.
        self._capacity = 0.0
        self._serving = 0
        self._turn = 0.0
        self._began = 0.0
        self._counted_from = inf
        self._arrived = self._ended = 0
        self._latencies = array("d")
        self._failed: Counter[str] = Counter()
        self._wasted = self._queued = 0

    # The run.

    async def run(self) -> Figures:
        """From the start of all members and balancers until every request has ended."""
        async with asyncio.TaskGroup() as boots:
            for speed in self.setup.speeds:
                boots.create_task(self.add(speed).start(0.0))
        try:
            for balancer in self._balancers:
                balancer.start()
                # Else all of them would ask DNS and members at the same moments for ever.
                await asyncio.sleep(self.rng.random() / self.setup.balancers)
            while any(len(balancer.membership.available) < len(self.containers) for balancer in self._balancers):
                await asyncio.sleep(0.1)
            self._began = self.loop.time()
            self.spawn(self._live())
            self.loop.call_at(self._began + next(self._arrivals), self._arrive)
            await self._over
        finally:
            rest = list(self._tasks)
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            for balancer in self._balancers:
                await balancer.aclose()
        return self._figures()

    async def _live(self) -> None:
        await self._events(self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on beside; an exception in it ends the run."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done_beside)

    def _done_beside(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _raised(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._fail(context.get("exception") or RuntimeError(context["message"]))

    def _fail(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    # ClientRegistry.

    def _arrive(self) -> None:
        if self._arrived == ceil(WARM_UP * self.setup.requests):
            self._count_from_now()
        self._arrived += 1
        draw = self._clients.random
        client = int(draw() * CLIENTS * len(self.setup.speeds))
        method = "POST" if draw() < POSTS else "GET"
        request = Request(method, b"/", NO_FIELDS, str(client), id=b"-")
        _Request(self, self._balancers[int(draw() * len(self._balancers))].dispatcher, request)
        if self._arrived < self.setup.requests:
            self.loop.call_at(self._began + next(self._arrivals), self._arrive)

    def done(self, record: RequestRecord) -> None:
        self._ended += 1
        if record.started >= self._counted_from:
            if record.status == 200:
                self._latencies.append(record.duration)
            else:
                self._failed[record.error] += 1
            self._wasted += len(record.attempts)
            self._queued += record.queued > 0
        if self._ended == self.setup.requests:
            self._over.set_result(None)

    # DNS.

    def publish(self) -> None:
        """Who is there has changed: DNS learns it when it is asked next."""
        self._answer = None

    async def _resolve(self) -> Snapshot:
        await asyncio.sleep(DNS_DELAY)
        if self._answer is None:
            endpoints = frozenset(map(Endpoint, self.containers))
            if endpoints:
                self._answer = Answer("A", Outcome.FOUND, endpoints)
            else:
                self._answer = Answer("A", Outcome.EMPTY, rcode="NXDOMAIN")
        return Snapshot((self._answer,), self.loop.time())

    # Members.

    def add(self, speed: float, address: Address | None = None) -> Container:
        """A new container, to be started; at an address of its own, unless one is given that is free again."""
        high, low = divmod(len(self._everybody) + 1, 250)
        address = address or Address(f"10.{high // 250}.{high % 250}.{low}", 80)
        container = Container(self, address, speed, self.setup.workers)
        self._everybody.append(container)
        return container

    def drop_idle(self, address: Address) -> None:
        """The container there has closed its idle connections."""
        for links in self._links:
            links.forget(address)

    # Shares.

    def sent_to(self, container: Container) -> None:
        """A request goes there. While nobody serves as usual, nobody has a due share."""
        if self._capacity:
            self._turn += 1 / self._capacity
            container.got += 1

    def turns(self, container: Container, served: bool, serves: bool) -> None:
        """The container begins or ceases to serve, or (both are true) its due share is asked for."""
        if served:
            container.due += container.speed * (self._turn - container.counted)
        container.counted = self._turn
        self._serving += serves - served
        self._capacity = self._capacity + container.speed * (serves - served) if self._serving else 0.0

    def set_speed(self, container: Container, speed: float) -> None:
        """The container goes on at another speed; what it has been given takes as long as before."""
        self.turns(container, True, False)
        container.speed = speed
        self.turns(container, False, True)

    def _count_from_now(self) -> None:
        self._counted_from = self.loop.time()
        self._turn = 0.0
        for container in self._everybody:
            container.got, container.due, container.counted = 0, 0.0, 0.0

    def _figures(self) -> Figures:
        for container in self._everybody:
            if container.life is Life.SERVING:
                self.turns(container, True, True)
        sent = sum(container.got for container in self._everybody)
        latencies = sorted(self._latencies)
        return Figures(
            requests=len(latencies) + self._failed.total(),
            share_error=sum(abs(container.got - container.due) for container in self._everybody) / 2 / sent,
            mean=sum(latencies) / len(latencies),
            p50=_percentile(latencies, 0.5),
            p99=_percentile(latencies, 0.99),
            p999=_percentile(latencies, 0.999),
            wasted=self._wasted,
            queued=self._queued,
            failed=dict(sorted(self._failed.items())),
            shares=tuple(container.got / sent for container in self._everybody),
        )


class _Request(DirectSink):
    """One client's request, and where its answer goes: what ``balancer.dispatch.dispatcher`` calls a DirectSink."""

    __slots__ = ("_context", "_dispatcher", "_world")

    def __init__(self, world: World, dispatcher: Dispatcher, request: Request) -> None:
        self._world = world
        self._dispatcher = dispatcher
        self._context: RequestContext = dispatcher.begin(request)
        if not dispatcher.try_send_nowait(self._context, self, b""):
            self.continue_in_task()

    def on_response_progress(self) -> None:
        self._dispatcher.on_response_progress(self._context, self)

    def continue_in_task(self) -> None:
        self._world.spawn(self._dispatcher.run(self._context, self))

    def answer(self, response: PendingResponse, body: bytes) -> None:
        pass

    def send_interim(self, status: int, headers: Headers) -> None:
        raise NotImplementedError("no member sends interim responses")

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        pass

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        pass

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        raise NotImplementedError("no member switches protocols")


def run(
    setup: Setup,
    events: Events,
    arrivals: Iterator[float] | None = None,
    service_time: Callable[[], float] | None = None,
) -> Figures:
    """The figures of one run; the same for the same arguments."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(World(setup, loop, events, arrivals, service_time).run())
    finally:
        loop.close()


def poisson(rng: Random, rate: float) -> Iterator[float]:
    """When requests of many independent clients come."""
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def _percentile(ascending: Sequence[float], share: float) -> float:
    return ascending[ceil(share * len(ascending)) - 1]
