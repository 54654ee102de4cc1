"""The results of a loop of requests: shares, latencies, failures, stalls. No I/O, no clock.

A tally stays small whatever servers send: hosts and kinds of failures are distinguished up to a limit. Latencies
are kept for a minute, then they are counted in classes of one per cent.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from balancer.watch.words import clock, in_milliseconds, iso, milliseconds, span, times
from balancer.words import counted

# Answers that are kept in order, and seconds that have figures of their own.
ROTATION, HISTORY = 60, 60
# Seconds that count as the last ones.
RECENT = 10
# A host is silent when, since its last answer, TURNS results came in for each host that answered after it (and for
# itself), and SILENT_SECONDS went by. That is soon where few take turns, later where many do.
TURNS, SILENT_SECONDS = 6, 2.0
# Hosts and kinds of failures that are distinguished. A page may begin with the time of day.
MAX_HOSTS, MAX_KINDS = 1000, 100
OTHERS = "(others)"
LAST_FAILURES = 10
# Latencies in one class differ by so much at most.
_CLASS = math.log(1.01)
_SHORTEST = 1e-6


@dataclass(frozen=True, slots=True)
class Result:
    """A request. ``worker`` answered, or ``failure`` is the reason why that does not count as an answer.

    ``status``: 0 where no response came; ``token``: that of ``X-Balancer-Error``. ``seconds``: its duration,
    ``ended``: its end on a clock that never jumps, and ``at``: the same in seconds since 1970.
    """

    seconds: float
    worker: str = ""
    failure: str = ""
    status: int = 0
    token: str = ""
    ended: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class Host:
    """A host that answered. ``number``: results so far when it answered last; ``colour``: hosts that came before.

    ``first`` and ``last``: of its answers, as ``Result.ended``; ``last_at``: as ``Result.at``.
    """

    colour: int
    first: float
    last: float
    last_at: float
    number: int = 0
    count: int = 0


@dataclass(slots=True)
class FailureKind:
    """A kind of failure: its number, and its first and last time (as ``Result.at``)."""

    first_at: float
    last_at: float
    count: int = 0


@dataclass(slots=True)
class Second:
    """Results of one second of the clock."""

    number: int
    latencies: list[float] = field(default_factory=list)
    shares: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    failed: int = 0
    _median: float = 0.0
    _worst: float = 0.0

    @property
    def median(self) -> float:
        """Median latency of its answers, in seconds."""
        return median(self.latencies) if self.latencies else self._median

    @property
    def worst(self) -> float:
        """Longest latency of its answers, in seconds."""
        return max(self.latencies, default=self._worst)

    def close(self) -> None:
        """Keep figures only: no more results come in."""
        self._median, self._worst = self.median, self.worst
        self.latencies.clear()


class Tally:
    """Counts of requests: ``sent`` and ``add`` take events in the order of the clock, everything else reads."""

    def __init__(self) -> None:
        # By name; the one that answered last comes last.
        self.hosts: OrderedDict[str, Host] = OrderedDict()
        # Answers of hosts that are no longer distinguished.
        self.others = 0
        self.kinds: dict[str, FailureKind] = {}
        self.rotation: deque[str] = deque(maxlen=ROTATION)
        self.last_failures: deque[Result] = deque(maxlen=LAST_FAILURES)
        self.longest = 0.0
        self.answered = 0
        self.failed = 0
        # When the first request was sent.
        self.began: float | None = None
        self._classes: Counter[int] = Counter()
        # The longest latency of an answer; ``longest`` may be that of a failure.
        self._slowest = 0.0
        self._seconds: deque[Second] = deque(maxlen=HISTORY)
        self._in_flight = 0
        self._names = 0
        # Since when requests have waited without an answer to any, and the longest such time that is over.
        self._unanswered_since: float | None = None
        self._answered_at = -math.inf
        self._stall = 0.0
        self._stall_at = 0.0

    def sent(self, now: float) -> None:
        """Count a request that is sent. Without this, stalls of several requests at a time look too short."""
        self._in_flight += 1
        self._waits(now)

    def add(self, result: Result) -> None:
        """Count a request that has ended."""
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
        kind = self.kinds.setdefault(name, FailureKind(result.at, result.at))
        kind.count += 1
        kind.last_at = result.at

    def _answer(self, result: Result, second: Second) -> None:
        self.answered += 1
        second.answered += 1
        second.latencies.append(result.seconds)
        second.shares[result.worker] += 1
        self.rotation.append(result.worker)
        self._classes[_class(result.seconds)] += 1
        self._slowest = max(self._slowest, result.seconds)
        host = self.hosts.get(result.worker)
        if host is None:
            host = self.hosts[result.worker] = Host(self._names, result.ended, result.ended, result.at)
            self._names += 1
        host.count += 1
        host.last, host.last_at, host.number = result.ended, result.at, self.requests
        self.hosts.move_to_end(result.worker)
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
        """Number of requests that have ended."""
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
        """Return the answers by host in the last ``RECENT`` seconds, the current one included."""
        shares: Counter[str] = Counter()
        for second in self._since(now, RECENT):
            shares.update(second.shares)
        return shares

    def seconds(self, now: float, count: int) -> list[Second | None]:
        """Return the last ``count`` seconds, oldest first, the current one at the end; None for one without results."""
        known = {second.number: second for second in self._since(now, count)}
        return [known.get(number) for number in range(int(now) - count + 1, int(now) + 1)]

    def _since(self, now: float, count: int) -> Iterable[Second]:
        return (second for second in self._seconds if second.number > int(now) - count)

    def elapsed(self, now: float) -> float:
        """Return the seconds since the first request was sent."""
        return 0.0 if self.began is None else max(0.0, now - self.began)

    def rate(self, now: float) -> float:
        """Return the requests a second that ended in the last ``RECENT`` whole seconds, or since the watch began."""
        whole = [second for second in self._since(now, RECENT + 1) if second.number < int(now)]
        time = min(RECENT, int(now) - now + self.elapsed(now))
        if time < 1:
            return self.requests / max(1.0, self.elapsed(now))
        return sum(second.answered + second.failed for second in whole) / time

    def silent(self, now: float) -> frozenset[str]:
        """Return hosts that have missed their turns while others answered, or requests failed (see ``TURNS``)."""
        silent: set[str] = set()
        for rank, (name, host) in enumerate(reversed(self.hosts.items()), 1):
            # A host that answered before a silent one is silent as well.
            missed = self.requests - host.number > TURNS * rank and now - host.last > SILENT_SECONDS
            if silent or missed:
                silent.add(name)
        return frozenset(silent)

    def figures(self) -> dict[str, float | None]:
        """Return median and p99 of the answers, and the longest request, in seconds; None where there is none."""
        median, p99 = (self.percentile(share) if self.answered else None for share in (0.5, 0.99))
        return {"median": median, "p99": p99, "longest": self.longest if self.requests else None}

    def percentile(self, share: float) -> float:
        """Return the latency in seconds that ``share`` (0 to 1) of the answers did not exceed, to 1 %; 0 without."""
        wanted = max(1, math.ceil(share * self.answered))
        for number in sorted(self._classes):
            wanted -= self._classes[number]
            if wanted <= 0:
                return min(_SHORTEST * math.exp(number * _CLASS), self._slowest)
        return 0.0

    def stall(self, now: float) -> float:
        """Return the seconds by now in which requests have waited or failed and none was answered."""
        return 0.0 if self._unanswered_since is None else max(0.0, now - self._unanswered_since)

    def longest_stall(self, now: float, at: float) -> tuple[float, float]:
        """Return the longest such time, and its end; ``now`` and ``at`` are the time, as in ``Result``."""
        stall = self.stall(now)
        return (stall, at) if stall > self._stall else (self._stall, self._stall_at)

    def summary(self, now: float, at: float) -> list[str]:
        """Return plain lines for people. ``now`` and ``at``: the end of the watch, as in ``Result``."""
        stall, stall_at = self.longest_stall(now, at)
        figures = [f"{name} {milliseconds(seconds)}" for name, seconds in self.figures().items()]
        lines = [
            ", ".join([f"{counted(self.requests, 'request')}, {self.failed} failed", *figures]),
            f"  in {self.elapsed(now):.1f} s, {self._overall(now):.1f} a second; "
            f"longest time without an answer {stall:.1f} s" + (f", until {clock(stall_at)}" if stall >= 1 else ""),
        ]
        silent = self.silent(now)
        for name, count in sorted(self.shares.items()):
            last = f", last seen {clock(self.hosts[name].last_at)}" if name in silent else ""
            lines.append(f"  {name}: {count} ({count / self.answered:.1%}){last}")
        for name, kind in sorted(self.kinds.items(), key=lambda entry: -entry[1].count):
            lines.append(f"  failed {times(kind.count)}: {name}, {span(kind.first_at, kind.last_at)}")
        return lines

    def report(self, now: float, at: float) -> dict[str, object]:
        """Return the same for scripts. Times are ISO 8601 in UTC, ``_ms`` is milliseconds, ``share`` is 0 to 1."""
        stall, stall_at = self.longest_stall(now, at)
        silent = self.silent(now)
        return {
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "seconds": round(self.elapsed(now), 3),
            "per_second": round(self._overall(now), 2),
            **{f"{name}_ms": in_milliseconds(seconds) for name, seconds in self.figures().items()},
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
    """Return a request for scripts, in the words of the access log where these mean the same; ``time``: its end, in
    UTC.

    ``worker``: the name in the answer; ``failure``: the reason why the answer does not count as one.
    """
    return {
        "time": iso(result.at),
        "worker": result.worker or None,
        "status": result.status or None,
        "duration_ms": round(result.seconds * 1000, 2),
        "error": result.token or None,
        "failure": result.failure or None,
    }


def _class(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _CLASS)
