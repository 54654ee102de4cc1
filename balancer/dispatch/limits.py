"""Limits on requests of a member that find themselves, by the times to the first byte. No I/O.

A member that works on so many requests at once answers no faster if it is given fewer, and later if it is given more.
So its limit is tried beside another one, and the latencies of the two are compared. (docs/decisions/queue.md has the
reasons, and the simulation by which the numbers here were chosen.)

* GROW: the limit doubles until the latency rises with it.
* HOLD: the limit stays. The latency at it becomes known better and better.
* DIP: half of the limit, for a moment. ``limit * latency at half / latency at the limit``, and HEADROOM more, is the
  next limit if the difference is sure. A limit of 1 has no less, and needs none.
* TRY: half as much again, for a moment. The limit grows on if the latency does not rise with it.

Rules:
* In GROW, HOLD and TRY an answer counts only while the limit is in use: an idle member keeps its limit.
* Means are of the roots of latencies: one slow answer counts for less than in a mean of latencies, and a queue for
  more than in a mean of logarithms.
* A comparison ends when its error is small, or its result is sure: after few answers of a member whose times are all
  alike, after a hundred where they vary.
* Between a DIP and the next TRY, or the reverse, come at least FIRST_WAIT times its length, doubling to LONGEST_WAIT. A
  change of latency brings the next one at once. One with too few answers ends at its deadline.
* A round of requests of which FAILING or more failed by overload takes half of that share from the limit.
"""

from __future__ import annotations

from enum import Enum
from math import exp, inf, log, sqrt
from typing import Final

# The limit with which the first member of a pool begins, and the highest.
START: Final = 4
LIMIT_MAX: Final = 100_000
# Room above what a member works on, as a share: without some, a member with one idle moment is below its best.
HEADROOM: Final = 0.1
# Part of a limit that has to be in use for an answer to count.
USED: Final = 0.8
# A latency counts as rising with the limit from this power of it on: 0 is not at all, 1 in proportion.
POWER: Final = 0.5
# Answers of a comparison: at least; from which on it may be sure; from which on it is over (or two rounds).
FEWEST: Final = 8
DECIDING: Final = 24
MOST: Final = 96
# Answers by which the latency at a limit is known, and those that are remembered.
KNOWN: Final = 32
MEMORY: Final = 512
# A difference of logarithms whose error is small, and one between two limits that are far apart.
PRECISE: Final = 0.07
FAR: Final = 0.25
# How many errors make sure that GROW ends, of a lower limit, of a comparison before its time, of a changed latency.
SUSPECT: Final = 1.5
SURE: Final = 2.3
DECISIVE: Final = 3.0
CHANGED: Final = 4.0
# A change of latency counts from this difference on.
CHANGE: Final = 0.14
# Share of failures in a round from which on they lower the limit.
FAILING: Final = 0.1
FIRST_WAIT: Final = 3.0
LONGEST_WAIT: Final = 32.0
# From this limit on, a DIP takes less of it away.
MANY: Final = 24
# Seconds that are no latency.
_TINY: Final = 1e-6
# What the variance begins with, and for how many answers that counts: the first few may be alike by chance.
_VARIANCE: Final = 0.15
_ANSWERS: Final = 8


class Phase(Enum):
    """What a limit does."""

    GROW = "doubles"
    HOLD = "stays"
    DIP = "is lower for a moment"
    TRY = "is higher for a moment"


class Tally:
    """Latencies at one limit: ``count`` of them, at most MEMORY, and the ``mean`` of their roots."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0

    @property
    def level(self) -> float:
        """Logarithm of the latency."""
        return 2 * log(self.mean) if self.count else -inf

    def merge(self, other: Tally) -> None:
        """Add the latencies of another tally."""
        count = self.count + other.count
        if count:
            self.mean += (other.mean - self.mean) * other.count / count
            self.count = min(count, MEMORY)


def whole(size: float) -> int:
    """Return the whole number of requests for a limit."""
    return max(1, int(size + 0.5))


class AutoLimit:
    """The limit of one member, which follows from the latencies of its answers.

    ``limit``: requests at a time, now. ``size``: the limit apart from DIP and TRY. ``deadline``: when DIP or TRY ends
    at the latest; ``expire`` is to be called then.

    Args:
        start: The limit to begin with.
        found: Whether ``start`` is what another member has found, so that it need not be looked for by doubling.
        jitter: A number from 0 to 1 that no other member has: their DIPs do not coincide.
        parts: Balancers that share the member. Each sees a part of what a change of its limit does.
    """

    def __init__(self, start: float = START, found: bool = False, jitter: float = 0.5, parts: int = 1) -> None:
        self.size = start
        self.limit = whole(start)
        self.phase = Phase.HOLD if found else Phase.GROW
        self.deadline = inf
        self._jitter = jitter
        self._power = POWER / parts
        # Latencies in this round, at the limit, and at a lower one, which was ``_low``.
        self._round = Tally()
        self._here = Tally()
        self._base = Tally()
        self._low = 0
        # Relative squared deviations of the roots, and their degrees of freedom.
        self._squares = 0.0
        self._freedom = 0.0
        # Answers that do not count, because they are to requests from before the limit changed.
        self._skip = 0
        # When DIP or TRY began, when the next may, whether it is a TRY, and the wait after it in times of its length.
        self._began = 0.0
        self._next = -inf
        self._tries = False
        self._wait = FIRST_WAIT
        # Requests that have ended in this round of the limit, and those of them that failed.
        self._ended = 0
        self._failed = 0

    def learn(self, latency: float, in_flight: int, now: float) -> None:
        """Take in an answer.

        Args:
            latency: Seconds to its first byte.
            in_flight: Requests that the member had, with this one.
            now: A reading of the clock.
        """
        self._end(False, in_flight, now)
        if self._skip > 0:
            self._skip -= 1
        elif self.phase is Phase.DIP or in_flight >= USED * self.limit:
            self._add(sqrt(max(latency, _TINY)))
            if self.phase is Phase.GROW:
                self._grow(in_flight, now)
            elif self.phase is Phase.HOLD:
                self._hold(in_flight, now)
            elif self.phase is Phase.DIP:
                self._dip(in_flight, now)
            else:
                self._try(in_flight, now)

    def fail(self, in_flight: int, now: float, waited: float = inf) -> None:
        """Take in a failure by overload, or that a client has left after ``waited`` seconds without an answer."""
        latency = self._here.mean**2 or self._base.mean**2 or 0.5
        self._end(waited > 2 * latency, in_flight, now)

    def expire(self, now: float) -> None:
        """End a DIP or TRY whose deadline has passed."""
        if now >= self.deadline:
            self._settle(0, now)

    def _end(self, failed: bool, in_flight: int, now: float) -> None:
        """Count a request that has ended; after each round, lower the limit by the failures in it."""
        self._ended += 1
        self._failed += failed and in_flight >= USED * self.limit
        if self._ended < max(FEWEST, self.limit):
            return
        lost, self._ended, self._failed = self._failed / self._ended, 0, 0
        if lost >= FAILING:
            self._tries = True
            self._low = LIMIT_MAX
            self._change(max(1.0, self.size * (1 - lost / 2)), in_flight, now)

    def _add(self, root: float) -> None:
        """Add the root of a latency to this round; its deviation counts for all rounds (Welford)."""
        tally = self._round
        tally.count += 1
        step = root - tally.mean
        tally.mean += step / tally.count
        if tally.count > 1:
            self._squares += step * (root - tally.mean) / tally.mean**2
            self._freedom += 1
            if self._freedom > MEMORY:
                self._squares /= 2
                self._freedom /= 2

    def _error(self, one: Tally, other: Tally) -> float:
        """Return the standard error of the difference of two levels."""
        if not (one.count and other.count):
            return inf
        variance = (self._squares + _VARIANCE * _ANSWERS) / (self._freedom + _ANSWERS)
        return 2 * sqrt(variance * (1 / one.count + 1 / other.count))

    def _grow(self, in_flight: int, now: float) -> None:
        tally, base = self._round, self._base
        if tally.count < max(FEWEST / 2, self.limit / 2):
            return
        rise = tally.level - base.level
        excess = rise - self._power * log(2)
        if base.count and excess > 0:
            if tally.count >= KNOWN or excess > SUSPECT * self._error(tally, base):
                self._tries = True
                self._change(self.size * exp(-min(rise, log(2))) * (1 + HEADROOM), in_flight, now)
            return
        base.merge(tally)
        self._low = self.limit
        self._double(in_flight, now)

    def _double(self, in_flight: int, now: float) -> None:
        self.size = min(2.0 * self.limit, LIMIT_MAX)
        self._enter(Phase.GROW, self.size, in_flight)

    def _hold(self, in_flight: int, now: float) -> None:
        tally, here = self._round, self._here
        is_known = tally.count >= KNOWN or self._error(tally, tally) < PRECISE
        if tally.count < max(FEWEST, self.limit / 2) or not is_known:
            return
        change = tally.level - here.level
        if here.count and abs(change) > max(CHANGE, CHANGED * self._error(tally, here)):
            self._here, self._next, self._wait = tally, now, FIRST_WAIT
            self._tries = change < 0
        else:
            here.merge(tally)
        self._round = Tally()
        if now >= self._next:
            self._compare(in_flight, now)

    def _compare(self, in_flight: int, now: float) -> None:
        """Begin a DIP or TRY."""
        here = self._here
        if self.limit <= self._low:
            self._base = here
        rise, limit = here.level - self._base.level, self.limit
        is_high = rise > max(2 * HEADROOM, SURE * self._error(here, self._base))
        if limit == 1 or (self._tries and not is_high):
            phase, limit = Phase.TRY, limit + max(min(limit, START), limit // 2)
        else:
            phase, limit = Phase.DIP, limit // 2 if limit < MANY else int(0.7 * limit)
        answers = in_flight + limit + max(MOST, 2 * limit)
        self._began = now
        self._enter(phase, limit, in_flight)
        self.deadline = now + 4 * here.mean**2 * (1 + answers / limit)

    def _is_over(self, margin: float) -> bool:
        """Whether a comparison is over; ``margin``: how far it is from another result."""
        count, error = self._round.count, self._error(self._round, self._here)
        if count < max(FEWEST, self.limit / 2):
            return False
        is_sure = count >= DECIDING and abs(margin) > DECISIVE * error
        return is_sure or error < PRECISE or count >= max(MOST, 2 * self.limit)

    def _dip(self, in_flight: int, now: float) -> None:
        tally, base, here = self._round, self._base, self._here
        if not self._is_over(here.level - tally.level - HEADROOM):
            return
        if abs(tally.level - base.level) < CHANGED * self._error(tally, base):
            base.merge(tally)
        else:
            base = self._base = tally
        self._low = self.limit
        self._tries = True
        self._settle(in_flight, now)
        rise = here.level - base.level
        if rise < HEADROOM:
            self._next = now
        elif rise > SURE * self._error(here, base):
            # What a still lower limit would do, the DIP has not shown.
            size = self.limit * exp(-min(rise, log(self.size / self._low))) * (1 + HEADROOM)
            if whole(size) != self.limit:
                self._tries = False
                self._change(max(1.0, size), in_flight, now)

    def _try(self, in_flight: int, now: float) -> None:
        tally, here, limit = self._round, self._here, self.limit
        rise = tally.level - here.level
        excess = rise - self._power * log(limit / whole(self.size))
        if not self._is_over(excess):
            return
        self._tries = False
        if excess < 0:
            self._base, self._here = here, Tally()
            self._base.merge(tally)
            self._low = limit
            self._wait = FIRST_WAIT
            self._double(in_flight, now)
            return
        self._settle(in_flight, now)
        size = limit * exp(-rise) * (1 + HEADROOM)
        if whole(size) > self.limit and log(size / self.size) > max(self._error(tally, here), HEADROOM / 2):
            self._change(size, in_flight, now)

    def _change(self, size: float, in_flight: int, now: float) -> None:
        """Stay at another limit from now on."""
        if abs(log(size / self.size)) > FAR:
            self._wait = FIRST_WAIT
            self._next = now
        self.size = size
        self._here = Tally()
        self._enter(Phase.HOLD, size, in_flight)

    def _settle(self, in_flight: int, now: float) -> None:
        """Go back to the limit after a DIP or TRY."""
        self._next = now + (now - self._began) * self._wait * (0.75 + 0.5 * self._jitter)
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._enter(Phase.HOLD, self.size, in_flight)

    def _enter(self, phase: Phase, size: float, in_flight: int) -> None:
        self.phase = phase
        self.limit = whole(size)
        self.deadline = inf
        self._skip = in_flight + (self.limit // 2 if phase is Phase.GROW else self.limit)
        self._round = Tally()
