"""A member in the report of a process, and the sum of its rows in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from balancer.discovery.snapshot import Endpoint
from balancer.members.ejection import Ejection, EjectionKind
from balancer.members.health import State
from balancer.members.member import Member

# From the best to the worst.
_STATES = (State.UP, State.JOINING, State.SUSPECT, State.DRAINING, State.DOWN, State.LEAVING)


class EjectionRow(NamedTuple):
    """The fields of an ``Ejection``, which can be compared."""

    kind: EjectionKind
    reason: str
    since: float
    until: float
    times: int
    on_trial: bool


class MemberRow(NamedTuple):
    """A member in a report; the fields are those of ``Member``."""

    endpoint: Endpoint
    since: float
    state: State
    reason: str
    in_flight: int
    requests: int
    drained: bool
    drained_since: float
    ejection: EjectionRow | None = None
    limit: float = inf

    @classmethod
    def of(cls, member: Member) -> MemberRow:
        """Return the row of a member."""
        it = member.ejection
        return cls(
            member.endpoint, member.since, member.state, member.reason, member.in_flight, member.requests,
            member.drained, member.drained_since,
            EjectionRow(it.kind, it.reason, it.since, it.until, it.times, it.on_trial) if it else None,
            member.limit,
        )  # fmt: skip

    @property
    def condition(self) -> tuple[object, ...]:
        """What a page shows at once when it changes."""
        return self.state, self.drained, self.ejection


def merge_rows(member: Member, rows: Sequence[MemberRow]) -> None:
    """Set a member to what rows of several processes amount to."""
    judges = [row for row in rows if row.state is not State.JOINING] or rows
    member.state = max((row.state for row in judges), key=_STATES.index)
    agreeing = [row for row in judges if row.state is member.state]
    # A member is up since the last process has found it so, and in any other state since the first has.
    decisive = (max if member.state is State.UP else min)(agreeing, key=lambda row: row.since)
    member.endpoint, member.since = decisive.endpoint, decisive.since
    member.reason = decisive.reason + _in_some(agreeing, judges)
    member.in_flight = sum(row.in_flight for row in rows)
    member.requests = sum(row.requests for row in rows)
    member.limit = sum(row.limit for row in rows)
    drained = [row for row in rows if row.drained]
    member.drained = bool(drained)
    member.drained_since = min(row.drained_since for row in drained or rows)
    member.ejection = _merge_ejections(rows)


def _merge_ejections(rows: Sequence[MemberRow]) -> Ejection | None:
    """Return the ejection that lasts longest; one that is over, on trial, counts only where no other is left."""
    found = [row.ejection for row in rows if row.ejection]
    if not found:
        return None
    at_this_stage = [it for it in found if not it.on_trial] or found
    it = max(at_this_stage, key=lambda it: it.until)
    merged = Ejection(it.kind, it.reason + _in_some(at_this_stage, rows), it.since, it.until, it.times)
    merged.on_trial = it.on_trial
    return merged


def _in_some(agreeing: Sequence[object], judges: Sequence[object]) -> str:
    """Return words for the number of processes that agree, or "" for all of them."""
    return f" (in {len(agreeing)} of {len(judges)} processes)" if len(agreeing) < len(judges) else ""
