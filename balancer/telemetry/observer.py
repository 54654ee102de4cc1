"""The interface of observers, such as logs, figures and hooks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from balancer.discovery.snapshot import Snapshot
from balancer.dispatch.context import RequestRecord, in_turn
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change


class Observer:
    """Base class of observers: a subclass overrides the methods that it needs.

    Each call comes in the event loop, in the middle of a request: it must be quick, must not wait and must not raise.
    """

    def done(self, record: RequestRecord) -> None:
        """Take note of a request that is over.

        Args:
            record: Its outcome, which does not change any more.
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
            event: The cause of the change.
        """

    def drained(self, member: Member) -> None:
        """Take note of a member that was drained by hand, or undrained: see ``member.drained``."""

    def ejected(self, member: Member) -> None:
        """Take note of a member that was ejected, goes on trial or is restored: see ``member.ejection``."""


def all_done(observers: Sequence[Observer]) -> Callable[[RequestRecord], None]:
    """Return one function that calls ``done`` of the observers that override it."""
    functions = [observer.done for observer in observers if type(observer).done is not Observer.done]
    return functions[0] if len(functions) == 1 else in_turn(functions)
