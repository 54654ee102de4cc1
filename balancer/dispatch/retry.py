"""Decisions after a failed exchange with a member. No I/O.

Rules, in this order:
1. No byte of the request was sent: another member, any method.
2. No byte of a response was passed on, and the connection died or what came is not HTTP: repeat. That is done only if
   the method is idempotent (RFC 9110 section 9.2.2) and the body is still in hand, and RETRIES times at most. A pause
   comes before each repeat but the first: members that stop together drop what they have within a tenth of a second.
3. A member has answered with a status of RETRY_STATUS: repeat it as in rule 2, or any method if it has a key
   (``balancer.dispatch.status_retry``). No connection that died is repeated for its key.
4. A response byte has reached the client, or the client left: never (such a failure does not come here).
5. Otherwise the client receives an error. A request that is not idempotent is never sent twice without its key.

Repeats (rules 2 and 3) have a budget: more load does not help members that drop requests. Other attempts (rule 1) need
none: an unsent request is no load. A member without a connection is not tried again until a probe has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable

from balancer.errors import ProtocolViolation, Refusal, ResponseTimeout, UpstreamError

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

# The pause before each repeat but the first, in seconds.
PAUSE_SECONDS = 0.1

# The repeats of the last BUDGET_SECONDS may be this share of the requests, plus BUDGET_FLOOR: one member's worth of
# requests in flight where traffic is light.
BUDGET_SHARE = 0.2
BUDGET_FLOOR = 100
BUDGET_SECONDS = 10


class Budget:
    """A limit on repeats by the number of recent requests. Times are clock readings in seconds."""

    def __init__(self) -> None:
        self._second = 0
        self._requests = [0] * BUDGET_SECONDS
        self._repeats = [0] * BUDGET_SECONDS

    def count_request(self, now: float) -> None:
        """Count a new request."""
        if int(now) != self._second:
            self._advance(int(now))
        self._requests[self._second % BUDGET_SECONDS] += 1

    def has_room(self, now: float) -> bool:
        """Whether the budget allows a repeat."""
        self._advance(int(now))
        return sum(self._repeats) < BUDGET_FLOOR + BUDGET_SHARE * sum(self._requests)

    def spend(self, now: float) -> bool:
        """Count a repeat if the budget allows it; return whether it does."""
        if not self.has_room(now):
            return False
        self._repeats[self._second % BUDGET_SECONDS] += 1
        return True

    def _advance(self, second: int) -> None:
        """Forget the seconds before the window."""
        for past in range(max(self._second + 1, second - BUDGET_SECONDS + 1), second + 1):
            self._requests[past % BUDGET_SECONDS] = self._repeats[past % BUDGET_SECONDS] = 0
        self._second = second


def may_repeat_answered(method: str, has_key: bool, body_in_hand: bool, repeats: int, limit: int) -> bool:
    """Whether a request that a member has answered with a status of RETRY_STATUS may be sent again.

    ``has_key``: its client says that it may run twice. ``body_in_hand``: all of its body. The others are those of
    ``decide``.
    """
    return (method in IDEMPOTENT or has_key) and body_in_hand and repeats < limit


def decide(
    fault: UpstreamError,
    method: str,
    body_in_hand: bool,
    repeats: int,
    limit: int,
    afford: Callable[[], bool] = lambda: True,
) -> Refusal | None:
    """Return None to try another member, or the refusal that the client receives.

    ``body_in_hand``: every body byte taken from the client so far can be sent again.
    ``repeats``: how often the request has been repeated so far, of ``limit`` times.
    ``afford``: called last; returns whether the budget allows a repeat.
    """
    if not fault.sent:
        if body_in_hand:
            return None
    elif isinstance(fault, ResponseTimeout):
        return Refusal(504, "response_timeout", str(fault))
    token = "bad_response" if isinstance(fault, ProtocolViolation) else "member_failed"
    if fault.sent and method in IDEMPOTENT and body_in_hand and repeats < limit:
        return None if afford() else Refusal(502, token, f"{fault}; too many repeats already", retry_after=1)
    return Refusal(502, token, str(fault))
