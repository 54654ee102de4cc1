"""Figures of what the balancer has done, for the status page and the metrics. No I/O.

To count a request costs the same however many members there are. What is known by member goes when the member
goes, so that what is held does not grow as members come and go; the totals stay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from balancer.events import Events
from balancer.health import Event, State
from balancer.membership import Change, Member, Outcome, Snapshot
from balancer.observer import Observer
from balancer.record import Record
from balancer.settings import Address

# Upper bounds of the classes in which latencies are counted, in seconds: seven a decade, so that percentiles are right
# to a fifth, and what is above the last. The Prometheus histogram has those of 1, 2.5 and 5.
BOUNDS = tuple(round(step * 10.0**power, 6) for power in range(-4, 2) for step in (1, 1.5, 2, 2.5, 3.5, 5, 7.5))

# Everything else is "OTHER", because anybody can make up a method.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Tally:
    """Requests of one member, or of all. ``seconds``: of all their durations; ``sent``: bytes of bodies to clients.

    ``requests``: how many, by method and status; ``buckets``: by duration, one for each of BOUNDS and one beyond.
    ``retries``: how often it failed a request, by the reason.
    """

    __slots__ = ("buckets", "requests", "retries", "seconds", "sent")

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.sent = 0
        self.retries: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.buckets)

    @property
    def failed(self) -> int:
        """Requests that were answered 5xx, whoever said so."""
        return sum(number for (_, status), number in self.requests.items() if status >= 500)


class Stats(Observer):
    """``total`` is of all requests, ``members`` of those that members in DNS have answered or failed last.

    ``errors``: how often each token ended a request. ``held``: requests that waited for a member, and ``held_seconds``
    for how long. ``dns``: answers by record type and rcode. ``events``: what happened lately.
    """

    def __init__(self) -> None:
        self.total = Tally()
        self.members: dict[Address, Tally] = {}
        self.errors: Counter[str] = Counter()
        self.held = 0
        self.held_seconds = 0.0
        self.dns: Counter[tuple[str, str]] = Counter()
        self.truncated: Counter[str] = Counter()
        self.changes = 0
        self.events = Events()

    def done(self, record: Record) -> None:
        method = record.request.method
        kind = (method if method in METHODS else "OTHER"), record.status
        place = bisect_left(BOUNDS, record.duration)
        total = self.total
        total.requests[kind] += 1
        total.buckets[place] += 1
        total.seconds += record.duration
        total.sent += record.body_bytes
        one = self.members.get(record.member) if record.member else None
        if one:
            one.requests[kind] += 1
            one.buckets[place] += 1
            one.seconds += record.duration
            one.sent += record.body_bytes
        if record.held:
            self.held += 1
            self.held_seconds += record.held
        if record.error or record.tries:
            self._troubled(record)

    def _troubled(self, record: Record) -> None:
        if record.error:
            self.errors[record.error] += 1
        for attempt in record.tries:
            self.total.retries[attempt.reason] += 1
            if failed := self.members.get(attempt.member):
                failed.retries[attempt.reason] += 1
        self.events.troubled(record)

    def flipped(self, member: Member, before: State, event: Event) -> None:
        self.events.flipped(member, before, event)

    def drained(self, member: Member) -> None:
        self.events.drained(member)

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        self.events.resolved(snapshot, change)
        for answer in snapshot.answers:
            self.dns[answer.record, "empty" if answer.outcome is Outcome.NOBODY else answer.rcode] += 1
            if answer.over_tcp:
                self.truncated[answer.record] += 1
        if change:
            self.changes += 1
        for member in change.left:
            self.members.pop(member.address, None)
        for member in change.joined:
            self.members[member.address] = Tally()


def percentile(buckets: Sequence[int], share: float) -> float:
    """The latency in seconds that ``share`` (0 to 1) of what is counted in ``buckets`` did not exceed; 0 for nothing.

    Interpolated within its class; what is beyond the last bound counts as that.
    """
    left = share * sum(buckets)
    low = 0.0
    for bound, number in zip(BOUNDS, buckets, strict=False):
        if number and left <= number:
            return low + (bound - low) * left / number
        left -= number
        low = bound
    return low if any(buckets) else 0.0


def by_class(requests: Mapping[tuple[str, int], int]) -> dict[tuple[str, str], int]:
    """Requests by method and class of status ("2xx")."""
    found: defaultdict[tuple[str, str], int] = defaultdict(int)
    for (method, status), number in requests.items():
        found[method, f"{status // 100}xx"] += number
    return dict(found)


def cumulated(buckets: Sequence[int], bounds: Iterable[float]) -> list[tuple[float, int]]:
    """How many took no longer than each of some of BOUNDS."""
    wanted = frozenset(bounds)
    found, so_far = [], 0
    for bound, number in zip(BOUNDS, buckets, strict=False):
        so_far += number
        if bound in wanted:
            found.append((bound, so_far))
    return found
