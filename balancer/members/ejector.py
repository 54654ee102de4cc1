"""Ejects members, puts them on trial, and restores them. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from balancer.members.ejection import Ejection, EjectionKind
from balancer.members.health import State
from balancer.members.member import Member
from balancer.members.membership import Membership


class Ejector:
    """The ejections of a pool. ``on_change``: called with a member that was ejected, goes on trial or is restored."""

    def __init__(self, membership: Membership, rng: Random, on_change: Callable[[Member], None]) -> None:
        self._membership = membership
        self._rng = rng
        self._on_change = on_change
        # Members that are ejected or on trial.
        self._out: dict[Member, None] = {}

    def eject(self, member: Member, kind: EjectionKind, reason: str, now: float, seconds: float) -> None:
        """Eject a member for so many seconds; a trial follows."""
        if member.state is State.LEAVING:
            return
        times = member.ejection.times + 1 if member.ejection else 1
        self._out[member] = None
        self._set(member, Ejection(kind, reason, now, now + seconds, times))

    def restore(self, member: Member) -> None:
        """Give a member that is ejected or on trial its share again."""
        self._out.pop(member, None)
        if member.ejection:
            self._set(member, None)

    def step(self, now: float) -> None:
        """Begin the trials that are due."""
        for member in list(self._out):
            ejection = member.ejection
            if ejection is None:
                del self._out[member]  # It has left.
            elif not ejection.on_trial and ejection.until <= now:
                ejection.on_trial = True
                self._set(member, ejection)

    def _set(self, member: Member, ejection: Ejection | None) -> None:
        self._membership.set_ejection(member, ejection)
        self._on_change(member)
