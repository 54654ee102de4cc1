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
    """An attempt at a member that failed. ``reason``: one of a few words; ``words``: all that is known."""

    member: Address
    reason: str
    words: str

    def __str__(self) -> str:
        return f"{self.member}: {self.words}"


class RequestRecord:
    """What became of a request. Clock readings and durations are in seconds.

    ``body_bytes``: of the response, to the client; ``received``: of the request's body, from the client.
    ``id``: its X-Request-ID, the client's or one of our own. ``attempts``: those that failed, in order;
    ``retries``: how many there were after the first, failed or not.
    ``queued``: how long it waited for a member.
    ``error``: the token of ``X-Balancer-Error``, or ``client_gone`` or ``truncated`` for a response that could not be
    completed; ``reason``: what the balancer has told the client in its own name.
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
        self.attempts = [*self.attempts, Attempt(member, failure.reason, str(failure))]
