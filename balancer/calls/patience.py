"""The time-outs of httpx for one call: each limits one kind of waiting, and one timer keeps them all.

Rules, as httpx has them:
* ``pool``: each wait for a member, in the queue. 0 takes a member that is free at once, or none.
* ``connect``: each wait for a connection to a member. The call ends then, and the member is none the worse.
* ``write``: until a member takes the next piece of the call's body.
* ``read``: until the response begins, over all attempts. What is spent in the queue and on connections does not count.
* The time that the caller's own body takes counts for none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from math import inf

from balancer.loop_time import Timer, loop_time


class Wait(Enum):
    """What a call waits for: the limit of httpx for that, its exception, and words for it."""

    MEMBER = "pool", "PoolTimeout", "no member became available in time"
    CONNECTION = "connect", "ConnectTimeout", "no connection to a member in time"
    UPLOAD = "write", "WriteTimeout", "the member takes nothing more of the body"
    RESPONSE = "read", "ReadTimeout", "no response in time"
    # The caller's own body.
    SOURCE = "", "", ""


# Each wait of these kinds has its limit for itself.
_APART = frozenset({Wait.MEMBER, Wait.CONNECTION})


class Patience:
    """The time that a call has left. ``expired``: what it has waited for too long, or None.

    Args:
        limits: Seconds by the names of httpx; None, or no entry, is no limit.
        on_expiry: Called once, when ``expired`` is set.
    """

    def __init__(self, limits: Mapping[str, float | None], on_expiry: Callable[[], None]) -> None:
        self._limits = limits
        self._on_expiry: Callable[[], None] | None = on_expiry
        self._clock = loop_time()
        self._timer: Timer | None = None
        self._timer_at = inf
        self._wait = Wait.RESPONSE
        # Since when the time at members counts, and the present wait apart from it.
        self._since = self._apart_since = self._clock.time()
        self.expired: Wait | None = None

    def limit(self, name: str) -> float:
        """Return a time-out in seconds by its name in httpx."""
        seconds = self._limits.get(name)
        return inf if seconds is None else seconds

    def begin(self, wait: Wait) -> None:
        """Note what the call waits for from now on."""
        now = self._clock.time()
        if self._wait is Wait.SOURCE:
            self._since = now
        elif self._wait in _APART:
            self._since += now - self._apart_since
        self._apart_since = now
        self._wait = wait
        self._set_timer()

    def _due(self) -> float:
        name = self._wait.value[0]
        return (self._apart_since if self._wait in _APART else self._since) + self.limit(name) if name else inf

    def _set_timer(self) -> None:
        """Have ``_check`` called when the present wait is too long, or before: what comes later needs no new timer."""
        due = self._due()
        if due < self._timer_at and self._on_expiry:
            if self._timer:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._clock.call_later(max(0.0, due - self._clock.time()), self._check)

    def _check(self) -> None:
        self._timer, self._timer_at = None, inf
        if self._due() > self._clock.time():
            self._set_timer()
        elif self._on_expiry:
            self.expired = self._wait
            self._on_expiry()

    def end(self) -> None:
        """Stop watching the time."""
        if self._timer:
            self._timer.cancel()
        self._timer = self._on_expiry = None
