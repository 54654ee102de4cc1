"""Which member gets a request. No I/O; the cost of a choice does not grow with the members."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from balancer.membership import Member

# A weight's share is kept to one part in this many, so that SRV's 65535 does not make a long round.
WEIGHT_STEPS = 100


class Policy(Protocol):
    """Chooses among the members that it was last built with."""

    def build(self, members: Sequence[Member]) -> None:
        """Take over the members that may be chosen from now on."""

    def choose(self, exclude: Collection[Member] = ()) -> Member | None:
        """A member for one request; one in ``exclude`` only where there is no other; None where nobody is."""


class RoundRobin:
    """One after the other, per request; by SRV weight where weights differ.

    A member of weight 3 stands three times in a round, spread over it. A weight of 0
    counts as the smallest share (RFC 2782 asks for a very small chance, not for none).
    """

    def __init__(self) -> None:
        self._round: Sequence[Member] = ()
        self._next = 0

    def build(self, members: Sequence[Member]) -> None:
        self._round = members if len({it.endpoint.weight for it in members}) <= 1 else _weighted_round(members)

    def choose(self, exclude: Collection[Member] = ()) -> Member | None:
        size = len(self._round)
        if not size:
            return None
        start = self._next % size
        for step in range(size):
            member = self._round[(start + step) % size]
            if not exclude or member not in exclude:
                self._next = start + step + 1
                return member
        self._next = start + 1
        return self._round[start]


def _weighted_round(members: Sequence[Member]) -> list[Member]:
    scale = min(1.0, WEIGHT_STEPS / max(it.endpoint.weight for it in members))
    equals: dict[int, list[Member]] = {}
    for member in members:
        equals.setdefault(max(1, round(member.endpoint.weight * scale)), []).append(member)
    # Time of each turn within the round, from 0 to 1: those of equal share take theirs one after the other.
    turns = [
        ((turn + (rank + 0.5) / len(group)) / share, -share, rank, member)
        for share, group in equals.items()
        for rank, member in enumerate(group)
        for turn in range(share)
    ]
    return [member for *_, member in sorted(turns, key=lambda turn: turn[:3])]
