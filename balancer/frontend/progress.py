"""Progress of one direction of one request: how long it may be silent, and how slow it may be. No I/O, and no clock.

One class serves all of them: uploads over HTTP/1.1, over each stream of HTTP/2 and through ASGI, downloads over the
first two. Its users count bytes; ``ClientRegistry`` checks once a second.

Rules:
* Time counts only while a client is waited for: it owes bytes of a body, or bytes wait for it. A pause of the
  balancer's, and a member that sends slowly (server-sent events), never count against a client.
* STREAM_IDLE_TIMEOUT without a byte is too long.
* Each direction has an account of bytes. It opens with MIN_BODY_RATE for RATE_SECONDS; each second takes MIN_BODY_RATE
  from it, and each byte adds one. It holds no more than MIN_BODY_RATE for STREAM_IDLE_TIMEOUT. Below zero, the client
  is too slow.
* A rest, as when a client has taken everything, leaves the account with no less than it opened with.

So a client has to come to MIN_BODY_RATE over every span of time, less an allowance: RATE_SECONDS, or
STREAM_IDLE_TIMEOUT once it has been faster. A burst in the beginning does not pay for an hour of trickling.

With the defaults a phone at 2 KB/s fills its account (14.4 KB) in 5 to 8 s. A video player that then reads nothing
for 50 s has 10 s left, and 12 KB fill the account again. 240 bytes/s is what a modem
of 2400 baud carries. IIS and Kestrel demand as much by default, both ways. A client that holds a place of a
member at that rate has to send or take 14.4 KB a minute for it.
"""

from __future__ import annotations

from enum import Enum

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.words import counted

# Seconds of MIN_BODY_RATE with which an account opens.
RATE_SECONDS = 20.0


class Slowness(Enum):
    """The rule that a client has broken."""

    SILENT = "silent"
    SLOW = "slow"


class Progress:
    """Progress of one direction. ``received``: bytes that its receiver has, which its user counts.

    A figure that sometimes falls is as good: only what it grows by between two checks counts.
    """

    __slots__ = ("_checked_at", "_counted", "_moved_at", "_seconds_left", "received")

    def __init__(self) -> None:
        self.received = 0
        # Bytes, with those of the other direction, at the last check.
        self._counted = 0
        # Time of the last check, or None after a rest; and of the last that found more bytes.
        self._checked_at: float | None = None
        self._moved_at = 0.0
        # The account, in seconds of MIN_BODY_RATE.
        self._seconds_left = RATE_SECONDS

    def check(self, now: float, limits: Settings, answered: int | None = None) -> Slowness | None:
        """Return the rule that has been broken, or None. The time since the last check counts, unless a rest followed.

        ``answered``: bytes that have gone the other way, or None before the first. From then on the application sets
        the pace of both. Only silence of both counts then.
        """
        waited = 0.0 if self._checked_at is None else now - self._checked_at
        came = self._note(now, answered or 0)
        if now - self._moved_at > limits.stream_idle_timeout:
            return Slowness.SILENT
        if answered is None and limits.min_body_rate:
            most = max(RATE_SECONDS, limits.stream_idle_timeout)
            self._seconds_left = min(most, self._seconds_left - waited + came / limits.min_body_rate)
            if self._seconds_left < 0:
                return Slowness.SLOW
        return None

    def silence(self, now: float) -> float:
        """Return the seconds since the last byte, as checks have noticed it, or since a rest."""
        self._note(now, 0)
        return now - self._moved_at

    def rest(self) -> None:
        """Leave out the time from the last check to the next: the client is not waited for."""
        self._checked_at = None
        self._seconds_left = max(self._seconds_left, RATE_SECONDS)

    def begin(self, now: float, limits: Settings) -> None:
        """Count another request from here on. What came before this check goes to its account."""
        self.rest()
        self.check(now, limits)
        self.received = self._counted = 0

    def _note(self, now: float, answered: int) -> int:
        """Note a check, and return the bytes that have come since the last."""
        came = self.received + answered - self._counted
        self._counted += came
        if came > 0 or self._checked_at is None:
            self._moved_at = now
        self._checked_at = now
        return max(0, came)


def body_refusal(slowness: Slowness, limits: Settings) -> Refusal:
    """Return the refusal of a request whose body has stopped, or comes too slowly."""
    if slowness is Slowness.SILENT:
        return Refusal(408, "request_timeout", f"no byte of the body for {limits.stream_idle_timeout:g} s")
    least = counted(limits.min_body_rate, "byte")
    return Refusal(408, "request_timeout", f"the body came with less than {least}/s")


def unread_words(slowness: Slowness, limits: Settings) -> str:
    """Return what a client does that takes nothing of what it is sent, or too little."""
    if slowness is Slowness.SILENT:
        return f"has read nothing for {limits.stream_idle_timeout:g} s; it is cut off"
    return f"has read less than {counted(limits.min_body_rate, 'byte')}/s of what it is sent; it is cut off"
