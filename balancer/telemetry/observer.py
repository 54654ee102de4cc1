"""Who is told of what happens: logs, figures, hooks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from balancer.discovery.snapshot import Snapshot
from balancer.dispatch.context import RequestRecord
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change


class Observer:
    """Base class of observers: a subclass overrides what it wants to know.

    Each call comes in the event loop, in the middle of a request: it must be quick, must not wait and must not raise.
    """

    def done(self, record: RequestRecord) -> None:
        """Take note of a request that is over.

        Args:
            record: What became of it. It does not change any more.
        """

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        """Take note of a round of DNS answers: one every ``resolve_interval`` seconds, or sooner while none is up.

        Args:
            snapshot: The answers, one for each record type, with the clock reading in seconds.
            change: The members that came and went by it: ``joined`` and ``left``, mostly empty.
        """

    def flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        """Take note of a change of state of a member.

        Args:
            member: The member, in its new state.
            before: The state that it had.
            event: What led to the change.
        """

    def drained(self, member: Member) -> None:
        """Take note of a member that was drained by hand, or undrained; ``member.drained`` says which."""


def all_done(observers: Sequence[Observer]) -> Callable[[RequestRecord], None]:
    """One call for the ends of requests, to those of the observers that want to know."""
    wanted = [it.done for it in observers if type(it).done is not Observer.done]
    if len(wanted) == 1:
        return wanted[0]

    def done(record: RequestRecord) -> None:
        for tell in wanted:
            tell(record)

    return done
