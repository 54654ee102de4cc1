"""The load balancer as one object: builds the parts, wires them, and runs its two loops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from random import Random
from types import TracebackType

from balancer.discovery import Discovery, DnsResolver, Resolve
from balancer.dispatch import Clock, Dispatcher, Trace
from balancer.health import HUNG, Event, State
from balancer.membership import Member, Membership, Outcome, Snapshot
from balancer.native_upstream import NativeUpstream
from balancer.observer import Observer, all_done
from balancer.policies import make_policy
from balancer.probes import TICK, Probe, Prober, make_probe
from balancer.proxy import Proxy
from balancer.settings import Address, Settings
from balancer.stats import Stats
from balancer.upstream import Timeouts, Upstream
from balancer.visit import Receive, Scope, Send

log = logging.getLogger(__name__)


class LoadBalancer:
    """An ASGI application that balances its requests; use it within ``async with``.

    Every collaborator may be replaced: ``upstream`` talks to members, ``resolve`` names them,
    ``probe`` judges them, ``observers`` are told of what happens, and so
    is ``stats``, for the status page and the metrics. ``trace`` begins the spans of traces.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        upstream: Upstream | None = None,
        resolve: Resolve | None = None,
        probe: Probe | None = None,
        observers: Sequence[Observer] = (),
        stats: Stats | None = None,
        trace: Trace | None = None,
        clock: Clock = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        self.settings = settings
        self.stats = stats
        self._observers = [*observers, stats] if stats else observers
        rng = rng or Random()
        self.membership = Membership(on_flip=self._flipped, slow_start=settings.slow_start)
        self.snapshot: Snapshot | None = None
        self.upstream = upstream or NativeUpstream(
            Timeouts(settings.connect_timeout, settings.response_timeout, settings.idle_timeout)
        )
        policy = make_policy(settings, rng)
        self.dispatcher = Dispatcher(
            settings, self.membership, policy, self.upstream, all_done(self._observers), clock, trace
        )
        self.proxy = Proxy(self.dispatcher)
        self._probe = probe or make_probe(settings)
        self._prober = Prober(
            self._probe,
            self.membership,
            settings.health_interval,
            clock,
            rng,
            asks_path=settings.health_path is not None,
        )
        self._discovery = Discovery(
            resolve or DnsResolver(settings, clock),
            settings.resolve_interval,
            urgent=lambda: not self.membership.available,
            deliver=self._deliver,
        )
        self._loops: list[asyncio.Task[None]] = []
        self._farewells: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.proxy(scope, receive, send)

    async def __aenter__(self) -> LoadBalancer:
        self._loops = [asyncio.create_task(self._discovery.run()), asyncio.create_task(self._prober.run())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._loops, *self._farewells]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.upstream.close()

    def current(self) -> list[LoadBalancer]:
        """The pools that get requests: itself."""
        return [self]

    @property
    def name(self) -> str:
        """What it is called where there are several, else ""."""
        return self.dispatcher.name

    @name.setter
    def name(self, name: str) -> None:
        self.dispatcher.name = name

    async def ready(self, limit: float) -> bool:
        """Wait until DNS has answered and so has each member, ``limit`` seconds at most; whether it came to that."""
        try:
            async with asyncio.timeout(limit):
                while not self._knows_all():
                    await asyncio.sleep(TICK)
        except TimeoutError:
            return False
        return True

    def _knows_all(self) -> bool:
        answers = self.snapshot.answers if self.snapshot else ()
        known = any(it.outcome is not Outcome.UNKNOWN for it in answers)
        return known and all(it.heard for it in self.membership.members.values())

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, or requests again; those that it has are finished."""
        log.info("%s %s by hand", member.address, "drained" if drained else "no longer drained")
        self.membership.drain(member, drained)
        self.dispatcher.wake()

    def _deliver(self, snapshot: Snapshot) -> None:
        before, self.snapshot = self.snapshot, snapshot
        if before is None or before.describe() != snapshot.describe():
            log.info("DNS for %s: %s", self.settings.alias, snapshot.describe())
        change = self.membership.reconcile(snapshot)
        self.dispatcher.wake()  # SRV's priorities may have changed without anybody's state.
        for observer in self._observers:
            observer.resolved(snapshot, change)
        for member in change.left:
            self.upstream.forget(member.address)
            if member.in_flight:
                farewell = asyncio.get_running_loop().create_task(self._look_once_more(member.address))
                self._farewells.add(farewell)
                farewell.add_done_callback(self._farewells.discard)
        if change.joined:
            log.info("joining: %s", ", ".join(str(it.address) for it in change.joined))
            self._prober.hurry(change.joined)

    async def _look_once_more(self, address: Address) -> None:
        """A member that left DNS may be finishing its requests, or be cut off from the network and never answer."""
        event, _ = await self._probe(address)
        if event in HUNG:
            self.upstream.give_up(address)

    def _flipped(self, member: Member, before: State, event: Event) -> None:
        level = logging.DEBUG if State.SUSPECT in (before, member.state) else logging.INFO
        log.log(level, "%s %s: %s", member.address, member.state.value, member.reason)
        for observer in self._observers:
            observer.flipped(member, before, event)
        if self.membership.available:
            self.dispatcher.wake()
        else:
            self._discovery.hurry()
            self._prober.hurry(self.membership.members.values())
        if member.state is State.SUSPECT and self.settings.health_path:
            self._prober.hurry([member])  # It may say that it is draining; a TCP connect could not tell.
        elif member.state is State.DOWN:
            if event in HUNG:
                self.upstream.give_up(member.address)
            self.upstream.forget(member.address)
