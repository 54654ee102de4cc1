"""A connection from a client in any protocol: its phase, and how long each phase may last. No I/O.

HTTP/1.1 (plain, over TLS, behind a PROXY header) and HTTP/2 share the table of transitions and that of time-outs.

Rules:
* No connection has a timer or reads a clock: ``ClientRegistry`` checks all of them once a second. A connection in the
  same phase on two checks has been in it the whole time between.
* Time in which a request is answered, or in which the balancer does not read, does not count against the client.
* A body has a least rate until its response begins. From then on, a byte of either side ends the silence of both.
* Bytes that the client has not read for STREAM_IDLE_TIMEOUT end the connection in any phase.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.phase_checks import CHECK_STATES, check_phases
from balancer.words import counted

# Seconds in which a client may read the last answer before its connection is closed for good.
LINGER_SECONDS = 1.0
# Bounds for what a client sends behind its last answer: seconds of silence in mid-body, seconds and bytes in all. (The
# seconds are nginx's lingering_timeout and lingering_time.)
DISCARD_SILENCE = 5.0
DISCARD_SECONDS = 30.0
DISCARD_BYTES = 256 * 1024 * 1024
# Seconds that a body may take whatever its rate.
RATE_SECONDS = 20.0


class Phase(Enum):
    """The client's next move, as the balancer expects it."""

    HANDSHAKE = "handshake"  # a PROXY header, or TLS: there is no HTTP yet
    NEW = "new"  # the first request
    HEAD = "head"  # the rest of a request's head
    BODY = "body"  # the rest of a request's body
    AWAIT_CONTINUE = "await continue"  # nothing: the client waits for 100 (Continue) before it sends a body
    ACTIVE = "active"  # nothing in particular: streams of HTTP/2 are under way
    IDLE = "idle"  # the next request
    SWITCHING = "switching"  # nothing: a member has a request for another protocol (RFC 9110 section 7.8)
    TUNNEL = "tunnel"  # bytes of that protocol
    DONE = "done"  # nothing more: the answers under way are the last
    REJECTED = "rejected"  # nothing more: its bytes cannot be served, and the refusal follows the answers before it
    DISCARDING = "discarding"  # the rest of a body that is not wanted: the answer to its request is complete
    LINGERING = "lingering"  # its side of the connection to be closed
    CLOSED = "closed"


NEW: Final = Phase.NEW
HEAD: Final = Phase.HEAD
BODY: Final = Phase.BODY
AWAIT_CONTINUE: Final = Phase.AWAIT_CONTINUE
ACTIVE: Final = Phase.ACTIVE
IDLE: Final = Phase.IDLE
SWITCHING: Final = Phase.SWITCHING
TUNNEL: Final = Phase.TUNNEL
DONE: Final = Phase.DONE
REJECTED: Final = Phase.REJECTED
DISCARDING: Final = Phase.DISCARDING
LINGERING: Final = Phase.LINGERING
CLOSED: Final = Phase.CLOSED

# What comes in these is dropped.
ENDING: Final = frozenset({DONE, REJECTED, DISCARDING, LINGERING})

# Any phase but CLOSED may end because the client leaves, and any in which HTTP is expected by a refusal.
_ENDS = frozenset({REJECTED, DISCARDING, LINGERING, CLOSED})

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.HANDSHAKE: frozenset({NEW, CLOSED}),
    NEW: frozenset({HEAD, IDLE, ACTIVE, DONE}) | _ENDS,
    HEAD: frozenset({BODY, AWAIT_CONTINUE, IDLE, SWITCHING, DONE}) | _ENDS,
    BODY: frozenset({BODY, IDLE, SWITCHING, DONE}) | _ENDS,
    AWAIT_CONTINUE: frozenset({BODY, IDLE, SWITCHING, DONE}) | _ENDS,
    ACTIVE: frozenset({ACTIVE, IDLE, LINGERING, CLOSED}),
    IDLE: frozenset({IDLE, HEAD, ACTIVE, DONE}) | _ENDS,
    SWITCHING: frozenset({TUNNEL, IDLE, DONE}) | _ENDS,
    TUNNEL: frozenset({CLOSED}),
    DONE: frozenset({DONE, TUNNEL}) | _ENDS,
    REJECTED: frozenset({LINGERING, CLOSED}),
    DISCARDING: frozenset({CLOSED}),
    LINGERING: frozenset({LINGERING, ACTIVE, CLOSED}),
    CLOSED: frozenset(),
}

TIMEOUTS: dict[Phase, Callable[[Settings], float]] = {
    Phase.HANDSHAKE: lambda settings: settings.header_timeout,
    NEW: lambda settings: settings.header_timeout,
    HEAD: lambda settings: settings.header_timeout,
    BODY: lambda settings: settings.stream_idle_timeout,
    AWAIT_CONTINUE: lambda settings: inf,
    ACTIVE: lambda settings: inf,
    IDLE: lambda settings: settings.keepalive_timeout,
    SWITCHING: lambda settings: inf,
    TUNNEL: lambda settings: settings.stream_idle_timeout,
    DONE: lambda settings: inf,
    REJECTED: lambda settings: inf,
    DISCARDING: lambda settings: DISCARD_SILENCE,
    LINGERING: lambda settings: LINGER_SECONDS,
    CLOSED: lambda settings: inf,
}


def timeout(phase: Phase, settings: Settings) -> float:
    """Return the seconds that a client may keep a connection in this phase."""
    return TIMEOUTS[phase](settings)


def unread_timeout(settings: Settings) -> float:
    """Return the seconds in which a client has to read a byte of what it was sent, in any phase."""
    return settings.stream_idle_timeout


class BodyRate:
    """Progress of a request's body. ``received``: bytes since the check that noticed the phase."""

    __slots__ = ("_last_piece", "received")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from here: another phase has begun."""
        self.received = 0
        # Bytes, with those of the response, at the last check that found more of them, and its time.
        self._last_piece = (0, 0.0)

    def check(self, waited: float, now: float, limits: Settings, answered: int | None = None) -> Refusal | None:
        """Return the refusal of a body that has stopped or is too slow.

        ``waited``: seconds since its phase began. ``answered``: bytes of the response so far, or None before its head.
        Once a response has begun, its application sets the pace. Then only silence of both sides counts.
        """
        if self._silence(waited, now, self.received + (answered or 0)) > (limit := timeout(BODY, limits)):
            return Refusal(408, "request_timeout", f"no byte of the body for {limit:g} s")
        least = limits.min_body_rate
        if answered is None and waited > RATE_SECONDS and self.received < least * (waited - RATE_SECONDS):
            return Refusal(408, "request_timeout", f"the body came with less than {counted(least, 'byte')}/s")
        return None

    def is_discarded(self, waited: float, now: float, silence: float) -> bool:
        """Whether no more is read of what comes behind the last answer. ``silence``: seconds that end it."""
        is_silent = self._silence(waited, now, self.received) > silence
        return is_silent or waited > DISCARD_SECONDS or self.received > DISCARD_BYTES

    def _silence(self, waited: float, now: float, progress: int) -> float:
        """Return the seconds since ``progress`` last grew, or since the phase began."""
        if progress != self._last_piece[0]:
            self._last_piece = (progress, now)
        return min(waited, now - self._last_piece[1])


class ClientConnection:
    """A client connection. ``peer``: the client's IP address, or "" without one. ``messages``: requests so far.

    ``body``: progress of what comes in, in the phases BODY, DISCARDING and LINGERING.
    """

    __slots__ = ("_checked", "_since", "_unread", "body", "limits", "messages", "peer", "phase")

    def __init__(self, limits: Settings) -> None:
        self.limits = limits
        self.peer = ""
        self.phase: Phase = NEW
        self.messages = 0
        self.body = BodyRate()
        # Phase and number of messages at the last check, None unless the client had to act then; and since when.
        self._checked: tuple[Phase, int] | None = (NEW, 0)
        self._since = 0.0
        # Bytes unread by the client at the last check, and since when there are so many.
        self._unread = (0, 0.0)

    # Each protocol defines these.

    @property
    def unread(self) -> int:
        """Bytes that wait for the client to read them; 0 while it reads fast enough."""
        raise NotImplementedError

    @property
    def answered(self) -> int | None:
        """Bytes of the response to the request whose body comes in; None before it has begun."""
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether the balancer waits for the client, so that the time counts."""
        return True

    def limit_reached(self, limit: str, words: str) -> None:
        """Count a bound, one of ``balancer.telemetry.client_limits.LIMITS``; ``words``: what the client does."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the connection immediately."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """Finish the requests that have come, then close: the server stops."""
        raise NotImplementedError

    def reject(self, refusal: Refusal) -> None:
        """End the connection with this refusal: the client's bytes cannot be served, or come too slowly."""
        raise NotImplementedError

    def time_out(self, limit: float) -> None:
        """End the connection: the client has been in this phase for more than ``limit`` seconds."""
        raise NotImplementedError

    # The check.

    def begin_checks(self, now: float) -> None:
        """Count the time of the first phase from ``now``, a reading of ``LoopTime``."""
        self._since = now

    def check_timeouts(self, now: float) -> None:
        """End the connection if the client has taken too long. ``now``: a reading of ``LoopTime``."""
        unread = self.unread
        if unread != self._unread[0]:
            self._unread = (unread, now)
        elif unread and now > self._unread[1] + (limit := unread_timeout(self.limits)):
            self.limit_reached("unread", f"has read nothing for {limit:g} s; it is cut off")
            self.abort()
        if not self.is_waiting:
            self.stop_waiting()
            return
        state = (self.phase, self.messages)
        if state != self._checked:
            # The first head has had its time since the connection was made.
            if self._checked != (NEW, 0) or self.phase is not HEAD:
                self._since = now
            self._checked = state
            self.body.restart()
        else:
            self._check_phase(now - self._since, now)

    def stop_waiting(self) -> None:
        """Leave out the time from here to the next check: it is the balancer's."""
        self._checked = None

    def _check_phase(self, waited: float, now: float) -> None:
        """End the phase if it may not last for ``waited`` seconds."""
        if self.phase is BODY:
            if refusal := self.body.check(waited, now, self.limits, self.answered):
                self.reject(refusal)
        elif self.phase is LINGERING or self.phase is DISCARDING:
            if self.body.is_discarded(waited, now, limit := timeout(self.phase, self.limits)):
                self.time_out(limit)
        elif waited > (limit := timeout(self.phase, self.limits)):
            if self.phase is NEW:
                self.limit_reached("header_timeout", f"has sent nothing for {limit:g} s; its connection is closed")
            self.time_out(limit)


if CHECK_STATES:
    check_phases(ClientConnection, TRANSITIONS, NEW)
