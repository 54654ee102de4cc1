"""The phases of a connection to a member, and which may follow which.

The table is checked at every change of phase where the environment has BALANCER_CHECK_STATES=1, as the tests do.
Elsewhere a change of phase is the assignment of an attribute and nothing more.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Any, Final


class Phase(Enum):
    """What a connection does."""

    IDLE = "idle"  # no exchange is under way
    ACTIVE = "active"  # one exchange in HTTP
    TUNNEL = "tunnel"  # the member has switched to another protocol (RFC 9110 section 7.8)
    CLOSED = "closed"  # closed, or closing


IDLE: Final = Phase.IDLE
ACTIVE: Final = Phase.ACTIVE
TUNNEL: Final = Phase.TUNNEL
CLOSED: Final = Phase.CLOSED

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    IDLE: frozenset({ACTIVE, CLOSED}),
    ACTIVE: frozenset({IDLE, TUNNEL, CLOSED}),
    TUNNEL: frozenset({CLOSED}),
    CLOSED: frozenset(),
}

CHECK_STATES: Final = os.environ.get("BALANCER_CHECK_STATES") == "1"


class IllegalTransition(Exception):
    """A change of phase that TRANSITIONS does not allow: a defect of this package."""


class CheckedPhase:
    """A descriptor around the one that stores ``phase``; setting it raises IllegalTransition by TRANSITIONS."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self._stored.__get__(instance)

    def __set__(self, instance: object, after: Phase) -> None:
        before: Phase | None = self._stored.__get__(instance) if self._is_set(instance) else None
        if after not in ({IDLE} if before is None else TRANSITIONS[before]):
            raise IllegalTransition(f"{before} -> {after} of a {type(instance).__name__}")
        self._stored.__set__(instance, after)

    def _is_set(self, instance: object) -> bool:
        try:
            self._stored.__get__(instance)
        except AttributeError:
            return False
        return True


def check_phases(connection_class: type) -> None:
    """Have every change of the slot ``phase`` of a class checked from here on."""
    setattr(connection_class, "phase", CheckedPhase(vars(connection_class)["phase"]))  # noqa: B010
