"""What became of a request, for logs, figures and hooks. No I/O."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from balancer.errors import TruncatedResponse, UpstreamError
from balancer.http.request import Request
from balancer.types import Address


def request_ids() -> Callable[[], bytes]:
    """Gives an id for each request that comes without one: the start of the process, drawn at random, and a number."""
    form = b"%b-%%08x" % secrets.token_hex(8).encode()
    return map(form.__mod__, itertools.count(1)).__next__


class Attempt(NamedTuple):
    """An attempt at a member that failed.

    Attributes:
        member: The member's address.
        reason: One of the words ``refused``, ``unreachable``, ``died``, ``timeout``, ``not_http``, ``truncated``,
            ``silent`` (docs/reference/errors.md).
        words: All that is known, for people to read.
    """

    member: Address
    reason: str
    words: str

    def __str__(self) -> str:
        return f"{self.member}: {self.words}"


class RequestRecord:
    """What became of a request.

    Attributes:
        request: The request as the client sent it.
        started: When it came, a clock reading in seconds.
        id: Its ``X-Request-ID``, the client's or one that the balancer made.
        status: The status that the client got, or 0 if it got none.
        body_bytes: Bytes of the response's body that went to the client.
        received: Bytes of the request's body that came from the client.
        member: The address of the member that answered, or None.
        attempts: The attempts that failed, in order.
        retries: How many attempts came after the first, failed or not.
        queued: Seconds that it waited for a member.
        duration: Seconds from its start to its end.
        error: The token of ``X-Balancer-Error``; ``client_gone`` or ``truncated`` for a response that is not complete;
            or "".
        reason: What the balancer said in its own name, or "".
    """

    # Most requests leave most of these alone.
    status = 0
    body_bytes = 0
    received = 0
    member: Address | None = None
    attempts: Sequence[Attempt] = ()
    retries = 0
    queued = 0.0
    duration = 0.0
    error = ""
    reason = ""

    def __init__(self, request: Request, started: float, id: bytes) -> None:
        self.request = request
        self.started = started
        self.id = id

    @property
    def pool(self) -> str:
        """The name of the pool that served the request, or "" where there is only one, or none did."""
        return ""

    def tried(self, member: Address, failure: UpstreamError | TruncatedResponse) -> None:
        """Add an attempt that failed; the dispatcher alone calls this."""
        self.attempts = [*self.attempts, Attempt(member, failure.reason, str(failure))]
