"""A connection from a client in any protocol: its phase, and how long each phase may last. No I/O.

HTTP/1.1 (plain, over TLS, behind a PROXY header) and HTTP/2 share the table of transitions and that of time-outs.

Rules:
* No connection has a timer or reads a clock: ``ClientRegistry`` checks all of them once a second. A connection in the
  same phase on two checks has been in it the whole time between.
* Time in which a request is answered, or in which the balancer does not read, does not count against the client.
* A body has a least rate until its response begins, and a client that keeps bytes waiting has the same, in any phase:
  ``balancer.frontend.progress`` has the rule.
* A connection that has its last answer is gone a second after the client's kernel has acknowledged the last byte,
  whatever the client sends. Only an upload that was refused in mid-body, in good faith, is read on within DISCARD_….
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final

from mypy_extensions import mypyc_attr

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.frontend.progress import Progress, body_refusal, unread_words
from balancer.phase_checks import CHECK_STATES, check_phases

# Seconds in which a client may read the last answer before its connection is closed for good.
LINGER_SECONDS = 1.0
# Bytes that are read of what a client sends behind its last answer, so that a reset does not overtake that.
LINGER_BYTES = 64 * 1024
# Bounds for a client that is in the middle of an upload when it has its last answer: seconds of silence, seconds and
# bytes in all. (The seconds are nginx's lingering_timeout and lingering_time.)
DISCARD_SILENCE = 5.0
DISCARD_SECONDS = 30.0
DISCARD_BYTES = 256 * 1024 * 1024
# Bytes that leave the buffer of a transport between ``pause_writing`` and ``resume_writing``, at least.
DRAINED = 48 * 1024


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

    # By identity: that of Enum is a call of Python, and each read looks a phase up in a set.
    __hash__ = object.__hash__


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
# No answer follows in these.
ENDED: Final = frozenset({TUNNEL, DISCARDING, LINGERING, CLOSED})

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
    REJECTED: frozenset({DISCARDING, LINGERING, CLOSED}),
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
    TUNNEL: lambda settings: inf,
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


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientConnection:
    """A client connection. ``peer``: the client's IP address, or "" without one. ``messages``: requests so far.

    ``body``: progress of what comes in, in the phases BODY and DISCARDING. ``drained``: bytes that have left the
    transport's buffer while it was full, at least. ``dropped``: bytes that came behind the last request that is served.
    """

    __slots__ = (
        "_came", "_checked", "_download", "_since", "_untaken", "body", "drained", "dropped", "limits", "messages",
        "peer", "phase",
    )  # fmt: skip

    def __init__(self, limits: Settings) -> None:
        self.limits = limits
        self.peer = ""
        self.phase: Phase = NEW
        self.messages = 0
        self.body = Progress()
        self.drained = self.dropped = 0
        # Phase and number of messages at the last check, None unless the client had to act then; and since when.
        self._checked: tuple[Phase, int] | None = (NEW, 0)
        self._since = 0.0
        # Progress of what goes out; None until bytes have waited for the client.
        self._download: Progress | None = None
        # Behind the last answer: bytes that the client had not taken at the last check, since when there are so many,
        # and bytes that had come when the end was noticed.
        self._untaken = (0, 0.0)
        self._came = 0

    # Each protocol defines these.

    @property
    def unread(self) -> int:
        """Bytes that wait for the client to read them; 0 while it reads fast enough."""
        raise NotImplementedError

    @property
    def taken(self) -> int:
        """Bytes that the client has taken, or a figure that grows with them."""
        raise NotImplementedError

    @property
    def is_closing(self) -> bool:
        """Whether the connection closes as soon as what was sent has left, and TLS has ended."""
        return False

    @property
    def untaken(self) -> int:
        """Bytes that the client's kernel has not acknowledged."""
        return self.unread

    @property
    def came(self) -> int:
        """Bytes that have come from the client, as far as its kernel's side is known."""
        return self.dropped

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

    def pause(self) -> None:
        """Stop reading from the client for now."""
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
        if self.phase is LINGERING or self.is_closing:
            self._check_taken(now)
            return
        if self.unread:
            self._check_download(now)
        elif self._download:
            self._download.rest()
        if not self.is_waiting:
            self.stop_waiting()
            return
        state = (self.phase, self.messages)
        if state != self._checked:
            # The first head has had its time since the connection was made.
            if self._checked != (NEW, 0) or self.phase is not HEAD:
                self._since = now
            self._checked = state
            self.body.begin(now, self.limits)
        else:
            self._check_phase(now - self._since, now)

    @property
    def waits_since(self) -> float:
        """The reading of ``LoopTime`` since when the balancer waits for the client, as of the last check."""
        return self._since

    def stop_waiting(self) -> None:
        """Leave out the time from here to the next check: it is the balancer's."""
        self._checked = None

    def _check_download(self, now: float) -> None:
        """Cut the client off if it takes too little of what waits for it."""
        download = self._download = self._download or Progress()
        download.received = self.taken
        if slowness := download.check(now, self.limits):
            self.limit_reached("unread", unread_words(slowness, self.limits))
            self.abort()

    def _check_phase(self, waited: float, now: float) -> None:
        """End the phase if it may not last for ``waited`` seconds."""
        if self.phase is BODY:
            if slowness := self.body.check(now, self.limits, self.answered):
                self.reject(body_refusal(slowness, self.limits))
        elif self.phase is DISCARDING:
            is_silent = self.body.silence(now) > timeout(DISCARDING, self.limits)
            if is_silent or waited > DISCARD_SECONDS:
                self._end_discarding()
        elif waited > (limit := timeout(self.phase, self.limits)):
            if self.phase is NEW:
                self.limit_reached("header_timeout", f"has sent nothing for {limit:g} s; its connection is closed")
            self.time_out(limit)

    # Behind the last answer.

    def drop(self, size: int) -> None:
        """Count bytes that come behind the last request that is served, and read no more where there are too many."""
        self.dropped += size
        self.body.received += size
        if self.phase is not DISCARDING:
            if self.dropped > LINGER_BYTES:
                self.pause()
        elif self.dropped > DISCARD_BYTES:
            self._end_discarding()

    def _end_discarding(self) -> None:
        self.limit_reached("discarding", "goes on with, or stops in, an upload that has its answer; it is cut off")
        self.time_out(timeout(DISCARDING, self.limits))

    def _check_taken(self, now: float) -> None:
        """End the connection a second after the client has taken its last byte."""
        state, untaken, limit = (LINGERING, self.messages), self.untaken, timeout(LINGERING, self.limits)
        if state != self._checked:
            self._checked, self._since, self._untaken, self._came = state, now, (untaken, now), self.came
        elif untaken != self._untaken[0]:
            self._untaken = (untaken, now)
        elif not untaken and now > self._untaken[1] + limit:
            if self.dropped or self.came > self._came:
                self.limit_reached("lingering", f"goes on sending {limit:g} s after its last answer; it is cut off")
            if self.is_closing:
                self.abort()
            else:
                self.time_out(limit)
            return
        if untaken:
            self._check_download(now)
        if now > self._since + DISCARD_SECONDS and not self.is_closing:
            self.time_out(limit)


if CHECK_STATES:
    check_phases(ClientConnection, TRANSITIONS, NEW)
