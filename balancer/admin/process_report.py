"""What a process that serves tells the one that shows what all of them do, and what it is asked to do by that."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from balancer.admin.ipc import Channel
from balancer.admin.pool_view import Usage
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Endpoint, Snapshot
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import State
from balancer.members.member import Member
from balancer.routing.pools import Pools
from balancer.telemetry.events import Event
from balancer.telemetry.stats import Stats
from balancer.types import Address
from balancer.upstream.base import Connections

# Seconds between two reports; news of members do not wait for so long, but come no more often than AT_ONCE.
INTERVAL = 1.0
AT_ONCE = 0.1

K = TypeVar("K")
T = TypeVar("T")


class Row(NamedTuple):
    """A member, as far as it is shown; the fields are those of ``Member``."""

    endpoint: Endpoint
    since: float
    state: State
    reason: str
    in_flight: int
    requests: int
    drained: bool
    drained_since: float

    @classmethod
    def of(cls, member: Member) -> Row:
        return cls(
            member.endpoint, member.since, member.state, member.reason, member.in_flight, member.requests,
            member.drained, member.drained_since,
        )  # fmt: skip


@dataclass
class PoolReport:
    """What one process knows of a pool. ``members`` and those of ``stats``: which have changed since the last report.

    ``left``: whom there is no more. ``snapshot``: None if it says what the one before said, which was at ``resolved``.
    ``events``: those that are new or have counted on.
    """

    name: str
    settings: Settings
    members: dict[Address, Row]
    left: list[Address]
    stats: Stats
    events: list[Event]
    snapshot: Snapshot | None
    resolved: float
    available: int
    queued: int
    active: int
    connections: Connections | None


@dataclass
class Report:
    """``whole``: all there is to know, not what has changed. ``clients``: open connections of clients.

    ``unrouted``: of requests that no route led to a pool. ``started``: when the process began, a reading of the
    monotonic clock, which is the same for all processes.
    """

    usage: Usage
    started: float
    whole: bool
    pools: list[PoolReport]
    unrouted: Stats | None
    clients: int | None


@dataclass
class Ask:
    """A whole report is wanted."""


@dataclass
class Drain:
    """The member is to be given no more requests, or requests again."""

    pool: str
    address: Address
    drained: bool


@dataclass
class _Told:
    """What has been told of a pool."""

    members: dict[Address, Row] = field(default_factory=dict)
    marks: dict[Address, tuple[float, ...]] = field(default_factory=dict)
    snapshot: Snapshot | None = None


class Reporter:
    """Reports on ``channel`` what process ``number`` does: ``run`` until cancelled."""

    def __init__(self, number: int, sock: socket.socket, balancer: LoadBalancer | Pools) -> None:
        self._number = number
        self._balancer = balancer
        self._channel = Channel(sock, self._asked)
        self._news = asyncio.Event()
        self._told: dict[LoadBalancer, _Told] = {}
        self._whole = True
        self._started = time.monotonic()

    async def run(self) -> None:
        """Reports come whenever the clock shows a whole INTERVAL, the same in all processes."""
        try:
            while True:
                for pool in self._balancer.current():
                    if pool.stats:
                        pool.stats.events.on_change = self._news.set
                if not self._channel.busy:
                    self._report()
                self._news.clear()
                await asyncio.sleep(AT_ONCE)
                now = time.monotonic()
                try:
                    async with asyncio.timeout(INTERVAL - now % INTERVAL):
                        await self._news.wait()
                except TimeoutError:
                    pass
        finally:
            self._channel.close()

    def _asked(self, message: Ask | Drain) -> None:
        if isinstance(message, Ask):
            self._whole = True
            self._news.set()
            return
        for pool in self._balancer.current():
            if display_name(pool) == message.pool and (member := pool.members.get(message.address)):
                pool.drain(member, message.drained)

    def _report(self) -> None:
        if self._whole:
            self._told.clear()
        pools = self._balancer.current()
        self._told = {it: self._told.get(it, _Told()) for it in pools}
        unrouted = self._balancer.stats if isinstance(self._balancer, Pools) else None
        clients = self._balancer.proxy.connections
        report = Report(
            Usage.own(self._number),
            self._started,
            self._whole,
            [_pool_report(it, it.stats, self._told[it], self._whole) for it in pools if it.stats],
            unrouted,
            None if clients is None else len(clients),
        )
        self._whole = False
        self._channel.send(report)


def display_name(pool: LoadBalancer) -> str:
    """What tells a pool from others in all processes."""
    return pool.name or pool.settings.alias


def _pool_report(pool: LoadBalancer, stats: Stats, told: _Told, whole: bool) -> PoolReport:
    rows = {address: Row.of(it) for address, it in pool.members.items()}
    marks = {address: it.mark for address, it in stats.members.items()}
    snapshot = pool.snapshot
    same = bool(snapshot and told.snapshot and snapshot.answers == told.snapshot.answers)
    counted = stats.without_members()
    counted.members = {address: stats.members[address] for address in changed(marks, told.marks)}
    taken = stats.events.pop_changes()
    report = PoolReport(
        name=display_name(pool),
        settings=pool.settings,
        members={address: rows[address] for address in changed(rows, told.members)},
        left=[it for it in told.members if it not in rows],
        stats=counted,
        events=list(stats.events.recent) if whole else taken,
        snapshot=None if same else snapshot,
        resolved=snapshot.when if snapshot else 0.0,
        available=pool.available,
        queued=pool.queued,
        active=pool.active,
        connections=pool.connections,
    )
    told.members, told.marks, told.snapshot = rows, marks, snapshot
    return report


def changed(now: dict[K, T], before: dict[K, T]) -> list[K]:
    """The keys whose values are not what they were."""
    return [key for key, value in now.items() if before.get(key) != value]
