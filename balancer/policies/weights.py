"""Members in groups of equal weight, and rounds that give each its share. No I/O."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Sequence
from itertools import accumulate

from balancer.members.member import Member

# Parts of a weight's share that are distinguished, so that SRV's 65535 does not make a long round.
WEIGHT_STEPS = 100
# Unequal members up to this number are kept in a table, which is made anew for every change. More are kept in groups of
# equals, which cost a choice a little more and a change next to nothing.
TABLE_MAX = 64


class Group:
    """Members of equal weight. ``turn``: number of choices in turn."""

    __slots__ = ("members", "turn")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.turn = 0


class Shares:
    """Members in groups of equal weight, kept member by member. ``equal``: there is one group at most."""

    def __init__(self) -> None:
        self.equal = True
        self._groups: dict[float, Group] = {}
        # Each member's group, by its weight, and its place there.
        self._places: dict[Member, tuple[float, int]] = {}
        self._order: list[Group] = []
        self._ends: list[float] = [0.0]
        self._floor = 0.0

    def build(self, members: Sequence[Member]) -> None:
        """Take over all members."""
        self._groups = {}
        self._places = {}
        self.update(members, ())

    def update(self, added: Collection[Member], removed: Collection[Member]) -> None:
        """Take over new members, and those with another weight, and drop those that are removed."""
        for member in removed:
            self._take_out(member)
        for member in added:
            place = self._places.get(member)
            if place is None or place[0] != member.weight:
                self._take_out(member)
                group = self._groups.get(member.weight) or self._groups.setdefault(member.weight, Group())
                self._places[member] = member.weight, len(group.members)
                group.members.append(member)
        self.equal = len(self._groups) <= 1
        if not self.equal:
            floor = self._floor = self.heaviest / WEIGHT_STEPS
            self._order = list(self._groups.values())
            self._ends = list(accumulate(max(floor, weight) * len(one.members) for weight, one in self._groups.items()))

    def _take_out(self, member: Member) -> None:
        previous = self._places.pop(member, None)
        if previous:
            weight, place = previous
            group = self._groups[weight].members
            last = group.pop()
            if last is not member:
                group[place] = last
                self._places[last] = previous
            if not group:
                del self._groups[weight]

    @property
    def heaviest(self) -> float:
        """The largest weight."""
        return max(self._groups, default=0.0)

    def part(self, member: Member) -> float:
        """Return the part of all, from 0 to 1, that is a member's by weight."""
        if self.equal:
            return 1.0 / len(self._places)
        return max(self._floor, member.weight) / self._ends[-1]

    def at(self, turn: float) -> tuple[Group, float]:
        """Return the group that a turn from 0 to 1 falls to by weight, and how far into its share, from 0 to 1."""
        ends = self._ends
        point = turn * ends[-1]
        number = bisect(ends, point, 0, len(ends) - 1)
        start = ends[number - 1] if number else 0.0
        return self._order[number], (point - start) / (ends[number] - start)

    def group_at(self, turn: float) -> Group:
        """Return the group that a turn from 0 to 1 falls to by weight."""
        ends = self._ends
        return self._order[bisect(ends, turn * ends[-1], 0, len(ends) - 1)]


def weights_of(members: Sequence[Member]) -> list[float]:
    """Return weights, none below 1 / WEIGHT_STEPS of the largest: RFC 2782 gives a weight of 0 little, not nothing."""
    floor = max((member.weight for member in members), default=0.0) / WEIGHT_STEPS or 1.0
    return [max(floor, member.weight) for member in members]


def weighted_round(members: Sequence[Member]) -> list[Member]:
    """Return a round in which each member has turns in proportion to its weight, spread over it."""
    top = max(member.weight for member in members)
    whole = all(float(member.weight).is_integer() for member in members)
    scale = 1.0 if whole and top <= WEIGHT_STEPS else WEIGHT_STEPS / top
    equals: dict[int, list[Member]] = {}
    for member in members:
        equals.setdefault(max(1, round(member.weight * scale)), []).append(member)
    # Time of each turn within the round, from 0 to 1: those of equal share take theirs one after the other.
    turns = [
        ((turn + (rank + 0.5) / len(group)) / share, -share, rank, member)
        for share, group in equals.items()
        for rank, member in enumerate(group)
        for turn in range(share)
    ]
    return [member for *_, member in sorted(turns, key=lambda turn: turn[:3])]


# Draws that may hit an excluded member before all others are searched.
DRAWS = 16
