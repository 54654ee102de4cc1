"""What becomes of a request whose exchange with a member failed. No I/O.

Rules (DESIGN 3.1), in this order:
1. No byte of the request was sent: another member, any method.
2. The connection died with no byte of response: repeat once, only if the method is idempotent
   (RFC 9110 section 9.2.2) and the body is still in hand.
3. A response byte has reached the client, or the client left: never (such a failure does not come here).
4. Otherwise the client is told. A request that is not idempotent is never sent twice.
"""

from __future__ import annotations

from balancer.errors import Fault, ProtocolViolation, Refusal, ResponseTimeout

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

MAX_REPEATS = 1


def decide(fault: Fault, method: str, body_in_hand: bool, repeats: int) -> Refusal | None:
    """None to try again with another member, or what to tell the client.

    ``body_in_hand``: every body byte taken from the client so far can be sent again.
    ``repeats``: how often the request has been sent again after it had been sent already.
    """
    if not fault.sent:
        if body_in_hand:
            return None
    elif isinstance(fault, ResponseTimeout):
        return Refusal(504, "response_timeout", str(fault))
    elif isinstance(fault, ProtocolViolation):
        return Refusal(502, "bad_response", str(fault))
    elif method in IDEMPOTENT and not fault.received and body_in_hand and repeats < MAX_REPEATS:
        return None
    return Refusal(502, "member_failed", str(fault))
