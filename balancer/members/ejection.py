"""The ejection of a member: out for failing while it answers, beside its state. No I/O."""

from __future__ import annotations

from enum import StrEnum


class EjectionKind(StrEnum):
    """What a member is ejected for: FAILURES, LATENCY (both beside the other members), or MANUAL, by hand."""

    FAILURES = "failures"
    LATENCY = "latency"
    MANUAL = "manual"


class Ejection:
    """Why a member is out, and until when. Times are clock readings in seconds.

    A member without one (``Member.ejection`` is None) gets its share of requests. An ejected member gets requests only
    while no other is up or suspect. On trial it gets a tenth of its share, until it is restored or ejected again.

    Attributes:
        kind: What it is ejected for.
        reason: Words with the figures, such as ``5xx: 31 of 40, others 2 of 160``.
        since: When it was ejected.
        until: When its trial begins, or has begun.
        times: Ejections in a row, this one included: each is twice as long as the one before.
        on_trial: Whether its trial has begun.
    """

    def __init__(self, kind: EjectionKind, reason: str, since: float, until: float, times: int = 1) -> None:
        self.kind = kind
        self.reason = reason
        self.since = since
        self.until = until
        self.times = times
        self.on_trial = False

    def __repr__(self) -> str:
        stage = "on trial" if self.on_trial else "ejected"
        return f"<Ejection {stage}, {self.kind.value}: {self.reason}>"


def describe(ejection: Ejection | None) -> str:
    """Return words for the stage of a member's ejection, which may be over."""
    if ejection is None:
        return "restored"
    if ejection.on_trial:
        return "on trial"
    return f"ejected for {ejection.until - ejection.since:.0f} s: {ejection.reason}"
