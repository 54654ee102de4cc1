"""What a connection from a client is in, and how long it may be: one table for every front end. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf

from balancer.config.settings import Settings

# Seconds in which a client may read the last answer before its connection is closed for good.
LINGER_SECONDS = 1.0


class Phase(Enum):
    """What the balancer waits for.

    HANDSHAKE: a PROXY header, or TLS. HEAD: the rest of a request's head, or the first one. BODY: the next byte of a
    request's body. IDLE: the next request. READ: the client to take the bytes that were sent. LINGERING: the client to
    close its side. ACTIVE: not for the client.
    """

    HANDSHAKE = "handshake"
    HEAD = "head"
    BODY = "body"
    IDLE = "idle"
    READ = "read"
    LINGERING = "lingering"
    ACTIVE = "active"


TIMEOUTS: dict[Phase, Callable[[Settings], float]] = {
    Phase.HANDSHAKE: lambda settings: settings.header_timeout,
    Phase.HEAD: lambda settings: settings.header_timeout,
    Phase.BODY: lambda settings: settings.stream_idle_timeout,
    Phase.IDLE: lambda settings: settings.keepalive_timeout,
    Phase.READ: lambda settings: settings.stream_idle_timeout,
    Phase.LINGERING: lambda settings: LINGER_SECONDS,
    Phase.ACTIVE: lambda settings: inf,
}


def timeout(phase: Phase, settings: Settings) -> float:
    """Seconds that a client may keep a connection in this phase."""
    return TIMEOUTS[phase](settings)
