"""The phases of a connection to a member, and which may follow which."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Phase(Enum):
    """The activity of a connection."""

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
