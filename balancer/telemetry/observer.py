"""Who is told of what happens: logs, figures, hooks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from balancer.discovery.snapshot import Snapshot
from balancer.dispatch.context import RequestRecord
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change


class Observer:
    """Is called at once, in the middle of things: it must be quick, and must not raise."""

    def done(self, record: RequestRecord) -> None:
        """A request is over."""

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        """DNS has answered, and these members came and went by it."""

    def flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        """The state of a member has changed."""

    def drained(self, member: Member) -> None:
        """A member was drained by hand, or undrained."""


def all_done(observers: Sequence[Observer]) -> Callable[[RequestRecord], None]:
    """One call for the ends of requests, to those of the observers that want to know."""
    wanted = [it.done for it in observers if type(it).done is not Observer.done]
    if len(wanted) == 1:
        return wanted[0]

    def done(record: RequestRecord) -> None:
        for tell in wanted:
            tell(record)

    return done
