"""Round robin: the next in turn."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Container, Sequence
from random import Random

from mypy_extensions import mypyc_attr

from balancer.http.request import AnyRequest
from balancer.members.member import BY_ADDRESS, Member
from balancer.policies.base import Policy
from balancer.policies.weights import DRAWS, TABLE_MAX, Shares, weighted_round

# Turns that are this part of a round apart (the golden ratio's) are spread evenly over it, however many there have been
# (Knuth, The Art of Computer Programming, section 6.4, on Fibonacci hashing).
GOLDEN = 0.6180339887498949


@mypyc_attr(allow_interpreted_subclasses=True)
class RoundRobin(Policy):
    """Gives each request to the next member. A member of weight 3 stands three times in a round, spread over it.

    Many members of unequal weight have no round, which each change would lay out anew. Groups of equals take turns
    by their weights, and in each group its members.

    The first turn is drawn at random, so that balancers that start together do not walk in step. With twenty over
    10,000 members that more than doubled the median latency (docs/performance/simulation.md).

    Args:
        rng: Draws the first turn.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._round: Sequence[Member] = ()
        self._start = self._next = 0
        self._shares = Shares()
        # The members, where they take turns by group; then there is no round.
        self._grouped: Sequence[Member] = ()
        self._turn = 0.0

    def build(self, members: Sequence[Member]) -> None:
        self._shares.build(members)
        self._lay_out(members)
        self._start = self._next = self._rng.getrandbits(32)
        self._turn = self._rng.random()

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        in_order = self._shares.equal
        last = self._round[self._next - 1] if 0 < self._next <= len(self._round) else None
        self._shares.update(added, removed)
        self._lay_out(members)
        if last and in_order and self._shares.equal:
            # A member that came or went in front of the last one must not make a turn come twice, or never.
            self._next = bisect(members, last.address, key=BY_ADDRESS)

    def _lay_out(self, members: Sequence[Member]) -> None:
        self._grouped = () if self._shares.equal or len(members) <= TABLE_MAX else members
        self._round = () if self._grouped else members if self._shares.equal else weighted_round(members)

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        size = len(self._round)
        if not size:
            return self._choose_by_group(exclude) if self._grouped else None
        start = self._next % size
        if not exclude:
            self._next = start + 1
            return self._round[start]
        for step in range(size):
            member = self._round[(start + step) % size]
            if member not in exclude:
                self._next = start + step + 1
                return member
        return None

    def _choose_by_group(self, exclude: Container[Member]) -> Member | None:
        for _ in range(DRAWS):
            self._turn = (self._turn + GOLDEN) % 1.0
            group = self._shares.group_at(self._turn)
            member = group.members[(self._start + group.turn) % len(group.members)]
            group.turn += 1
            if not exclude or member not in exclude:
                return member
        return next((member for member in self._grouped if member not in exclude), None)
