"""Reports of a process that serves, and the messages to it from the process that shows all of them."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, TypeVar

from balancer.admin.ipc import Channel
from balancer.admin.pool_view import Usage
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Endpoint, Snapshot
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import State
from balancer.members.member import Member
from balancer.routing.pools import Pools
from balancer.telemetry.client_limits import ClientLimits
from balancer.telemetry.events import Event
from balancer.telemetry.stats import Stats
from balancer.types import Address
from balancer.upstream.base import Connections

# Seconds between two reports. A change of members is reported earlier, MIN_REPORT_INTERVAL after the last at least.
INTERVAL = 1.0
MIN_REPORT_INTERVAL = 0.1

K = TypeVar("K")
T = TypeVar("T")


class MemberRow(NamedTuple):
    """A member in a report; the fields are those of ``Member``."""

    endpoint: Endpoint
    since: float
    state: State
    reason: str
    in_flight: int
    requests: int
    drained: bool
    drained_since: float
    limit: float = inf

    @classmethod
    def of(cls, member: Member) -> MemberRow:
        """Return the row of a member."""
        return cls(
            member.endpoint, member.since, member.state, member.reason, member.in_flight, member.requests,
            member.drained, member.drained_since, member.limit,
        )  # fmt: skip


@dataclass
class PoolReport:
    """The report of one process on a pool. ``members`` and those of ``stats``: changed since the last report.

    ``left``: members that are gone. ``snapshot``: None if its answers are those of the one before; taken at
    ``resolved``. ``events``: those that are new or have counted on.
    """

    name: str
    settings: Settings
    members: dict[Address, MemberRow]
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
    """A report of one process. ``whole``: with all figures, not changes alone. ``clients``: open connections of
    clients.

    ``unrouted``: figures of requests that no route led to a pool. ``started``: when the process began, a reading of the
    monotonic clock, which is the same for all processes.
    """

    usage: Usage
    started: float
    whole: bool
    pools: list[PoolReport]
    unrouted: Stats | None
    clients: int | None


@dataclass
class FullReportRequest:
    """A request for a whole report."""


@dataclass
class Drain:
    """An order to give a member no more requests, or requests again."""

    pool: str
    address: Address
    drained: bool


@dataclass
class _LastReport:
    """The last report on a pool, with the fingerprints of its tallies."""

    members: dict[Address, MemberRow] = field(default_factory=dict)
    fingerprints: dict[Address, tuple[float, ...]] = field(default_factory=dict)
    snapshot: Snapshot | None = None


class Reporter:
    """Reports on process ``number`` through a channel: ``run`` until cancelled. ``limits``: those of its clients."""

    def __init__(self, number: int, sock: socket.socket, balancer: LoadBalancer | Pools, limits: ClientLimits) -> None:
        self._number = number
        self._balancer = balancer
        self._limits = limits
        self._channel = Channel(sock, self._receive)
        self._due = asyncio.Event()
        self._last: dict[LoadBalancer, _LastReport] = {}
        self._whole = True
        self._started = time.monotonic()

    async def run(self) -> None:
        """Report whenever the clock shows a whole INTERVAL, the same in all processes, and after changes of members."""
        try:
            while True:
                for pool in self._balancer.current():
                    if pool.stats:
                        pool.stats.events.on_change = self._due.set
                if not self._channel.is_busy:
                    self._report()
                self._due.clear()
                await asyncio.sleep(MIN_REPORT_INTERVAL)
                now = time.monotonic()
                try:
                    async with asyncio.timeout(INTERVAL - now % INTERVAL):
                        await self._due.wait()
                except TimeoutError:
                    pass
        finally:
            self._channel.close()

    def _receive(self, message: FullReportRequest | Drain) -> None:
        if isinstance(message, FullReportRequest):
            self._whole = True
            self._due.set()
            return
        for pool in self._balancer.current():
            if display_name(pool) == message.pool and (member := pool.members.get(message.address)):
                pool.drain(member, message.drained)

    def _report(self) -> None:
        if self._whole:
            self._last.clear()
        pools = self._balancer.current()
        self._last = {pool: self._last.get(pool, _LastReport()) for pool in pools}
        unrouted = self._balancer.stats if isinstance(self._balancer, Pools) else None
        clients = self._balancer.proxy.connections
        report = Report(
            Usage.own(self._limits, self._number),
            self._started,
            self._whole,
            [_pool_report(pool, pool.stats, self._last[pool], self._whole) for pool in pools if pool.stats],
            unrouted,
            None if clients is None else len(clients),
        )
        self._whole = False
        self._channel.send(report)


def display_name(pool: LoadBalancer) -> str:
    """Return the name of a pool that is the same in all processes."""
    return pool.name or pool.settings.alias


def _pool_report(pool: LoadBalancer, stats: Stats, last: _LastReport, whole: bool) -> PoolReport:
    rows = {address: MemberRow.of(member) for address, member in pool.members.items()}
    fingerprints = {address: tally.fingerprint for address, tally in stats.members.items()}
    snapshot = pool.snapshot
    same = bool(snapshot and last.snapshot and snapshot.answers == last.snapshot.answers)
    counted = stats.without_members()
    counted.members = {address: stats.members[address] for address in changed(fingerprints, last.fingerprints)}
    taken = stats.events.pop_changes()
    report = PoolReport(
        name=display_name(pool),
        settings=pool.settings,
        members={address: rows[address] for address in changed(rows, last.members)},
        left=[address for address in last.members if address not in rows],
        stats=counted,
        events=list(stats.events.recent) if whole else taken,
        snapshot=None if same else snapshot,
        resolved=snapshot.when if snapshot else 0.0,
        available=pool.available,
        queued=pool.queued,
        active=pool.active,
        connections=pool.connections,
    )
    last.members, last.fingerprints, last.snapshot = rows, fingerprints, snapshot
    return report


def changed(now: dict[K, T], before: dict[K, T]) -> list[K]:
    """Return the keys whose values have changed."""
    return [key for key, value in now.items() if before.get(key) != value]
