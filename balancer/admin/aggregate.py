"""The sum of what several processes report, as the status page, the API and the metrics want it.

Rules:
* Counts are added up. What a process counted that is no more stays in them, so that they never fall.
* A member is there as long as any process has it. Its state is the worst that processes know of, without those that
  only look for the first time; where they do not agree, the reason says how many say so.
* Events that say the same within WINDOW seconds are one, with the counts of all.
* What a process that took the place of another learns at its start is no news.
* A drain is for all processes, also those that come later, until the member leaves.
* A process that has not reported for STALE seconds counts on, but has no requests and no opinion.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from balancer.admin.ipc import Channel
from balancer.admin.pool_view import Usage
from balancer.admin.process_report import INTERVAL, Ask, Drain, PoolReport, Report, Row
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Snapshot
from balancer.members.health import State
from balancer.members.member import Member
from balancer.telemetry.events import WINDOW, Event, EventKind, Events, Level
from balancer.telemetry.stats import Stats
from balancer.types import Address, Clock
from balancer.upstream.base import Connections

log = logging.getLogger(__name__)

# Seconds without a report after which a process is taken for dead, and in which a new one learns what others know.
STALE = 5.0
LEARNS = 5.0

# From the best to the worst.
_STATES = (State.UP, State.JOINING, State.SUSPECT, State.DRAINING, State.DOWN, State.LEAVING)
_LEVELS = (Level.GOOD, Level.INFO, Level.WARNING, Level.BAD)


@dataclass
class ProcessPool:
    """One process's part of a pool."""

    settings: Settings
    members: dict[Address, Row] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)
    snapshot: Snapshot | None = None
    available: int = 0
    queued: int = 0
    active: int = 0
    connections: Connections | None = None

    def take(self, report: PoolReport) -> bool:
        """Bring it up to date; whether members have come, gone or changed their state."""
        before = {address: (it.state, it.drained) for address, it in self.members.items()}
        for address in report.left:
            self.members.pop(address, None)
        self.members |= report.members
        counted = {it: tally for it, tally in self.stats.members.items() if it in self.members}
        self.stats = report.stats
        self.stats.members = counted | report.stats.members
        if report.snapshot:
            self.snapshot = report.snapshot
        elif self.snapshot:
            self.snapshot = replace(self.snapshot, when=report.resolved)
        self.settings = report.settings
        self.available, self.queued, self.active = report.available, report.queued, report.active
        self.connections = report.connections
        return before != {address: (it.state, it.drained) for address, it in self.members.items()}


@dataclass
class Process:
    """A process that serves, as of its last report, which came at ``reported``."""

    usage: Usage
    started: float
    reported: float
    clients: int | None = None
    unrouted: Stats | None = None
    parts: dict[str, ProcessPool] = field(default_factory=dict)


class MergedEvents(Events):
    """The events of all processes, each once."""

    def __init__(self) -> None:
        super().__init__()
        # By process and the number that it has there: the event, and what it has added to its counts.
        self._parts: dict[tuple[int, int], tuple[Event, tuple[int, int, int]]] = {}
        self._same: dict[tuple[EventKind, Address | None, str], tuple[Event, set[int]]] = {}

    def take(self, pid: int, told: Event) -> None:
        """Take up an event of a process, or what has become of it."""
        known = self._parts.get((pid, told.number))
        if known is None:
            made = self._find(pid, told)
            before = (0, 0, 0)
        else:
            made, before = known
        counts = told.moved, told.lost, told.refused
        made.moved += counts[0] - before[0]
        made.lost += counts[1] - before[1]
        made.refused += counts[2] - before[2]
        made.level = max(made.level, told.level, key=_LEVELS.index)
        self._changed[made.number] = made
        self._parts[pid, told.number] = made, counts

    def _find(self, pid: int, told: Event) -> Event:
        key = told.kind, told.member, told.words
        made, processes = self._same.get(key, (None, set[int]()))
        if made is None or pid in processes or abs(told.when - made.when) >= WINDOW:
            made, processes = self._add(told.when, told.kind, told.level, told.words, told.member), set()
            if told.kind in (EventKind.DNS, EventKind.JOINED, EventKind.LEFT):
                self.dns.append(made)
            self._same[key] = made, processes
        processes.add(pid)
        return made

    def forget(self) -> None:
        """Let go of what is no longer kept."""
        kept = {it.number for it in self.recent}
        self._parts = {key: it for key, it in self._parts.items() if it[0].number in kept}
        self._same = {key: it for key, it in self._same.items() if it[0].number in kept}


class MergedPool:
    """A pool in all processes: what a ``View`` is. ``parts``: by process, those that are alive."""

    def __init__(self, hub: Aggregator, key: str, settings: Settings) -> None:
        self._hub = hub
        self._key = key
        self.settings = settings
        self.clock: Clock = hub.clock
        self.members: Mapping[Address, Member] = {}
        self.stats = Stats()
        self.events = self.stats.events = MergedEvents()
        self.snapshot: Snapshot | None = None
        self.available = 0
        self.queued = 0
        self.active = 0
        self.connections: Connections | None = None
        # What those have counted that are no more.
        self._past = Stats()
        # Members that are drained by hand, as of the last look.
        self.drains: dict[Address, bool] = {}

    @property
    def name(self) -> str:
        return self._key if self._key != self.settings.alias else ""

    @property
    def clients(self) -> Collection[object] | None:
        return self._hub.clients

    def drain(self, member: Member, drained: bool = True) -> None:
        log.info("%s %s by hand, in all processes", member.address, "drained" if drained else "no longer drained")
        self.drains[member.address] = member.drained = drained
        self._hub.tell(Drain(self._key, member.address, drained))

    def retire(self, part: ProcessPool) -> None:
        """A process is no more: what it has counted stays."""
        self._past.add(part.stats)

    def merge(self, living: Sequence[ProcessPool], counted: Sequence[ProcessPool]) -> None:
        """Take in what processes say now: ``counted`` are all, ``living`` those that have reported of late."""
        self.settings = replace(counted[0].settings, queue_max=sum(it.settings.queue_max for it in counted))
        self._merge_members(living)
        for address in [it for it in self._past.members if it not in self.members]:
            self._past.forget(address)
        self.stats.count_anew([self._past, *(it.stats for it in counted)])
        self.snapshot = max((it.snapshot for it in living if it.snapshot), key=lambda it: it.when, default=None)
        self.available = min((it.available for it in living), default=0)
        self.queued = sum(it.queued for it in living)
        self.active = sum(it.active for it in living)
        known = [it.connections for it in counted if it.connections]
        self.connections = Connections(*map(sum, zip(*known, strict=True))) if known else None

    def _merge_members(self, living: Sequence[ProcessPool]) -> None:
        rows: dict[Address, list[Row]] = {}
        for part in living:
            for address, row in part.members.items():
                rows.setdefault(address, []).append(row)
        members = {address: self.members.get(address) or Member(it[0].endpoint, 0.0) for address, it in rows.items()}
        for address, member in members.items():
            _show(member, rows[address])
        self.drains = {address: it for address, it in self.drains.items() if address in members}
        for address, drained in self.drains.items():
            members[address].drained = drained
        self.members = members


def _show(member: Member, rows: Sequence[Row]) -> None:
    """Make a member say what rows of several processes say together."""
    judges = [it for it in rows if it.state is not State.JOINING] or rows
    member.state = max((it.state for it in judges), key=_STATES.index)
    agreeing = [it for it in judges if it.state is member.state]
    first = min(agreeing, key=lambda it: it.since)
    member.endpoint, member.since, member.reason = first.endpoint, first.since, first.reason
    if len(agreeing) < len(judges):
        member.reason += f" (in {len(agreeing)} of {len(judges)} processes)"
    member.in_flight = sum(it.in_flight for it in rows)
    member.requests = sum(it.requests for it in rows)
    drained = [it for it in rows if it.drained]
    member.drained = bool(drained)
    member.drained_since = min(it.drained_since for it in drained or rows)


class Aggregator:
    """Takes in the reports of ``channels``, one for each process; ``current`` is their sum.

    ``close`` when it is not wanted any more.
    """

    def __init__(self, channels: Sequence[socket.socket], clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._began = clock()
        self._channels = [Channel(it, self._got) for it in channels]
        self._pools: dict[str, MergedPool] = {}
        self._processes: dict[int, Process] = {}
        self._past_unrouted = Stats()
        # When the pools were last brought up to date, and whether anything has been reported since.
        self._merged = clock()
        self._news = False
        # The same object for all pools, because they have the listener in common.
        self.clients: Collection[object] | None = None
        self.tell(Ask())

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def tell(self, message: Ask | Drain) -> None:
        """Tell all processes."""
        for channel in self._channels:
            channel.send(message)

    def current(self) -> list[MergedPool]:
        """The pools, as of the last reports."""
        now = self.clock()
        if self._news or now - self._merged > INTERVAL:
            self._news, self._merged = False, now
            self._merge()
        return list(self._pools.values())

    def unrouted(self) -> Stats:
        """Of requests that no route led to a pool."""
        total = Stats()
        total.count_anew(it for it in (self._past_unrouted, *(it.unrouted for it in self._processes.values())) if it)
        return total

    def processes(self) -> list[Usage]:
        """Those that have reported of late."""
        return [it.usage for it in self._living()]

    def _living(self) -> list[Process]:
        now = self.clock()
        return [it for _, it in sorted(self._processes.items()) if now - it.reported < STALE]

    def _merge(self) -> None:
        living = self._living()
        keys = dict.fromkeys(key for it in living for key in it.parts)
        # While no process lives, what was known last is better than nothing.
        self._pools = {key: self._pools[key] for key in keys} or self._pools
        for key, pool in self._pools.items():
            counted = [it.parts[key] for it in self._processes.values() if key in it.parts]
            pool.merge([it.parts[key] for it in living if key in it.parts], counted)
        known = [it.clients for it in living if it.clients is not None]
        self.clients = range(sum(known)) if known else None

    def _got(self, report: Report) -> None:
        number = report.usage.number
        process = self._processes.get(number)
        if process is None or process.usage.pid != report.usage.pid:
            if not report.whole:
                # The beginning was read by the process that was here before.
                self._channels[number].send(Ask())
                return
            if process:
                log.info("process %d is %d now", number, report.usage.pid)
                self._retire(process)
            process = self._processes[number] = Process(report.usage, report.started, self.clock())
        process.usage, process.reported = report.usage, self.clock()
        process.clients, process.unrouted = report.clients, report.unrouted
        changed = list(process.parts) != [it.name for it in report.pools]
        for key in process.parts.keys() - {it.name for it in report.pools}:
            self._retire_pool(key, process.parts.pop(key))
        for it in report.pools:
            changed |= self._take(process, it)
        self._news = True
        if changed:
            for pool in self._pools.values():
                pool.events.on_change()

    def _take(self, process: Process, report: PoolReport) -> bool:
        part = process.parts.setdefault(report.name, ProcessPool(report.settings))
        changed = part.take(report)
        pool = self._pools.setdefault(report.name, MergedPool(self, report.name, report.settings))
        for event in report.events:
            if not self._is_late(process, event):
                pool.events.take(process.usage.pid, event)
        pool.events.forget()
        for address, drained in pool.drains.items():
            row = report.members.get(address)
            if row and row.drained != drained:
                self._channels[process.usage.number].send(Drain(report.name, address, drained))
        return changed

    def _is_late(self, process: Process, event: Event) -> bool:
        """Whether it is no news, because the others told it before this process began."""
        learnt = (
            event.kind in (EventKind.DNS, EventKind.JOINED, EventKind.STATE) and event.when < process.started + LEARNS
        )
        return learnt and process.started > self._began + LEARNS

    def _retire(self, process: Process) -> None:
        """It is no more: what it has counted stays."""
        for key, part in process.parts.items():
            self._retire_pool(key, part)
        if process.unrouted:
            self._past_unrouted.add(process.unrouted)

    def _retire_pool(self, key: str, part: ProcessPool) -> None:
        if pool := self._pools.get(key):
            pool.retire(part)
