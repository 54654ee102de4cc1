"""What the status page knows of members beyond what the pool knows itself: a name, a number, how figures move.

Rules, because an address may go from one container to another between two answers of DNS:
* A track is of one container. Where the name of an address changes, another track begins, with figures of its own.
* Names are asked for when a member joins, on every rise to up, and then once in EVERY samples. No answer changes
  nothing.
* An event has the name that its member had then. Since a rise that is the next name that DNS says.
* A drain by hand was meant for the container of its time, and ends with it.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Any

from balancer.admin.pool_view import View
from balancer.members.health import State
from balancer.members.member import Member
from balancer.telemetry.events import Event
from balancer.telemetry.stats import BOUNDS, Stats, Tally, percentile
from balancer.types import Address

log = logging.getLogger(__name__)

Json = dict[str, Any]

# Samples of the chart; samples that latencies and shares are made of; samples after which a name is asked for again,
# where that makes no more than so many questions a sample. (A question costs 0.4 ms of CPU time.)
CHART = 120
LATELY = 10
EVERY = 30
QUESTIONS = 32

NOTHING = (0,) * (len(BOUNDS) + 1)
NO_TALLY = Tally()


class RateWindow:
    """How one tally moves. ``rates``: requests a second, one for each of the last CHART samples."""

    __slots__ = ("_past", "rates")

    def __init__(self, tally: Tally | None = None) -> None:
        self.rates: deque[float] = deque(maxlen=CHART)
        begin = (tuple(tally.buckets), tally.count) if tally else (NOTHING, 0)
        self._past: deque[tuple[tuple[int, ...], int]] = deque([begin], maxlen=LATELY + 1)

    def sample(self, tally: Tally | None, elapsed: float) -> None:
        """Take in what the tally says, ``elapsed`` seconds after the last time."""
        last = self._past[-1]
        count = tally.count if tally else last[1]
        now = last if tally is None or count == last[1] else (tuple(tally.buckets), count)
        self._past.append(now)
        self.rates.append(rounded((count - last[1]) / elapsed))

    @property
    def rate(self) -> float:
        return self.rates[-1] if self.rates else 0

    def lately(self) -> tuple[int, float | None, float | None]:
        """Requests of the last LATELY samples, and their median and p99 in milliseconds."""
        (before, count_before), (now, count_now) = self._past[0], self._past[-1]
        if count_now == count_before:
            return 0, None, None
        buckets = [b - a for a, b in zip(before, now, strict=True)]
        p50, p99 = (rounded(percentile(buckets, it) * 1000, 2) for it in (0.5, 0.99))
        return count_now - count_before, p50, p99


class MemberHistory:
    """One container as pages know it: ``number`` is never used again, as addresses are.

    ``earlier``: what had been counted at its address before it came. ``name``: the last that DNS said, as of
    ``named_at``, and ``sure``: whether it is that of the container which has come up last. ``seen``: the last state of
    the member, and its beginning.
    """

    __slots__ = ("earlier", "gauge", "gone_at", "member", "name", "named_at", "number", "seen", "sure")

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
        self.sure = False
        self.seen = member.state, member.since
        self.gone_at = 0  # the sample at which it was no longer there

    def counted(self, tally: Tally | None) -> tuple[int, int, dict[str, int]]:
        """Its requests, those that failed, and its failed attempts by reason, of what is counted for its address."""
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
    """What is known of a pool beyond what it knows itself. ``name``: what it is called."""

    def __init__(self, name: str, view: View, stats: Stats, now: float) -> None:
        self.name = name
        self.view = view
        self.stats = stats
        self.total = RateWindow()
        self.refused: deque[float] = deque(maxlen=CHART)
        self.tracks: dict[Member, MemberHistory] = {}
        self.gone: list[MemberHistory] = []
        # The events that pages have yet to see, by their numbers.
        self._changed: dict[int, Event] = {}
        self.samples = 0
        self._refused_before = refusals(stats)
        self._sampled = now
        # What pages were last sent, by the member's number.
        self.sent_members: dict[int, list[Any]] = {}
        self.sent_values: dict[int, list[Any]] = {}

    def sample(self, now: float) -> None:
        elapsed = max(now - self._sampled, 0.001)
        self._sampled = now
        self.samples += 1
        self.total.sample(self.stats.total, elapsed)
        refused = refusals(self.stats)
        self.refused.append(rounded((refused - self._refused_before) / elapsed))
        self._refused_before = refused
        for track in self.tracks.values():
            track.gauge.sample(self.stats.members.get(track.member.address), elapsed)
        # What is gone stays in the chart until it has moved out of it.
        self.gone = [it for it in self.gone if self.samples - it.gone_at < CHART]

    def follow(self, numbers: Iterator[int]) -> list[MemberHistory]:
        """Take up what members have done; returns those whose containers are to be asked for their names."""
        unnamed = self._take_events()
        members = self.view.members
        for member in [it for it in self.tracks if members.get(it.address) is not it]:
            track = self.tracks.pop(member)
            successor = members.get(member.address)
            self._name_events(unnamed.get(member.address, ()), track, successor.since if successor else inf)
            self._put_away(track)
        asked = []
        for member in members.values():
            known = self.tracks.get(member)
            if known is None:
                known = self.tracks[member] = MemberHistory(next(numbers), member)
                asked.append(known)
            elif known.seen != (member.state, member.since):
                before, known.seen = known.seen[0], (member.state, member.since)
                if member.state is State.UP:
                    asked.append(known)
                    if before is not State.JOINING:
                        self._name_events(unnamed.get(member.address, ()), known, member.since)
                        known.sure = False
        for address, events in unnamed.items():
            if address not in members:
                self._name_events(events, self._last_of(address), inf)
            elif (track := self.tracks[members[address]]).sure:
                self._name_events(events, track, inf)
        return asked

    def due(self) -> list[MemberHistory]:
        """Those whose names are to be asked for again with this sample: each in its turn, so that there is no burst."""
        every = max(EVERY, len(self.tracks) // QUESTIONS)
        return [it for it in self.tracks.values() if (it.number + self.samples) % every == 0]

    def take_name(self, track: MemberHistory, name: str, asked_at: float, numbers: Iterator[int]) -> bool:
        """DNS has said whose the address is, ``asked_at`` or later; whether that is news."""
        news = not track.sure or track.name != name
        if track.name and track.name != name:
            track = self._replace(track, name, next(numbers))
        track.name, track.named_at, track.sure = name, asked_at, True
        return news

    def pop_changes(self) -> list[Event]:
        """The events that are new, have counted on or have got a name since the last call, the oldest first."""
        changed, self._changed = self._changed, {}
        return [changed[number] for number in sorted(changed)]

    def _replace(self, track: MemberHistory, name: str, number: int) -> MemberHistory:
        member = track.member
        log.info("%s is the container %s now, and was %s", member.address, name, track.name)
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
        """Those that have no name yet, by their members."""
        events = self.stats.events
        self._changed |= {it.number: it for it in events.pop_changes()}
        unnamed: defaultdict[Address, list[Event]] = defaultdict(list)
        for event in events.recent:
            if event.member and event.name is None:
                unnamed[event.member].append(event)
        return unnamed

    def _last_of(self, address: Address) -> MemberHistory | None:
        return next((it for it in reversed(self.gone) if it.member.address == address), None)

    def _name_events(self, events: Iterable[Event], track: MemberHistory | None, end: float) -> None:
        """Give the events of a container, which are those before ``end``, its name, or none for good."""
        for event in events:
            if event.name is None and event.when < end:
                event.name = track.name if track and track.sure else ""
                if event.name:
                    self._changed[event.number] = event

    def member_rows(self, wall: Callable[[float], float]) -> dict[int, list[Any]]:
        """Who is there: number, address, name, state, reason, since, drained since (0: not)."""
        return {
            track.number: [
                track.number,
                str(member.address),
                track.name,
                member.state.value,
                member.reason,
                round(wall(member.since), 1),
                round(wall(member.drained_since), 1) if member.drained else 0,
            ]
            for member, track in self.tracks.items()
        }

    def value_rows(self) -> dict[int, list[Any]]:
        """Number, in flight, requests a second, requests of late, p50, p99, in all, failed, failed attempts."""
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
            ]
        return rows

    def summary(self) -> Json:
        total = self.stats.total
        recent, p50, p99 = self.total.lately()
        return {
            "rate": self.total.rate,
            "refused_rate": self.refused[-1] if self.refused else 0,
            "recent": recent,
            "p50_ms": p50,
            "p99_ms": p99,
            "in_flight": sum(it.in_flight for it in self.tracks),
            "queued": self.view.queued,
            "queued_ever": self.stats.queued,
            "requests": total.count,
            "failed": total.failed,
            "refused": self._refused_before,
            "retries": self.stats.retries,
            "failed_attempts": sum(total.failed_attempts.values()),
            "available": self.view.available,
        }


def refusals(stats: Stats) -> int:
    """Requests that the balancer answered itself or broke off; not those whose client left."""
    return sum(stats.errors.values()) - stats.errors["client_gone"]


def rounded(number: float, digits: int = 1) -> float:
    """Without a fraction where there is none, so that it takes few bytes."""
    number = round(number, digits)
    return int(number) if number == int(number) else number
