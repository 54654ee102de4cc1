"""The sum of the reports of several processes, for the status page, the API and the metrics.

Rules:
* Counts are added up. Counts of a process that has ended stay in them, so that they never fall.
* A member is there as long as any process has it. Its state is the worst of all processes, without those that still
  wait for a first probe. Where they differ, the reason has the number of processes in that state.
* Events with the same words within WINDOW seconds are one, with the counts of all.
* Events at the start of a process that replaces another are left out.
* A drain is for all processes, also those that come later, until the member leaves.
* A process that has not reported for STALE seconds keeps its counts, but has no requests and no states.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from balancer.admin.ipc import Channel
from balancer.admin.pool_view import Usage
from balancer.admin.process_report import INTERVAL, Drain, FullReportRequest, MemberRow, PoolReport, Report
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Snapshot
from balancer.members.health import State
from balancer.members.member import Member
from balancer.telemetry.events import WINDOW, Event, EventKind, Events, Level
from balancer.telemetry.state_log import log_drain
from balancer.telemetry.stats import Stats
from balancer.types import Address, Clock
from balancer.upstream.base import Connections

log = logging.getLogger(__name__)

# Seconds without a report after which a process counts as dead, and in which the events of a new one are not new.
STALE = 5.0
CATCH_UP = 5.0

# From the best to the worst.
_STATES = (State.UP, State.JOINING, State.SUSPECT, State.DRAINING, State.DOWN, State.LEAVING)
_LEVELS = (Level.GOOD, Level.INFO, Level.WARNING, Level.BAD)


@dataclass
class ProcessPool:
    """The part of one process in a pool."""

    settings: Settings
    members: dict[Address, MemberRow] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)
    snapshot: Snapshot | None = None
    available: int = 0
    queued: int = 0
    active: int = 0
    connections: Connections | None = None

    def take(self, report: PoolReport) -> bool:
        """Take in a report; return whether members have come, gone or changed their state."""
        before = {address: (member.state, member.drained) for address, member in self.members.items()}
        for address in report.left:
            self.members.pop(address, None)
        self.members |= report.members
        counted = {address: tally for address, tally in self.stats.members.items() if address in self.members}
        self.stats = report.stats
        self.stats.members = counted | report.stats.members
        if report.snapshot:
            self.snapshot = report.snapshot
        elif self.snapshot:
            self.snapshot = replace(self.snapshot, when=report.resolved)
        self.settings = report.settings
        self.available, self.queued, self.active = report.available, report.queued, report.active
        self.connections = report.connections
        return before != {address: (member.state, member.drained) for address, member in self.members.items()}


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
        # By process and the number that it has there: the event, and its part of the counts.
        self._parts: dict[tuple[int, int], tuple[Event, tuple[int, int, int]]] = {}
        self._same: dict[tuple[EventKind, Address | None, str], tuple[Event, set[int]]] = {}

    def take(self, pid: int, event: Event) -> None:
        """Take in an event of a process, or its new counts."""
        known = self._parts.get((pid, event.number))
        if known is None:
            made = self._find(pid, event)
            before = (0, 0, 0)
        else:
            made, before = known
        counts = event.moved, event.lost, event.refused
        made.moved += counts[0] - before[0]
        made.lost += counts[1] - before[1]
        made.refused += counts[2] - before[2]
        made.level = max(made.level, event.level, key=_LEVELS.index)
        self._changed[made.number] = made
        self._parts[pid, event.number] = made, counts

    def _find(self, pid: int, event: Event) -> Event:
        key = event.kind, event.member, event.words
        made, processes = self._same.get(key, (None, set[int]()))
        if made is None or pid in processes or abs(event.when - made.when) >= WINDOW:
            made, processes = self._add(event.when, event.kind, event.level, event.words, event.member), set()
            if event.kind in (EventKind.DNS, EventKind.JOINED, EventKind.LEFT):
                self.dns.append(made)
            self._same[key] = made, processes
        processes.add(pid)
        return made

    def forget(self) -> None:
        """Forget the parts of events that are no longer kept."""
        kept = {event.number for event in self.recent}
        self._parts = {key: entry for key, entry in self._parts.items() if entry[0].number in kept}
        self._same = {key: entry for key, entry in self._same.items() if entry[0].number in kept}


class MergedPool:
    """A pool in all processes: a ``View``."""

    def __init__(self, aggregator: Aggregator, key: str, settings: Settings) -> None:
        self._aggregator = aggregator
        self._key = key
        self.settings = settings
        self.clock: Clock = aggregator.clock
        self.members: Mapping[Address, Member] = {}
        # Those that are up in all processes; none while a process has not reported.
        self.up_everywhere: frozenset[Address] = frozenset()
        self.stats = Stats()
        self.events = self.stats.events = MergedEvents()
        self.snapshot: Snapshot | None = None
        self.available = 0
        self.queued = 0
        self.active = 0
        self.connections: Connections | None = None
        # Counts of processes that have ended.
        self._past = Stats()
        # Members that were drained by hand, or undrained.
        self.drains: dict[Address, bool] = {}

    @property
    def name(self) -> str:
        several = len(self._aggregator.current()) > 1
        return self._key if several or self._key != self.settings.alias else ""

    @property
    def clients(self) -> Collection[object] | None:
        return self._aggregator.clients

    def drain(self, member: Member, drained: bool = True) -> None:
        log_drain(self.name, member, drained, ", in all processes")
        self.drains[member.address] = member.drained = drained
        self._aggregator.broadcast(Drain(self._key, member.address, drained))

    def retire(self, part: ProcessPool) -> None:
        """Keep the counts of a process that has ended."""
        self._past.add(part.stats)

    def merge(self, living: Sequence[ProcessPool], counted: Sequence[ProcessPool], processes: int) -> None:
        """Take in the parts of ``processes``: ``counted`` are all, ``living`` those that have reported of late."""
        self.settings = replace(counted[0].settings, queue_max=sum(part.settings.queue_max for part in counted))
        self._merge_members(living)
        states = [{address for address, row in part.members.items() if row.state is State.UP} for part in living]
        self.up_everywhere = frozenset(set.intersection(*states) if len(states) == processes > 0 else ())
        for address in [address for address in self._past.members if address not in self.members]:
            self._past.forget(address)
        self.stats.count_anew([self._past, *(part.stats for part in counted)])
        self.snapshot = max(
            (part.snapshot for part in living if part.snapshot), key=lambda snapshot: snapshot.when, default=None
        )
        self.available = min((part.available for part in living), default=0)
        self.queued = sum(part.queued for part in living)
        self.active = sum(part.active for part in living)
        known = [part.connections for part in counted if part.connections]
        self.connections = Connections(*map(sum, zip(*known, strict=True))) if known else None

    def _merge_members(self, living: Sequence[ProcessPool]) -> None:
        rows: dict[Address, list[MemberRow]] = {}
        for part in living:
            for address, row in part.members.items():
                rows.setdefault(address, []).append(row)
        members = {
            address: self.members.get(address) or Member(found[0].endpoint, 0.0) for address, found in rows.items()
        }
        for address, member in members.items():
            _merge_rows(member, rows[address])
        self.drains = {address: drain for address, drain in self.drains.items() if address in members}
        for address, drained in self.drains.items():
            members[address].drained = drained
        self.members = members


def _merge_rows(member: Member, rows: Sequence[MemberRow]) -> None:
    """Set a member to what rows of several processes amount to."""
    judges = [row for row in rows if row.state is not State.JOINING] or rows
    member.state = max((row.state for row in judges), key=_STATES.index)
    agreeing = [row for row in judges if row.state is member.state]
    # A member is up since the last process has found it so, and in any other state since the first has.
    decisive = (max if member.state is State.UP else min)(agreeing, key=lambda row: row.since)
    member.endpoint, member.since, member.reason = decisive.endpoint, decisive.since, decisive.reason
    if len(agreeing) < len(judges):
        member.reason += f" (in {len(agreeing)} of {len(judges)} processes)"
    member.in_flight = sum(row.in_flight for row in rows)
    member.requests = sum(row.requests for row in rows)
    member.limit = sum(row.limit for row in rows)
    drained = [row for row in rows if row.drained]
    member.drained = bool(drained)
    member.drained_since = min(row.drained_since for row in drained or rows)


class Aggregator:
    """Takes in the reports of ``channels``, one for each process; ``current`` is their sum.

    ``close`` ends that.
    """

    def __init__(self, channels: Sequence[socket.socket], clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._began = clock()
        self._channels = [Channel(sock, self._receive) for sock in channels]
        self._pools: dict[str, MergedPool] = {}
        self._processes: dict[int, Process] = {}
        self._past_unrouted = Stats()
        # When the pools were last brought up to date, and whether a report has come since.
        self._merged = clock()
        self._is_outdated = False
        # The same object for all pools, because they have the listener in common.
        self.clients: Collection[object] | None = None
        self.broadcast(FullReportRequest())

    def close(self) -> None:
        """Stop taking in reports."""
        for channel in self._channels:
            channel.close()

    def broadcast(self, message: FullReportRequest | Drain) -> None:
        """Send a message to all processes."""
        for channel in self._channels:
            channel.send(message)

    def current(self) -> list[MergedPool]:
        """Return the pools, as of the last reports."""
        now = self.clock()
        if self._is_outdated or now - self._merged > INTERVAL:
            self._is_outdated, self._merged = False, now
            self._merge()
        return list(self._pools.values())

    def unrouted(self) -> Stats:
        """Return the figures of requests that no route led to a pool."""
        total = Stats()
        total.count_anew(
            stats
            for stats in (self._past_unrouted, *(process.unrouted for process in self._processes.values()))
            if stats
        )
        return total

    def processes(self) -> list[Usage]:
        """Return the processes that have reported of late."""
        return [process.usage for process in self._living()]

    def _living(self) -> list[Process]:
        now = self.clock()
        return [process for _, process in sorted(self._processes.items()) if now - process.reported < STALE]

    def _merge(self) -> None:
        living = self._living()
        keys = dict.fromkeys(key for process in living for key in process.parts)
        # While no process lives, the last figures are better than none.
        self._pools = {key: self._pools[key] for key in keys} or self._pools
        for key, pool in self._pools.items():
            counted = [process.parts[key] for process in self._processes.values() if key in process.parts]
            parts = [process.parts[key] for process in living if key in process.parts]
            pool.merge(parts, counted, len(self._channels))
        known = [process.clients for process in living if process.clients is not None]
        self.clients = range(sum(known)) if known else None

    def _receive(self, report: Report) -> None:
        number = report.usage.number
        process = self._processes.get(number)
        if process is None or process.usage.pid != report.usage.pid:
            if not report.whole:
                # The process that was here before has read the beginning.
                self._channels[number].send(FullReportRequest())
                return
            if process:
                log.info("process %d is %d now", number, report.usage.pid)
                self._retire(process)
            process = self._processes[number] = Process(report.usage, report.started, self.clock())
        process.usage, process.reported = report.usage, self.clock()
        process.clients, process.unrouted = report.clients, report.unrouted
        changed = list(process.parts) != [pool.name for pool in report.pools]
        for key in process.parts.keys() - {pool.name for pool in report.pools}:
            self._retire_pool(key, process.parts.pop(key))
        for pool_report in report.pools:
            changed |= self._take(process, pool_report)
        self._is_outdated = True
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
        """Whether an event is one that the others reported before this process began."""
        repeats = (
            event.kind in (EventKind.DNS, EventKind.JOINED, EventKind.STATE) and event.when < process.started + CATCH_UP
        )
        return repeats and process.started > self._began + CATCH_UP

    def _retire(self, process: Process) -> None:
        """Keep the counts of a process that has ended."""
        for key, part in process.parts.items():
            self._retire_pool(key, part)
        if process.unrouted:
            self._past_unrouted.add(process.unrouted)

    def _retire_pool(self, key: str, part: ProcessPool) -> None:
        if pool := self._pools.get(key):
            pool.retire(part)
