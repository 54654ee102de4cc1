"""What a loop of requests came to: shares, latencies, failures, stalls. No I/O, no clock.

Whatever the server says, a tally stays small: hosts and kinds of failures are known one by one up to a limit, and
latencies are kept for a minute, after which they are counted in classes of one per cent.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

# How many of the last answers are known in order, and of how many seconds there are figures.
ROTATION = 60
HISTORY = 60
# What counts as the last seconds.
RECENT = 10
# A host is silent when, since its last answer, this many results came in for each host heard after it (and for itself),
# and so many seconds went by: soon where few take turns, later where many do.
TURNS = 6
SILENT_SECONDS = 2.0
# How many hosts and kinds of failures are told apart. A page may begin with the time of day.
MAX_HOSTS = 1000
MAX_KINDS = 100
OTHERS = "(others)"
LAST_FAILURES = 10
# Latencies in one class differ by so much at most.
_CLASS = math.log(1.01)
_SHORTEST = 1e-6


@dataclass(frozen=True, slots=True)
class Result:
    """One request. ``who`` answered, or ``failure`` says why that does not count as an answer.

    ``status``: 0 where no response came; ``token``: that of ``X-Balancer-Error``. ``seconds`` is how long it took,
    ``ended`` when it ended on a clock that never jumps, and ``at`` the same in seconds since 1970.
    """

    seconds: float
    who: str = ""
    failure: str = ""
    status: int = 0
    token: str = ""
    ended: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class Host:
    """A host that answered. ``number``: results so far when it answered last; ``colour``: hosts that came before.

    ``first`` and ``last`` are when it answered, as ``Result.ended``; ``last_at`` is as ``Result.at``.
    """

    colour: int
    first: float
    last: float
    last_at: float
    number: int = 0
    count: int = 0


@dataclass(slots=True)
class Kind:
    """A kind of failure: how often, and when it came first and last (as ``Result.at``)."""

    first_at: float
    last_at: float
    count: int = 0


@dataclass(slots=True)
class Second:
    """What came in within one second of the clock."""

    number: int
    latencies: list[float] = field(default_factory=list)
    shares: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    failed: int = 0
    _median: float = 0.0
    _worst: float = 0.0

    @property
    def median(self) -> float:
        """In seconds, of those that were answered."""
        return median(self.latencies) if self.latencies else self._median

    @property
    def worst(self) -> float:
        return max(self.latencies, default=self._worst)

    def close(self) -> None:
        """Nothing more comes in: only the figures are kept."""
        self._median, self._worst = self.median, self.worst
        self.latencies.clear()


class Tally:
    """``sent`` and ``add`` tell it what happens, in the order of the clock; everything else reads."""

    def __init__(self) -> None:
        # By name; the one that answered last comes last.
        self.hosts: OrderedDict[str, Host] = OrderedDict()
        # Answers of those that are no longer told apart.
        self.others = 0
        self.kinds: dict[str, Kind] = {}
        self.rotation: deque[str] = deque(maxlen=ROTATION)
        self.last_failures: deque[Result] = deque(maxlen=LAST_FAILURES)
        self.longest = 0.0
        self.answered = 0
        self.failed = 0
        # When the first request was sent.
        self.began: float | None = None
        self._classes: Counter[int] = Counter()
        self._seconds: deque[Second] = deque(maxlen=HISTORY)
        self._in_flight = 0
        self._names = 0
        # Since when requests have waited without an answer to any, and the longest such time that is over.
        self._unanswered_since: float | None = None
        self._answered_at = -math.inf
        self._stall = 0.0
        self._stall_at = 0.0

    def sent(self, now: float) -> None:
        """A request is sent. Without this, stalls of several requests at a time look shorter than they were."""
        self._in_flight += 1
        self._waits(now)

    def add(self, result: Result) -> None:
        """A request has ended."""
        self._in_flight = max(0, self._in_flight - 1)
        self._waits(max(result.ended - result.seconds, self._answered_at))
        second = self._second(result.ended)
        self.longest = max(self.longest, result.seconds)
        if result.failure:
            self._fail(result, second)
        else:
            self._answer(result, second)

    def _waits(self, since: float) -> None:
        if self.began is None:
            self.began = since
        if self._unanswered_since is None:
            self._unanswered_since = since

    def _fail(self, result: Result, second: Second) -> None:
        self.failed += 1
        second.failed += 1
        self.last_failures.append(result)
        name = result.failure if result.failure in self.kinds or len(self.kinds) < MAX_KINDS else OTHERS
        kind = self.kinds.setdefault(name, Kind(result.at, result.at))
        kind.count += 1
        kind.last_at = result.at

    def _answer(self, result: Result, second: Second) -> None:
        self.answered += 1
        second.answered += 1
        second.latencies.append(result.seconds)
        second.shares[result.who] += 1
        self.rotation.append(result.who)
        self._classes[_class(result.seconds)] += 1
        host = self.hosts.get(result.who)
        if host is None:
            host = self.hosts[result.who] = Host(self._names, result.ended, result.ended, result.at)
            self._names += 1
        host.count += 1
        host.last, host.last_at, host.number = result.ended, result.at, self.requests
        self.hosts.move_to_end(result.who)
        if len(self.hosts) > MAX_HOSTS:
            self.others += self.hosts.popitem(last=False)[1].count
        self._stall, self._stall_at = self.longest_stall(result.ended, result.at)
        self._answered_at = result.ended
        self._unanswered_since = result.ended if self._in_flight else None

    def _second(self, now: float) -> Second:
        number = int(now)
        if not self._seconds or self._seconds[-1].number < number:
            if self._seconds:
                self._seconds[-1].close()
            if len(self._seconds) >= RECENT:
                self._seconds[-RECENT].shares.clear()
            self._seconds.append(Second(number))
        return self._seconds[-1]

    @property
    def requests(self) -> int:
        """Those that have ended."""
        return self.answered + self.failed

    @property
    def shares(self) -> Counter[str]:
        """Answers by host, since the beginning."""
        shares = Counter({name: host.count for name, host in self.hosts.items()})
        return shares + Counter({OTHERS: self.others})

    @property
    def failures(self) -> Counter[str]:
        """Failures by kind, since the beginning."""
        return Counter({name: kind.count for name, kind in self.kinds.items()})

    def recent(self, now: float) -> Counter[str]:
        """Answers by host in the last ``RECENT`` seconds, the one under way included."""
        shares: Counter[str] = Counter()
        for second in self._since(now, RECENT):
            shares.update(second.shares)
        return shares

    def seconds(self, now: float, count: int) -> list[Second | None]:
        """The last ``count`` seconds, oldest first, the one under way at the end; None where nothing came in."""
        known = {second.number: second for second in self._since(now, count)}
        return [known.get(number) for number in range(int(now) - count + 1, int(now) + 1)]

    def _since(self, now: float, count: int) -> Iterable[Second]:
        return (second for second in self._seconds if second.number > int(now) - count)

    def elapsed(self, now: float) -> float:
        """Seconds since the first request was sent."""
        return 0.0 if self.began is None else max(0.0, now - self.began)

    def rate(self, now: float) -> float:
        """Requests a second that ended in the last ``RECENT`` whole seconds, or since the watch began."""
        whole = [second for second in self._since(now, RECENT + 1) if second.number < int(now)]
        time = min(RECENT, int(now) - now + self.elapsed(now))
        if time < 1:
            return self.requests / max(1.0, self.elapsed(now))
        return sum(second.answered + second.failed for second in whole) / time

    def silent(self, now: float) -> frozenset[str]:
        """Hosts that have missed their turns while others answered, or requests failed (see ``TURNS``)."""
        silent: set[str] = set()
        for rank, (name, host) in enumerate(reversed(self.hosts.items()), 1):
            # Who answered before one that is silent is so as well.
            missed = self.requests - host.number > TURNS * rank and now - host.last > SILENT_SECONDS
            if silent or missed:
                silent.add(name)
        return frozenset(silent)

    def percentile(self, share: float) -> float:
        """The latency in seconds that ``share`` (0 to 1) of the answers did not exceed, to one per cent; 0 without."""
        wanted = max(1, math.ceil(share * self.answered))
        for number in sorted(self._classes):
            wanted -= self._classes[number]
            if wanted <= 0:
                return min(_SHORTEST * math.exp(number * _CLASS), self.longest)
        return 0.0

    def stall(self, now: float) -> float:
        """For how many seconds by now requests have waited or failed and none was answered."""
        return 0.0 if self._unanswered_since is None else max(0.0, now - self._unanswered_since)

    def longest_stall(self, now: float, at: float) -> tuple[float, float]:
        """The longest such time, and when it ended; ``now`` and ``at`` are the time, as in ``Result``."""
        stall = self.stall(now)
        return (stall, at) if stall > self._stall else (self._stall, self._stall_at)

    def summary(self, now: float, at: float) -> list[str]:
        """Plain lines for people. ``now`` and ``at``: when the watch ended, as in ``Result``."""
        stall, stall_at = self.longest_stall(now, at)
        lines = [
            f"{self.requests} requests, {self.failed} failed, "
            f"median {self.percentile(0.5) * 1000:.1f} ms, p99 {self.percentile(0.99) * 1000:.1f} ms, "
            f"longest {self.longest * 1000:.1f} ms",
            f"  in {self.elapsed(now):.1f} s, {self._overall(now):.1f} a second; "
            f"longest time without an answer {stall:.1f} s" + (f", until {clock(stall_at)}" if stall >= 1 else ""),
        ]
        silent = self.silent(now)
        for name, count in sorted(self.shares.items()):
            last = f", last seen {clock(self.hosts[name].last_at)}" if name in silent else ""
            lines.append(f"  {name}: {count} ({count / self.answered:.1%}){last}")
        for name, kind in sorted(self.kinds.items(), key=lambda entry: -entry[1].count):
            lines.append(f"  failed {times(kind.count)}: {name}, {span(kind)}")
        return lines

    def report(self, now: float, at: float) -> dict[str, object]:
        """The same for scripts. Times are ISO 8601 in UTC, ``_ms`` is milliseconds, ``share`` is 0 to 1."""
        stall, stall_at = self.longest_stall(now, at)
        silent = self.silent(now)
        return {
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "seconds": round(self.elapsed(now), 3),
            "per_second": round(self._overall(now), 2),
            "median_ms": round(self.percentile(0.5) * 1000, 2),
            "p99_ms": round(self.percentile(0.99) * 1000, 2),
            "longest_ms": round(self.longest * 1000, 2),
            "longest_stall_ms": round(stall * 1000, 2),
            "longest_stall_end": iso(stall_at) if stall else None,
            "workers": [
                {
                    "worker": name,
                    "requests": count,
                    "share": round(count / self.answered, 4),
                    "last": iso(self.hosts[name].last_at) if name in self.hosts else None,
                    "silent": name in silent,
                }
                for name, count in sorted(self.shares.items())
            ],
            "failures": [
                {"failure": name, "requests": kind.count, "first": iso(kind.first_at), "last": iso(kind.last_at)}
                for name, kind in sorted(self.kinds.items(), key=lambda entry: -entry[1].count)
            ],
        }

    def _overall(self, now: float) -> float:
        return self.requests / max(self.elapsed(now), 1e-3)


def entry(result: Result) -> dict[str, object]:
    """A request for scripts, in the words of the access log where these mean the same: when it ended, in UTC.

    ``worker``: the name that the answer gives; ``failure``: why the answer does not count as one.
    """
    return {
        "time": iso(result.at),
        "worker": result.who or None,
        "status": result.status or None,
        "duration_ms": round(result.seconds * 1000, 2),
        "error": result.token or None,
        "failure": result.failure or None,
    }


def clock(at: float) -> str:
    """The local time of day."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def span(kind: Kind) -> str:
    """When a kind of failure came."""
    first, last = clock(kind.first_at), clock(kind.last_at)
    return f"at {first}" if first == last else f"{first} to {last}"


def _class(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _CLASS)
