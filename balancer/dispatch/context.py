"""A request in progress and its outcome, for logs, figures and hooks. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from mypy_extensions import mypyc_attr

from balancer.errors import Refusal, TruncatedResponse, UpstreamError
from balancer.http.headers import Headers
from balancer.http.request import AnyRequest, Request
from balancer.members.member import Member
from balancer.members.outcome import Outcome
from balancer.types import Address
from balancer.upstream.base import PendingResponse

if TYPE_CHECKING:
    from balancer.dispatch.interfaces import RequestHandler
    from balancer.dispatch.replay import ReplayableBody


# Bytes of an X-Request-ID that a line of the log, or the text of a refusal, holds.
ID_MAX: Final = 128

_LAST_DIGITS: Final = [b"%02x" % number for number in range(256)]


def request_ids() -> Callable[[], bytes]:
    """Return a function that makes request ids: a random prefix for each process, and a number of eight digits.

    Numbers begin with 1. They are made in blocks: to write one takes longer than to put its last digits behind others.
    """
    prefix = secrets.token_hex(8).encode()

    def block(number: int) -> list[bytes]:
        digits = b"%b-%06x" % (prefix, number)
        return [digits + last for last in _LAST_DIGITS]

    return partial(next, islice(chain.from_iterable(map(block, count())), 1, None))


def in_turn(functions: Sequence[Callable[[RequestRecord], None]]) -> Callable[[RequestRecord], None]:
    """Return one function that calls these with a record."""

    def call(record: RequestRecord) -> None:
        for function in functions:
            function(record)

    return call


class Attempt(NamedTuple):
    """A failed attempt at a member.

    Attributes:
        member: The member's address.
        reason: One of the words ``refused``, ``unreachable``, ``died``, ``timeout``, ``not_http``, ``status``,
            ``truncated``, ``silent`` (docs/reference/errors.md).
        words: The whole reason, for people to read.
    """

    member: Address
    reason: str
    words: str

    def __str__(self) -> str:
        return f"{self.member}: {self.words}"


@mypyc_attr(allow_interpreted_subclasses=True)
class RequestRecord:
    """The outcome of a request.

    Attributes:
        request: The request as the client sent it.
        started: Clock reading in seconds at its arrival.
        id: Its ``X-Request-ID``, the client's or one that the balancer made.
        status: The status that the client got, or 0 if it got none.
        body_bytes: Bytes of the response's body that went to the client.
        received: Bytes of the request's body that came from the client.
        member: The address of the member that answered, or None.
        attempts: The attempts that failed, in order.
        retries: Attempts after the first, failed or not.
        queued: Seconds that it waited for a member.
        duration: Seconds from its start to its end.
        attempt_duration: Those of them in which the last member that was sent the request had it: without the queue and
            without attempts elsewhere. 0 if none was sent it, or the last attempt came to no connection.
        error: The token of ``X-Balancer-Error``; ``client_gone`` or ``truncated`` for a response that is not complete;
            or "".
        reason: The balancer's own words in its response, or "".
    """

    # Defaults of the class, because most requests change few of them.
    status = 0
    body_bytes = 0
    received = 0
    member: Address | None = None
    attempts: Sequence[Attempt] = ()
    retries = 0
    queued = 0.0
    duration = 0.0
    attempt_duration = 0.0
    error = ""
    reason = ""

    def __init__(self, request: Request, started: float, id: bytes) -> None:
        self.request = request
        self.started = started
        self.id = id

    @property
    def pool(self) -> str:
        """Name of the pool that served the request; "" where there is only one, or none did."""
        return ""

    def tried(self, member: Address, failure: UpstreamError | TruncatedResponse) -> None:
        """Add a failed attempt; only the dispatcher calls this."""
        self.attempts = [*self.attempts, Attempt(member, failure.reason, str(failure))]


@mypyc_attr(allow_interpreted_subclasses=True)
class Span:
    """A request's part of a trace. ``fields``: headers that pass it on to the member (W3C Trace Context)."""

    fields: Headers


@mypyc_attr(allow_interpreted_subclasses=True)
class RequestContext(RequestRecord):
    """A request in progress. ``span``: its part of a trace, if it is traced.

    ``dispatcher``: the handler that has begun it. ``acquired`` and ``response``: the member that it was sent to without
    waiting, and that member's response, or None. ``hook_request``: the request as plug-ins see it, or None.
    ``is_relaying``: the response has begun to go to the client without waiting. ``outcome``: of the attempt under
    way, once its response or failure is there, where something learns from it.
    ``refusal``: a hook's refusal of the request or of its response. ``is_local_call``: this program made it, no client.
    ``prefix``: the path of the mount that it came through, or b"".
    """

    dispatcher: RequestHandler
    span: Span | None = None
    is_local_call = False
    prefix = b""
    acquired: Member | None = None
    response: PendingResponse | None = None
    is_relaying = False
    outcome: Outcome | None = None
    body: ReplayableBody | None = None
    hook_request: AnyRequest = None
    refusal: Refusal | None = None

    @property
    def pool(self) -> str:
        return self.dispatcher.name

    def stop_listening(self) -> None:
        """End the progress calls of the response: ``Dispatcher.run`` takes over."""
        if self.response:
            self.response.listener = None
