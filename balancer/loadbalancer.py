"""The load balancer as one object: builds the parts, wires them, and runs its two loops."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any

from balancer.asgi.app import Proxy, serve_lifespan
from balancer.asgi.event_loop import running_loop
from balancer.config.keywords import settings_of
from balancer.config.settings import Settings
from balancer.discovery.loop import Discovery, Resolve
from balancer.discovery.resolver import make_resolver
from balancer.discovery.snapshot import Outcome, Snapshot
from balancer.dispatch.admission import GradualRelease
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import Trace
from balancer.forks import OwnRandom, abandon, renew_in_child
from balancer.loop_time import loop_time
from balancer.members.ejection import EjectionKind
from balancer.members.ejector import STEP_SECONDS, Ejector
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change, Membership
from balancer.members.own_addresses import OwnAddresses
from balancer.members.probe import Probe, make_probe
from balancer.members.probe_scheduler import TICK, Prober
from balancer.plugins import loader
from balancer.plugins.hook_api import Hooks
from balancer.plugins.hooked_dispatcher import HookedDispatcher
from balancer.policies.base import PolicyLike
from balancer.policies.factory import make_policy
from balancer.pool_figures import PoolFigures
from balancer.telemetry.observer import Observer, all_done
from balancer.telemetry.state_log import FlipLog, log_drain, log_ejection, named, of_pool
from balancer.telemetry.stats import Stats
from balancer.types import Clock, Receive, Scope, Send
from balancer.upstream.base import Timeouts, Upstream
from balancer.upstream.native import NativeUpstream

log = logging.getLogger(__name__)


class LoadBalancer(PoolFigures):
    """An ASGI application that balances its requests over the members behind an alias; mounted, or by itself.

    It starts with ``async with``, its lifespan or its first request, and ends with its event loop. It lives in one
    event loop at a time; in the next it starts anew.

    Args:
        alias: The name to resolve, or a ``Settings``; ``Settings.load(os.environ)`` reads the environment.
        upstream: Sends requests to members, and is closed at the end. Default: HTTP/1.1 on connections that stay open.
        resolve: Coroutine function that returns a ``Snapshot`` of DNS.
        probe: Coroutine function of an ``Address`` that returns an ``HealthEvent`` or None, and words for it.
        observers: One ``Observer``, or several.
        stats: Figures for the status page and the metrics.
        trace: Begins the spans of traces.
        policy: A policy in place of the one of the settings, or its name; it runs guarded.
        hooks: Hooks, or their names, after those of the settings; they run guarded.
        clock: Returns seconds, from any moment on.
        rng: Makes the random choices. Default: one that each process forked from this one has for itself.
        **settings: Settings by their names, such as ``upstream_port=8080``, if ``alias`` is a name.

    Raises:
        SettingsError: A value or an object cannot be used.
        TypeError: A keyword is not the name of a setting.
    """

    # Of one event loop, as its parts are, which are made anew for the next.
    snapshot: Snapshot | None

    def __init__(
        self,
        alias: str | Settings,
        *,
        upstream: Upstream | None = None,
        resolve: Resolve | None = None,
        probe: Probe | None = None,
        observers: Observer | Iterable[Observer] = (),
        stats: Stats | None = None,
        trace: Trace | None = None,
        policy: str | PolicyLike | None = None,
        hooks: str | Hooks | Iterable[str | Hooks] = (),
        clock: Clock = time.monotonic,
        rng: Random | None = None,
        **settings: Any,
    ) -> None:
        listed = loader.each(hooks)
        given_hooks = [entry for entry in listed if not isinstance(entry, str)]
        if isinstance(policy, str):
            settings["policy"] = policy
        if names := [entry for entry in listed if isinstance(entry, str)]:
            settings["hooks"] = ",".join(names)
        self.settings = settings_of(alias, settings)
        given_observers = loader.each(observers)
        loader.check(given_observers, trace, probe, resolve)
        self.stats = stats
        self._rng = rng or OwnRandom()
        self._plugged = loader.load(self.settings, self._rng, None if isinstance(policy, str) else policy, given_hooks)
        self._observers = [*given_observers, *([stats] if stats else []), *self._plugged.hooks.observers()]
        self._given_upstream = upstream
        self._resolve = resolve or make_resolver(self.settings, clock)
        self.own_addresses = OwnAddresses(self.settings.alias, probe or make_probe(self.settings))
        self._trace = trace
        self.clock = clock
        # Text that the processes of one balancer share; without it, each event loop has one of its own.
        self.identity = ""
        self.listener = None
        # The event loop of this object, and the task that ends it there.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: asyncio.Task[None] | None = None
        self._build()
        renew_in_child(self, LoadBalancer._begin_anew)

    def _build(self) -> None:
        settings, clock, rng, plugged = self.settings, self.clock, self._rng, self._plugged
        self.membership = Membership(
            on_flip=self._flipped,
            on_reason=lambda member: self._flip_log.flipped(member, member.state),
            on_unnamed=lambda: self._discovery.wake(),
            slow_start=settings.slow_start,
        )
        self.snapshot = None
        self.upstream = self._given_upstream or NativeUpstream(Timeouts.of(settings))
        hooked = plugged.policy or plugged.hooks.has_hooks
        make_dispatcher = partial(HookedDispatcher, plugged.hooks) if hooked else Dispatcher
        policy = make_policy(settings, rng, clock, plugged.policy)
        self.dispatcher = make_dispatcher(
            settings, self.membership, policy, self.upstream, all_done(self._observers), clock, self._trace
        )
        self.proxy = Proxy(self.dispatcher, settings)
        self._prober = Prober(
            self.own_addresses.probe,
            self.membership,
            settings,
            clock,
            rng,
            on_answer=self.upstream.on_member_answered,
        )
        self._discovery = Discovery(
            self._resolve,
            settings.resolve_interval,
            clock,
            available=lambda: self.membership.has_available,
            waiting=lambda: len(self.dispatcher.queue) > 0,
            deliver=self._deliver,
        )
        self.dispatcher.admission.on_shortage = self._search
        self._release = GradualRelease(
            self.membership, self.dispatcher.admission, lambda delay, call: loop_time().call_later(delay, call), clock
        )
        self._flip_log = FlipLog(lambda: self.name)
        self.ejector = Ejector(
            self.membership,
            rng,
            clock,
            self._on_ejection,
            settings.eject_max_percent / 100,
            compares_latency=not (plugged.policy or settings.policy == "hash" or settings.sticky_cookie),
        )
        if settings.eject:
            self.dispatcher.ejector = self.ejector

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._loop is not running_loop():
            if scope["type"] == "lifespan":
                await serve_lifespan(receive, send, self.start, self.aclose)
                return
            self.start()
        await self.proxy(scope, receive, send)

    def start(self) -> None:
        """Start discovery and probes in the running event loop, unless they run already.

        Raises:
            RuntimeError: No event loop runs, or another one still uses this.
        """
        loop = running_loop()
        if self._loop is loop:
            return
        if self._loop and self._loop.is_running():
            raise RuntimeError("this LoadBalancer is in use in another event loop; make one for each")
        if self._life:
            if self._loop and not self._loop.is_closed():
                self._life.cancel()  # That loop was left as it was: if it goes on, the old parts end there.
            self._forget()
            self._build()
        self._loop = loop
        # Only here, because processes may have been forked since this was made.
        self.dispatcher.mark_requests(self.identity or secrets.token_hex(8))
        loops = [loop.create_task(self._discovery.run()), loop.create_task(self._prober.run())]
        loops.append(loop.create_task(self._judge()))
        self._life = loop.create_task(self._live(loops, self.upstream))

    async def _live(self, loops: list[asyncio.Task[None]], upstream: Upstream) -> None:
        """Run the loops until cancelled: by ``aclose``, or with the event loop, as ``asyncio.run`` and servers do."""
        try:
            await asyncio.gather(*loops, return_exceptions=True)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await upstream.close()
            if self._life is asyncio.current_task():
                self._loop = None

    def _begin_anew(self) -> None:
        """Leave all that the process before this one has begun to it: members, connections, its event loop, its ids."""
        abandon(self._loop, self._life, self.upstream)
        self._loop = self._life = None
        self._build()

    def _forget(self) -> None:
        """Report to observers that the members of an earlier event loop are gone."""
        if gone := Change(left=list(self.membership.members.values())):
            for observer in self._observers:
                observer.resolved(Snapshot((), self.clock()), gone)

    async def aclose(self) -> None:
        """End the requests under way, those without a response by a 503, and close all connections to members."""
        if self._life is None or self._loop is not asyncio.get_running_loop():
            return
        self.proxy.abort_all()
        self._life.cancel()
        await asyncio.wait([self._life])
        self._loop = None
        if not self._life.cancelled():
            self._life.result()

    async def __aenter__(self) -> LoadBalancer:
        self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    def current(self) -> list[LoadBalancer]:
        """Return the pools that get requests: itself."""
        return [self]

    @property
    def name(self) -> str:
        """The name of the pool where there are several, else ""."""
        return self.dispatcher.name

    @name.setter
    def name(self, name: str) -> None:
        self.dispatcher.name = name

    async def ready(self, limit: float) -> bool:
        """Wait until DNS and each member have answered, at most ``limit`` seconds; return whether they have."""
        try:
            async with asyncio.timeout(limit):
                while not self._has_all_answers():
                    await asyncio.sleep(TICK)
        except TimeoutError:
            return False
        return True

    def _has_all_answers(self) -> bool:
        resolved = self.snapshot and any(answer.outcome is not Outcome.UNKNOWN for answer in self.snapshot.answers)
        return bool(resolved) and all(member.last_probe_answered for member in self.membership.members.values())

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, or, with ``drained=False``, requests again; what it has is finished."""
        log_drain(self.name, member, drained)
        if member.drained != drained:
            member.drained_since = self.clock()
            self.membership.drain(member, drained)
            for observer in self._observers:
                observer.drained(member)
        self._availability_changed()

    def eject(self, member: Member, seconds: float) -> None:
        """Eject a member by hand for so many seconds: it gets requests only while no other is up; a trial follows."""
        self.ejector.eject(member, EjectionKind.MANUAL, "by hand", seconds)

    def restore(self, member: Member) -> None:
        """Give a member that is ejected or on trial its whole share of requests again."""
        self.ejector.restore(member)

    def _on_ejection(self, member: Member) -> None:
        member.ejection_changed = self.clock()
        log_ejection(self.name, member)
        for observer in self._observers:
            observer.ejected(member)
        self._availability_changed()

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(STEP_SECONDS)
            self.ejector.step()

    def _deliver(self, snapshot: Snapshot) -> None:
        before, self.snapshot = self.snapshot, snapshot
        if before is None or before.describe() != snapshot.describe():
            log.info("%sDNS for %s: %s", of_pool(self.name), self.settings.alias, snapshot.describe())
        self._flip_log.flush(self.clock())
        change = self.membership.reconcile(snapshot)
        if change.joined:
            log.info("%sjoining: %s", of_pool(self.name), named(change.joined))
            self.own_addresses.look_at([member.address for member in change.joined])
            self._prober.join(change.joined)
        self._availability_changed()  # Also where no member came or went: SRV's priorities may have changed.
        for observer in self._observers:
            observer.resolved(snapshot, change)
        for member in change.left:
            self.upstream.forget(member.address)
            if member.in_flight:
                # It may be finishing its requests, or be cut off from the network and never answer.
                self.upstream.check_network(member.address)

    def _availability_changed(self) -> None:
        """Give members to queued requests; where no member is available any more, search for some."""
        lost = self._release.update()
        self.dispatcher.admission.assign_queued()
        if lost:
            self._discovery.wake()
            self._prober.wake(member for member in self.membership.members.values() if member.probes)

    def _search(self) -> None:
        """Query DNS soon. Raises Refusal where the balancer itself is its only member."""
        self._discovery.wake()
        self.own_addresses.refuse_if_alone(self.membership.members)

    def _flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        self._flip_log.flipped(member, before)
        for observer in self._observers:
            observer.flipped(member, before, event)
        if member.state is State.LEAVING:
            return  # ``_deliver`` follows, once all flips are reported.
        if member.state is State.UP and before in (State.JOINING, State.DOWN):
            self._release.came_up()
            self.ejector.came_up(member)
        self._availability_changed()
        if member.state is State.SUSPECT and self.settings.health_path:
            self._prober.wake([member])  # Its answer may be that it drains, which a TCP connect cannot show.
        elif member.state is State.DOWN:
            if event is HealthEvent.UNREACHABLE:
                self.upstream.check_network(member.address)
            self.upstream.forget(member.address)
