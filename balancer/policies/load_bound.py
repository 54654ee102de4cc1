"""A bound on the requests in flight of each member: consistent hashing with bounded loads. No I/O.

A member that has ``factor`` per cent of its part of all requests in flight, this one included, gets no more (Mirrokni,
Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016; ``hash-balance-factor`` of HAProxy). The bound is
rounded up, and so is never below one request.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from math import ceil
from typing import Final

from balancer.members.member import Member
from balancer.policies.weights import Shares

# Members whose requests each choice counts anew. Up to this number the count is exact; of 5,000 a member is counted
# again after 79 choices.
CHUNK: Final = 64


class LoadBound:
    """Keeps count of the requests in flight of all members that may be chosen, some members at each choice.

    Args:
        factor: Percentage of its part that a member may have, above 100.
        shares: Has the part of each member.
    """

    def __init__(self, factor: int, shares: Shares) -> None:
        self._factor = factor / 100
        self._shares = shares
        self._members: Sequence[Member] = ()
        # Requests in flight of each chunk of members, as counted last; their sum; and the chunk that is next.
        self._counts = [0]
        self._total = 0
        self._turn = 0

    def update(self, members: Sequence[Member]) -> None:
        """Take over all members. Until chunks are counted again, those that have moved to another count there."""
        self._members = members
        chunks = max(1, ceil(len(members) / CHUNK))
        self._counts = self._counts[:chunks] + [0] * (chunks - len(self._counts))
        self._total = sum(self._counts)
        self._turn %= chunks

    def excluding(self, exclude: Container[Member]) -> Busy:
        """Return the members that cannot take one more request, with those in ``exclude``."""
        turn = self._turn
        count = 0
        for member in self._members[CHUNK * turn : CHUNK * (turn + 1)]:
            count += member.in_flight
        self._total += count - self._counts[turn]
        self._counts[turn] = count
        self._turn = (turn + 1) % len(self._counts)
        return Busy(self._factor * (self._total + 1), self._shares, exclude)


class Busy:
    """The members that have their part of ``allowed`` requests, or are excluded. It supports ``in`` alone."""

    def __init__(self, allowed: float, shares: Shares, exclude: Container[Member]) -> None:
        self._allowed = allowed
        self._shares = shares
        self._exclude = exclude

    def __contains__(self, member: object) -> bool:
        assert isinstance(member, Member)
        return member.in_flight >= self._allowed * self._shares.part(member) or member in self._exclude
