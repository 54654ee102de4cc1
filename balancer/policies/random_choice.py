"""Random choices: any member, or the less busy of two."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Container, Sequence
from itertools import accumulate
from random import Random

from mypy_extensions import mypyc_attr

from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.policies.base import Policy
from balancer.policies.weights import DRAWS, TABLE_MAX, Shares, weights_of


@mypyc_attr(allow_interpreted_subclasses=True)
class RandomChoice(Policy):
    """Draws each member with a probability in proportion to its weight.

    Args:
        rng: Draws the members.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._random = rng.random
        self._members: Sequence[Member] = ()
        self._shares = Shares()
        self._equal = True
        # Weights of the members, added up one after the other; empty where groups take their place.
        self._cumulated: list[float] = []

    def build(self, members: Sequence[Member]) -> None:
        self._shares.build(members)
        self._lay_out(members)

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        self._shares.update(added, removed)
        self._lay_out(members)

    def _lay_out(self, members: Sequence[Member]) -> None:
        self._members = members
        self._equal = self._shares.equal
        table = not self._equal and len(members) <= TABLE_MAX
        self._cumulated = list(accumulate(weights_of(members))) if table else []

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        if not self._members:
            return None
        member = self._draw()
        if exclude and member in exclude:
            return self._choose_other(exclude)
        return member

    def _choose_other(self, exclude: Container[Member]) -> Member | None:
        """Draw again, so that the others keep their proportions to each other."""
        for _ in range(DRAWS):
            member = self._draw()
            if member not in exclude:
                return member
        left = [member for member in self._members if member not in exclude]
        return self._rng.choices(left, weights_of(left))[0] if left else None

    def _draw(self) -> Member:
        if self._equal:
            return self._members[int(self._random() * len(self._members))]
        if self._cumulated:
            at = bisect(self._cumulated, self._random() * self._cumulated[-1])
            return self._members[min(at, len(self._members) - 1)]
        group, part = self._shares.at(self._random())
        return group.members[min(int(part * len(group.members)), len(group.members) - 1)]


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastRequests(RandomChoice):
    """Draws two members and chooses the one that has fewer requests in flight for its weight.

    A search for the very least of all costs more with every member, and sends a burst to one of them: Mitzenmacher,
    "The Power of Two Choices". Of members of equal weight it draws two different ones, so that of two it finds
    the less busy one.

    Args:
        rng: Draws the members.
    """

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        size = len(self._members)
        if size > 1 and self._equal and not exclude:
            first, second = int(self._random() * size), int(self._random() * (size - 1))
            this, that = self._members[first], self._members[second if second < first else second + 1]
            return this if this.in_flight <= that.in_flight else that
        one = super().choose(request, exclude)
        if one is None:
            return None
        other = self._draw()
        if other is one or (exclude and other in exclude):
            return one
        return one if one.in_flight * other.weight <= other.in_flight * one.weight else other
