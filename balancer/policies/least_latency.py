"""The faster of two members, by the time to the first byte of late and by the requests in flight. No I/O.

Rules:
* A member's latency is its peak: each response counts as ``first_byte * exp(-age / TAU)``, and the largest is the cost
  (peak-EWMA, as in Finagle). A slow response counts at once, and a member that was slow is asked again in seconds.
* Costs within BAND of each other are the same: then requests in flight decide, as in ``LeastRequests``. Chance makes
  the peaks of equal members differ, and those of 1,500 requests must not keep one of five idle (Traefik #12306).
* A failure costs a multiple of the slowest success of any member, the more the more of the member's attempts fail.
* A new member begins at the median. So does one that has requests, and finishes none: it gets no cheaper with time.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from math import exp, inf, log
from random import Random
from typing import Final

from mypy_extensions import mypyc_attr

from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.members.outcome import Outcome
from balancer.policies.random_choice import RandomChoice
from balancer.policies.weights import DRAWS
from balancer.types import Clock

# Seconds in which what a response counts falls to 37 %: after a response ten times as slow, 3 s pass until BAND.
TAU: Final = 2.0
# Twice the cost, as a logarithm. docs/decisions/policies.md has what others do to shares and latency.
BAND: Final = 0.69
# The least time that counts, in seconds, and the most by which costs differ, as a logarithm.
LEAST_SECONDS: Final = 1e-6
MOST: Final = 50.0
# What a failure costs, in times the peak of all, where a member does nothing but fail. The part that fails is a mean
# over some 16 attempts.
PENALTY: Final = 20.0
MEMORY: Final = 1 / 16
# Step of the median at each outcome, as a logarithm (a Robbins-Monro estimate).
STEP: Final = 0.05
# Seconds in which all members are looked at, whether they finish what they have.
ROUND: Final = 0.5
# Statuses that say what the balancer and the request are like, not how the member does.
_NOT_FAULTS: Final = (501, 505)


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastLatency(RandomChoice):
    """Draws two members and chooses the one whose latency, times its requests, is less for its weight.

    Costs are kept as logarithms, with the time added: ``log(first_byte) + now / TAU``. All of them decay alike, so that
    a choice compares them without a clock reading, and nothing has to be done for a cost to decay.

    Args:
        rng: Draws the members.
        clock: Is read once for each outcome.
    """

    def __init__(self, rng: Random, clock: Clock) -> None:
        super().__init__(rng)
        self._clock = clock
        self._costs: dict[Member, float] = {}
        # The part of its attempts that fail, of each member of which one has failed lately.
        self._failing: dict[Member, float] = {}
        # The largest cost that any success has made, with the time added; and the median of costs, without.
        self._peak = -inf
        self._median = 0.0
        # Requests that a member had finished when it was looked at, and whether it had others.
        self._looks: dict[Member, tuple[int, bool]] = {}
        self._turn = 0
        self._next_look = 0.0

    def build(self, members: Sequence[Member]) -> None:
        super().build(members)
        known, begin = self._costs, self._new_cost()
        self._costs = {member: known.get(member, begin) for member in members}
        self._failing = {member: part for member, part in self._failing.items() if member in self._costs}
        self._looks = {}

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        super().update(members, added, removed)
        for member in removed:
            self._costs.pop(member, None)
            self._failing.pop(member, None)
            self._looks.pop(member, None)
        begin = self._new_cost()
        for member in added:
            self._costs.setdefault(member, begin)

    def _new_cost(self) -> float:
        return self._median + self._clock() / TAU if self._peak > -inf else 0.0

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        members, size = self._members, len(self._members)
        if size > 1 and self._equal and not exclude:
            first = int(self._random() * size)
            # From the one before the first backwards, but for the first: an index below 0 counts from the end.
            one, other = members[first], members[first - 1 - int(self._random() * (size - 1))]
        else:
            found = super().choose(request, exclude)
            if found is None:
                return None
            one, other = found, self._draw_other(found, exclude)
        lead = self._costs[one] - self._costs[other]
        if -BAND <= lead <= BAND:
            return one if one.in_flight * other.weight <= other.in_flight * one.weight else other
        ratio = exp(min(lead - BAND, MOST)) if lead > 0 else exp(max(lead + BAND, -MOST))
        return one if ratio * (one.in_flight + 1) * other.weight <= (other.in_flight + 1) * one.weight else other

    def _draw_other(self, one: Member, exclude: Container[Member]) -> Member:
        """Draw a member to compare with one, or return that one where the draws find no other."""
        for _ in range(DRAWS if len(self._members) > 1 else 0):
            other = self._draw()
            if other is not one and not (exclude and other in exclude):
                return other
        return one

    def finished(self, member: Member, outcome: Outcome) -> None:
        cost = self._costs.get(member)
        if cost is None:
            return
        now = self._clock() / TAU
        seen = log(max(outcome.first_byte, LEAST_SECONDS)) + now
        if outcome.failure or (outcome.status >= 500 and outcome.status not in _NOT_FAULTS):
            seen = max(seen, self._peak + self._count_failure(member))
            if self._peak == -inf:
                return  # Where nothing has succeeded yet, all are alike.
        else:
            if self._failing:
                self._count_success(member)
            if self._peak == -inf:
                self._begin(seen, now)
                return
            if seen > self._peak:
                self._peak = seen
        if seen > cost:
            self._costs[member] = cost = seen
        self._median += STEP if cost - now > self._median else -STEP
        if now > self._next_look:
            self._look(now)

    def _begin(self, seen: float, now: float) -> None:
        """Have all members begin where the first response of the pool is."""
        self._peak, self._median = seen, seen - now
        self._costs = dict.fromkeys(self._costs, seen)

    def _count_failure(self, member: Member) -> float:
        """Return what a failure costs now, in times the peak of all, as a logarithm."""
        part = self._failing.get(member, 0.0)
        part = self._failing[member] = part + (1 - part) * MEMORY
        return log(1 + PENALTY * part)

    def _count_success(self, member: Member) -> None:
        part = self._failing.pop(member, 0.0) * (1 - MEMORY)
        if part > MEMORY / PENALTY:
            self._failing[member] = part

    def _look(self, now: float) -> None:
        """Look at the next member: one that has requests, and has finished none since, must not get cheaper.

        A member that hangs has no outcomes. Its cost would decay until it drew all requests.
        """
        members = self._members
        self._next_look = now + ROUND / TAU / len(members)
        self._turn = (self._turn + 1) % len(members)
        member = members[self._turn]
        look = member.requests - member.in_flight, member.in_flight > 0
        if look[1] and self._looks.get(member) == look:
            self._costs[member] = max(self._costs[member], self._median + now)
        self._looks[member] = look
