"""The faster of two members, by the time to the first byte of late and by the requests in flight. No I/O.

Rules:
* A member's latency is its peak: each response counts as ``first_byte * exp(-age / TAU)``, and the largest is the cost
  (peak-EWMA, as in Finagle). A slow response counts at once, and a member that was slow is asked again in seconds.
* Of costs within BAND of each other neither is less: then requests in flight decide, as in ``LeastRequests``. Chance
  makes the peaks of equal members differ, and must not keep one of five without requests (Traefik #12306).
* A failure costs a multiple of the slowest success of any member, the more the more of the member's attempts fail.
* A new member begins at the median. A member that has requests, and finishes none, gets no cheaper than that.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from math import exp, inf
from random import Random
from typing import Final

from mypy_extensions import mypyc_attr

from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.members.outcome import Outcome
from balancer.policies.random_choice import RandomChoice
from balancer.policies.weights import DRAWS
from balancer.types import Clock

# Seconds in which what a response counts falls to 37 %: one ten times as slow is within BAND again after 3 s.
TAU: Final = 2.0
# Costs that differ by less are the same. docs/decisions/policies.md has what other numbers do to shares and latency.
BAND: Final = 2.0
# What a failure costs, in times the peak of all, where a member does nothing but fail. The part that fails is a mean
# over some 16 attempts.
PENALTY: Final = 20.0
MEMORY: Final = 1 / 16
# Seconds for which a reading of the clock is good enough for the decay.
TICK: Final = 0.001
# How far each outcome, at most one for each TICK, moves the median (a Robbins-Monro estimate).
STEP: Final = 1.05
# Seconds in which all members are looked at, whether they finish what they have.
ROUND: Final = 0.5
# Seconds after which costs are written anew, so that their scale stays within what a float holds.
SCALE_SECONDS: Final = 100 * TAU
# Statuses that say what the request and the balancer are like, not how the member does.
_NOT_FAULTS: Final = (501, 505)


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastLatency(RandomChoice):
    """Draws two members and chooses the one whose latency, times its requests, is less for its weight.

    Costs do not decay where they are kept: what is new is scaled up, by ``exp(now / TAU)``. So a choice compares two
    numbers, without a reading of the clock.

    Args:
        rng: Draws the members.
        clock: Is read once for each outcome.
    """

    def __init__(self, rng: Random, clock: Clock) -> None:
        super().__init__(rng)
        self._clock = clock
        # In scaled seconds; all are 0 until a response has succeeded.
        self._costs: dict[Member, float] = {}
        # The largest cost that any success has made, scaled as well; and the median of costs, in seconds.
        self._peak = 0.0
        self._median = 0.0
        # The scale of now, since when it grows, and until when it is good.
        self._scale = 1.0
        self._scaled_from = -inf
        self._scaled_until = -inf
        # The part of its attempts that fail, of each member of which one has failed lately.
        self._failing: dict[Member, float] = {}
        # Requests that a member had finished when it was looked at, and whether it had others.
        self._looks: dict[Member, tuple[int, bool]] = {}
        self._turn = 0
        self._next_look = -inf

    def build(self, members: Sequence[Member]) -> None:
        super().build(members)
        known, begin = self._costs, self._median * self._scale
        self._costs = {member: known.get(member, begin) for member in members}
        self._failing = {member: part for member, part in self._failing.items() if member in self._costs}
        self._looks = {}

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        super().update(members, added, removed)
        for member in removed:
            self._costs.pop(member, None)
            self._failing.pop(member, None)
            self._looks.pop(member, None)
        for member in added:
            self._costs.setdefault(member, self._median * self._scale)

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        members, size, costs = self._members, len(self._members), self._costs
        if size > 1 and self._equal and not exclude:
            first = int(self._random() * size)
            # From the one before the first backwards, but for the first: an index below 0 counts from the end.
            one, other = members[first], members[first - 1 - int(self._random() * (size - 1))]
            cost, other_cost = costs[one], costs[other]
            if cost <= BAND * other_cost and other_cost <= BAND * cost:
                return one if one.in_flight <= other.in_flight else other
        else:
            found = super().choose(request, exclude)
            if found is None:
                return None
            one, other = found, self._draw_other(found, exclude)
            cost, other_cost = costs[one], costs[other]
            if cost <= BAND * other_cost and other_cost <= BAND * cost:
                return one if one.in_flight * other.weight <= other.in_flight * one.weight else other
        if cost > other_cost:
            cost /= BAND
        else:
            other_cost /= BAND
        is_less = cost * (one.in_flight + 1) * other.weight <= other_cost * (other.in_flight + 1) * one.weight
        return one if is_less else other

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
        now = self._clock()
        if now > self._scaled_until:
            self._tick(now, cost)
            cost = self._costs[member]
        seen = outcome.first_byte * self._scale
        if outcome.failure or (outcome.status >= 500 and outcome.status not in _NOT_FAULTS):
            # Where nothing has succeeded yet, the peak is 0, and all members are alike.
            seen = max(seen, self._peak * self._count_failure(member)) if self._peak else 0.0
        else:
            if self._failing:
                self._count_success(member)
            if seen > self._peak:
                if not self._peak:
                    self._begin(seen)
                self._peak = seen
        if seen > cost:
            self._costs[member] = seen

    def _begin(self, seen: float) -> None:
        """Have all members begin where the first response of the pool is."""
        self._median = seen / self._scale
        self._costs = dict.fromkeys(self._costs, seen)

    def _tick(self, now: float, cost: float) -> None:
        """Bring the scale up to date, and the median, with the cost of a member that has finished a request."""
        if now - self._scaled_from > SCALE_SECONDS:
            shrink = exp((self._scaled_from - now) / TAU)
            self._costs = {member: shrink * old for member, old in self._costs.items()}
            self._peak *= shrink
            cost *= shrink
            self._scaled_from = now
        self._scale = exp((now - self._scaled_from) / TAU)
        self._scaled_until = now + TICK
        self._median = self._median * STEP if cost > self._median * self._scale else self._median / STEP
        if now > self._next_look:
            self._look(now)

    def _look(self, now: float) -> None:
        """Look at the next member: one that has requests, and has finished none since, must not get cheaper.

        A member that hangs has no outcomes. Its cost would decay until it drew all requests.
        """
        members = self._members
        self._next_look = now + ROUND / len(members)
        self._turn = (self._turn + 1) % len(members)
        member = members[self._turn]
        look = member.requests - member.in_flight, member.in_flight > 0
        if look[1] and self._looks.get(member) == look:
            self._costs[member] = max(self._costs[member], self._median * self._scale)
        self._looks[member] = look

    def _count_failure(self, member: Member) -> float:
        """Return what a failure costs now, in times the peak of all."""
        part = self._failing.get(member, 0.0)
        part = self._failing[member] = part + (1 - part) * MEMORY
        return 1 + PENALTY * part

    def _count_success(self, member: Member) -> None:
        part = self._failing.pop(member, 0.0) * (1 - MEMORY)
        if part > MEMORY / PENALTY:
            self._failing[member] = part
