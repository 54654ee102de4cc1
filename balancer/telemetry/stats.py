"""Figures of the balancer's work, for the status page and the metrics. No I/O.

Counting a request costs the same for any number of members. Figures by member go when the member
goes, so that they do not grow as members come and go; the totals stay. No word that a client made up
(a method, a reason, the text of an exception) becomes a key of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from balancer.discovery.snapshot import Answer, Outcome, Snapshot
from balancer.dispatch.context import RequestRecord
from balancer.errors import LOG_ONLY, TOKENS
from balancer.members.ejection import EjectionKind
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.telemetry.events import Events
from balancer.telemetry.latencies import BOUNDS, Classes, add_to
from balancer.telemetry.observer import Observer
from balancer.types import Address

# Tallies of members that have left, which are added up with each answer of DNS; all of them on request.
LEFT_PER_ANSWER = 500

# Everything else is "OTHER", because a client can make up a method.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Status of a request that lasts as long as another protocol does: that is no latency.
SWITCHING_PROTOCOLS = 101

# Tokens beyond these are counted as "other": the canceller of a request gives the reason, and may make one up.
ERRORS_MAX = 100


class Tally:
    """Counts of requests of one member, or of several. ``sent``, ``received``: bytes of bodies to and from clients.

    ``requests``: by method and status. ``classes``: durations by class, and ``seconds``: their sum, both without
    requests that became a tunnel or were refused before they began. Durations are those of the members' own attempts,
    but in the total of a pool, where they are those that clients had.
    ``failed_attempts``: by reason. ``flips``: changes into a state.
    """

    __slots__ = ("classes", "failed_attempts", "flips", "received", "requests", "seconds", "sent")

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.classes: Classes = defaultdict(int)
        self.seconds = 0.0
        self.sent = 0
        self.received = 0
        # Not Counter: thousands of members may come together, and making one takes longer than all of the rest.
        self.failed_attempts: defaultdict[str, int] = defaultdict(int)
        self.flips: defaultdict[State, int] = defaultdict(int)

    def add(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.add_counts(other)
        add_to(self.classes, other.classes)
        self.seconds += other.seconds

    def add_counts(self, other: Tally) -> None:
        """Add the counts of another tally, but for its durations."""
        for kind, number in other.requests.items():
            self.requests[kind] += number
        self.sent += other.sent
        self.received += other.received
        for reason, number in other.failed_attempts.items():
            self.failed_attempts[reason] += number
        for state, number in other.flips.items():
            self.flips[state] += number

    @property
    def count(self) -> int:
        """Number of requests."""
        return sum(self.requests.values())

    @property
    def fingerprint(self) -> tuple[float, ...]:
        """Value that changes with every count: counts only grow."""
        return (
            self.count, self.seconds, self.sent, self.received,
            sum(self.failed_attempts.values()), sum(self.flips.values()),
        )  # fmt: skip

    @property
    def failed(self) -> int:
        """Requests that were answered 5xx, by a member or by the balancer."""
        return sum(number for (_, status), number in self.requests.items() if status >= 500)


class Stats(Observer):
    """Figures of a pool. ``members``: of requests that members in DNS have answered or failed last.

    ``classes`` and ``seconds``: durations that clients had, as in a Tally. ``errors``: requests ended by each token.
    ``retries``: attempts after the first. ``queued``: requests that waited for a member, ``queued_seconds`` for how
    long, and ``queued_classes`` as those of a Tally. ``dns``: answers
    by record type and rcode, or "empty", "timeout" or "error". ``answered``: by record type, when (a reading of the
    balancer's clock) DNS last gave a conclusive answer. ``flips``: changes of members into a state, by event.
    ``ejections``: of members, by kind. ``events``: recent ones.
    """

    def __init__(self) -> None:
        self.members: dict[Address, Tally] = {}
        # Totals of members that are no longer in DNS, and of no member. A request is counted in one place only.
        # Durations of members go with them.
        self._others = Tally()
        # Of members that have left, still to be added to it: thousands may leave together.
        self._left: list[Tally] = []
        self.classes: Classes = defaultdict(int)
        self.seconds = 0.0
        self.errors: Counter[str] = Counter()
        self.retries = 0
        self.queued = 0
        self.queued_seconds = 0.0
        self.queued_classes: Classes = defaultdict(int)
        self.dns: Counter[tuple[str, str]] = Counter()
        self.truncated: Counter[str] = Counter()
        self.answered: dict[str, float] = {}
        self.changes = 0
        self.flips: Counter[tuple[State, HealthEvent]] = Counter()
        self.ejections: Counter[EjectionKind] = Counter()
        self.events = Events()

    @property
    def total(self) -> Tally:
        """Tally of all requests: each reading adds up, which takes some microseconds for each member."""
        self._add_up(len(self._left))
        total = Tally()
        for tally in (self._others, *self.members.values()):
            total.add_counts(tally)
        add_to(total.classes, self.classes)
        total.seconds = self.seconds
        return total

    def add(self, other: Stats) -> None:
        """Add the counts of others, but for their events."""
        for address, tally in other.members.items():
            self.members.setdefault(address, Tally()).add(tally)
        for tally in (other._others, *other._left):
            self._others.add_counts(tally)
        add_to(self.classes, other.classes)
        self.seconds += other.seconds
        self.errors.update(other.errors)
        self.retries += other.retries
        self.queued += other.queued
        self.queued_seconds += other.queued_seconds
        add_to(self.queued_classes, other.queued_classes)
        self.dns.update(other.dns)
        self.truncated.update(other.truncated)
        for record, when in other.answered.items():
            self.answered[record] = max(when, self.answered.get(record, when))
        self.changes += other.changes
        self.flips.update(other.flips)
        self.ejections.update(other.ejections)

    def count_anew(self, parts: Iterable[Stats]) -> None:
        """Replace all counts by the sum of these; the events stay."""
        total = Stats()
        for part in parts:
            total.add(part)
        self.__dict__.update(total.__dict__ | {"events": self.events})

    def forget(self, address: Address) -> None:
        """Add the figures of a member that is gone to the totals of those that left."""
        self._others.add_counts(self.members.pop(address, Tally()))

    def without_members(self) -> Stats:
        """Return the figures that are not by member; it shares its counters with this."""
        rest = Stats()
        rest.__dict__.update(self.__dict__ | {"members": {}, "events": rest.events})
        return rest

    def __getstate__(self) -> dict[str, Any]:
        # Events are sent one by one.
        return {name: value for name, value in self.__dict__.items() if name != "events"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, events=Events())

    def _add_up(self, count: int) -> None:
        """Add up ``count`` tallies of members that have left."""
        for _ in range(min(count, len(self._left))):
            self._others.add_counts(self._left.pop())

    def done(self, record: RequestRecord) -> None:
        method = record.request.method
        status = record.status
        duration = record.duration
        tally = (self.members.get(record.member) if record.member else None) or self._others
        tally.requests[(method if method in METHODS else "OTHER"), status] += 1
        if duration and status != SWITCHING_PROTOCOLS:
            place = bisect_left(BOUNDS, duration)
            self.classes[place] += 1
            self.seconds += duration
            if own := record.attempt_duration:
                tally.classes[place if own == duration else bisect_left(BOUNDS, own)] += 1
                tally.seconds += own
        tally.sent += record.body_bytes
        if record.received:
            tally.received += record.received
        if record.queued:
            self.queued += 1
            self.queued_seconds += record.queued
            self.queued_classes[bisect_left(BOUNDS, record.queued)] += 1
        if record.error or record.attempts:
            self._failed(record)

    def _failed(self, record: RequestRecord) -> None:
        if record.error:
            self._count_error(record.error)
        self.retries += record.retries
        for attempt in record.attempts:
            (self.members.get(attempt.member) or self._others).failed_attempts[attempt.reason] += 1
        self.events.failed(record)

    def _count_error(self, token: str) -> None:
        is_known = token in TOKENS or token in LOG_ONLY or token in self.errors
        if not is_known and not (token.isidentifier() and len(self.errors) < ERRORS_MAX):
            token = "other"
        self.errors[token] += 1

    def drained(self, member: Member) -> None:
        self.events.drained(member)

    def ejected(self, member: Member) -> None:
        if member.ejection and not member.ejection.on_trial:
            self.ejections[member.ejection.kind] += 1
        self.events.ejected(member)

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        self.events.resolved(snapshot, change)
        for answer in snapshot.answers:
            self.dns[answer.record, _outcome(answer)] += 1
            if answer.over_tcp:
                self.truncated[answer.record] += 1
            if answer.outcome is not Outcome.UNKNOWN:
                self.answered[answer.record] = snapshot.when
        if change:
            self.changes += 1
        self._add_up(LEFT_PER_ANSWER)
        for member in change.left:
            if tally := self.members.pop(member.address, None):
                self._left.append(tally)
        for member in change.joined:
            self.members[member.address] = Tally()

    def flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        self.flips[member.state, event] += 1
        if tally := self.members.get(member.address):
            tally.flips[member.state] += 1
        self.events.flipped(member, before, event)


def _outcome(answer: Answer) -> str:
    """Return one of a few words: texts of exceptions have no end of variants."""
    if answer.rcode == "NOERROR":
        return "NOERROR" if answer.endpoints else "empty"
    return answer.rcode if answer.rcode.isidentifier() else "error"


def by_class(requests: Mapping[tuple[str, int], int]) -> dict[tuple[str, str], int]:
    """Return requests by method and class of status ("2xx")."""
    found: defaultdict[tuple[str, str], int] = defaultdict(int)
    for (method, status), number in requests.items():
        found[method, f"{status // 100}xx"] += number
    return dict(found)
