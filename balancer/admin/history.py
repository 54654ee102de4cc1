"""The history of members for the status page: a name, a number, rates.

Rules, because an address may go from one container to another between two answers of DNS:
* A track is of one container. Where the name of an address changes, another track begins, with figures of its own.
* Names are looked up when a member joins, on every rise to up, and then once in EVERY samples. No answer changes
  nothing.
* An event has the name that its member had then. After a rise that is the next name in DNS.
* A drain by hand was meant for the container of its time, and ends with it.
"""

from __future__ import annotations

import logging
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Any

from balancer.admin.pool_view import View
from balancer.members.ejection import Ejection
from balancer.members.health import State
from balancer.members.member import Member
from balancer.telemetry.events import Event
from balancer.telemetry.latencies import Classes, percentile
from balancer.telemetry.state_log import of_pool
from balancer.telemetry.stats import Stats, Tally
from balancer.types import Address

log = logging.getLogger(__name__)

Json = dict[str, Any]

# Samples of the chart; samples of latencies and shares; samples after which a name is looked up again, where that
# makes no more than LOOKUPS a sample. (A lookup costs 0.4 ms of CPU time.)
CHART = 120
LATELY = 10
EVERY = 30
LOOKUPS = 32

NOTHING: Mapping[int, int] = {}
NO_DURATIONS = array("I")
NO_TALLY = Tally()


class RateWindow:
    """Changes of one tally. ``rates``: requests a second, one for each of the last CHART samples."""

    __slots__ = ("_classes", "_count", "_lately", "rates")

    def __init__(self, tally: Tally | None = None) -> None:
        self.rates: deque[float] = deque(maxlen=CHART)
        # The tally at the last sample.
        self._count = tally.count if tally else 0
        self._classes: Mapping[int, int] = dict(tally.classes) if tally else NOTHING
        # Requests of each of the last LATELY samples, and their durations: classes and numbers, in turn. Dictionaries
        # would take five times the memory.
        self._lately: deque[tuple[int, array[int]]] = deque(maxlen=LATELY)

    def sample(self, tally: Tally | None, elapsed: float) -> None:
        """Take in the tally, ``elapsed`` seconds after the last time."""
        count = tally.count if tally else self._count
        new, durations = count - self._count, NO_DURATIONS
        if tally and new:
            before, self._classes = self._classes, dict(tally.classes)
            durations = array("I")
            for index, number in self._classes.items():
                if number != before.get(index):
                    durations.extend((index, number - before.get(index, 0)))
        self._count = count
        self._lately.append((new, durations))
        self.rates.append(rounded(new / elapsed))

    @property
    def rate(self) -> float:
        """Requests a second in the last sample."""
        return self.rates[-1] if self.rates else 0

    def lately(self) -> tuple[int, float | None, float | None]:
        """Return the requests of the last LATELY samples, and their median and p99 in milliseconds."""
        total: Classes = defaultdict(int)
        for _, durations in self._lately:
            for index, number in zip(durations[::2], durations[1::2], strict=True):
                total[index] += number
        requests = sum(new for new, _ in self._lately)
        if not total:
            return requests, None, None
        p50, p99 = (rounded(percentile(total, share) * 1000, 4) for share in (0.5, 0.99))
        return requests, p50, p99


class MemberHistory:
    """A container on pages: ``number`` is never used again, as addresses are.

    ``earlier``: counts of its address before it came. ``name``: the last one in DNS, as of ``named_at``, and
    ``is_current``: whether it is that of the container which has come up last. ``seen``: the last state of
    the member, and its beginning.
    """

    __slots__ = ("earlier", "gauge", "gone_at", "is_current", "member", "name", "named_at", "number", "seen")

    def __init__(self, number: int, member: Member, tally: Tally | None = None) -> None:
        self.number = number
        self.member = member
        self.gauge = RateWindow(tally)
        self.earlier = NO_TALLY
        if tally:
            self.earlier = Tally()
            self.earlier.add(tally)
        self.name = ""
        self.named_at = 0.0
        self.is_current = False
        self.seen = member.state, member.since
        self.gone_at = 0  # the sample by which it had gone

    def counted(self, tally: Tally | None) -> tuple[int, int, dict[str, int]]:
        """Return its requests, those that failed, and its failed attempts by reason, of the counts of its address."""
        if tally is None:
            return 0, 0, {}
        before = self.earlier
        attempts = {
            reason: new
            for reason, number in tally.failed_attempts.items()
            if (new := number - before.failed_attempts.get(reason, 0)) > 0
        }
        return tally.count - before.count, tally.failed - before.failed, attempts


class Pool:
    """A pool with its history. ``name``: for display."""

    def __init__(self, name: str, view: View, stats: Stats, now: float) -> None:
        self.name = name
        self.view = view
        self.stats = stats
        self.total = RateWindow()
        self.refused: deque[float] = deque(maxlen=CHART)
        self.tracks: dict[Member, MemberHistory] = {}
        self.gone: list[MemberHistory] = []
        # Events that pages have yet to get, by their numbers.
        self._changed: dict[int, Event] = {}
        self.samples = 0
        self._refused_before = refusals(stats)
        self._sampled = now
        # Rows that pages were last sent, by the member's number.
        self.sent_members: dict[int, list[Any]] = {}
        self.sent_values: dict[int, list[Any]] = {}

    def sample(self, now: float) -> None:
        """Take a sample of all figures. ``now``: a reading of the clock in seconds."""
        elapsed = max(now - self._sampled, 0.001)
        self._sampled = now
        self.samples += 1
        self.total.sample(self.stats.total, elapsed)
        refused = refusals(self.stats)
        self.refused.append(rounded((refused - self._refused_before) / elapsed))
        self._refused_before = refused
        for track in self.tracks.values():
            track.gauge.sample(self.stats.members.get(track.member.address), elapsed)
        # Members that are gone stay in the chart until they have moved out of it.
        self.gone = [track for track in self.gone if self.samples - track.gone_at < CHART]

    def take_changes(self, numbers: Iterator[int]) -> list[MemberHistory]:
        """Take over changes of members; return those whose containers' names are to be looked up."""
        unnamed = self._take_events()
        members = self.view.members
        for member in [member for member in self.tracks if members.get(member.address) is not member]:
            track = self.tracks.pop(member)
            successor = members.get(member.address)
            self._name_events(unnamed.get(member.address, ()), track, successor.since if successor else inf)
            self._put_away(track)
        unnamed_tracks = []
        for member in members.values():
            current = self.tracks.get(member)
            if current is None:
                current = self.tracks[member] = MemberHistory(next(numbers), member)
                unnamed_tracks.append(current)
            elif current.seen != (member.state, member.since):
                before, current.seen = current.seen[0], (member.state, member.since)
                if member.state is State.UP:
                    unnamed_tracks.append(current)
                    if before is not State.JOINING:
                        self._name_events(unnamed.get(member.address, ()), current, member.since)
                        current.is_current = False
        for address, events in unnamed.items():
            if address not in members:
                self._name_events(events, self._last_of(address), inf)
            elif (track := self.tracks[members[address]]).is_current:
                self._name_events(events, track, inf)
        return unnamed_tracks

    def due(self) -> list[MemberHistory]:
        """Return those whose names are to be looked up again now: each in its turn, so that there is no burst."""
        every = max(EVERY, len(self.tracks) // LOOKUPS)
        return [track for track in self.tracks.values() if (track.number + self.samples) % every == 0]

    def take_name(self, track: MemberHistory, name: str, looked_up_at: float, numbers: Iterator[int]) -> bool:
        """Take in a name from DNS, looked up at ``looked_up_at`` or later; return whether it is new."""
        is_new = not track.is_current or track.name != name
        if track.name and track.name != name:
            track = self._replace(track, name, next(numbers))
        track.name, track.named_at, track.is_current = name, looked_up_at, True
        return is_new

    def pop_changes(self) -> list[Event]:
        """Return the events that are new, have counted on or have got a name since the last call, the oldest first."""
        changed, self._changed = self._changed, {}
        return [changed[number] for number in sorted(changed)]

    def _replace(self, track: MemberHistory, name: str, number: int) -> MemberHistory:
        member = track.member
        pool = of_pool(self.view.name)
        log.info("%s%s is the container %s now, and was %s", pool, member.address, name, track.name)
        self._put_away(track)
        made = self.tracks[member] = MemberHistory(number, member, self.stats.members.get(member.address))
        if member.drained and member.drained_since < max(track.named_at, member.since):
            self.view.drain(member, False)
        return made

    def _put_away(self, track: MemberHistory) -> None:
        if any(track.gauge.rates):
            track.gone_at = self.samples
            self.gone.append(track)

    def _take_events(self) -> Mapping[Address, list[Event]]:
        """Return events without a name, by their members."""
        events = self.stats.events
        self._changed |= {change.number: change for change in events.pop_changes()}
        unnamed: defaultdict[Address, list[Event]] = defaultdict(list)
        for event in events.recent:
            if event.member and event.name is None:
                unnamed[event.member].append(event)
        return unnamed

    def _last_of(self, address: Address) -> MemberHistory | None:
        return next((track for track in reversed(self.gone) if track.member.address == address), None)

    def _name_events(self, events: Iterable[Event], track: MemberHistory | None, end: float) -> None:
        """Give the events of a container, which are those before ``end``, its name, or none for good."""
        for event in events:
            if event.name is None and event.when < end:
                event.name = track.name if track and track.is_current else ""
                if event.name:
                    self._changed[event.number] = event

    def member_rows(self, wall: Callable[[float], float]) -> dict[int, list[Any]]:
        """Return rows of members: number, address, name, state, reason, since, drained since (0: not), ejection.

        An ejection is 0 for none, or kind, reason, since, until and whether the trial has begun.
        """
        return {
            track.number: [
                track.number,
                str(member.address),
                track.name,
                member.state.value,
                member.reason,
                round(wall(member.since), 1),
                round(wall(member.drained_since), 1) if member.drained else 0,
                _ejection_row(member.ejection, wall) if member.ejection else 0,
            ]
            for member, track in self.tracks.items()
        }

    def value_rows(self) -> dict[int, list[Any]]:
        """Return rows: number, in flight, requests a second, recent ones, p50, p99, in all, failed, and so on.

        The last two are failed attempts, and the limit or None.
        """
        rows = {}
        for member, track in self.tracks.items():
            requests, failed, failed_attempts = track.counted(self.stats.members.get(member.address))
            rows[track.number] = [
                track.number,
                member.in_flight,
                track.gauge.rate,
                *track.gauge.lately(),
                requests,
                failed,
                sum(failed_attempts.values()),
                None if member.limit == inf else int(member.limit),
            ]
        return rows

    def summary(self) -> Json:
        """Return the figures of the whole pool."""
        total = self.stats.total
        recent, p50, p99 = self.total.lately()
        return {
            "rate": self.total.rate,
            "refused_rate": self.refused[-1] if self.refused else 0,
            "recent": recent,
            "p50_ms": p50,
            "p99_ms": p99,
            "in_flight": sum(member.in_flight for member in self.tracks),
            "queued": self.view.queued,
            "queued_ever": self.stats.queued,
            "requests": total.count,
            "failed": total.failed,
            "refused": self._refused_before,
            "retries": self.stats.retries,
            "failed_attempts": sum(total.failed_attempts.values()),
            "available": self.view.available,
        }


def _ejection_row(ejection: Ejection, wall: Callable[[float], float]) -> list[Any]:
    since, until = round(wall(ejection.since), 1), round(wall(ejection.until), 1)
    return [ejection.kind.value, ejection.reason, since, until, ejection.on_trial]


def refusals(stats: Stats) -> int:
    """Return the requests that the balancer answered itself or broke off; not those whose client left."""
    return sum(stats.errors.values()) - stats.errors["client_gone"]


def rounded(number: float, digits: int = 1) -> float:
    """Return a rounded number, without a fraction where there is none, so that it takes few bytes."""
    number = round(number, digits)
    return int(number) if number == int(number) else number
