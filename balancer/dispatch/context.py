"""A request under way, and what became of it, for logs, figures and hooks. No I/O."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from balancer.errors import Refusal, TruncatedResponse, UpstreamError
from balancer.http.headers import Headers
from balancer.http.request import AnyRequest, Request
from balancer.members.member import Member
from balancer.types import Address
from balancer.upstream.base import PendingResponse

if TYPE_CHECKING:
    from balancer.dispatch.interfaces import RequestHandler
    from balancer.dispatch.replay import ReplayableBody


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


class Span:
    """A request's part of a trace. ``fields``: those that tell the member of it (W3C Trace Context)."""

    fields: Headers


class RequestContext(RequestRecord):
    """A request under way. ``span``: its part of a trace, where it is traced.

    ``dispatcher``: the one that has begun it and does all that follows. ``acquired`` and ``response``: the member that
    it was sent to without waiting, if it was. ``hook_request``: the request as plug-ins know it, if there are any;
    ``refusal``: what a hook has refused it, or its response, with. ``is_local_call``: it is a call of this program, and
    came from no client. ``prefix``: the path of the mount that it came through, or b"".
    """

    dispatcher: RequestHandler
    span: Span | None = None
    is_local_call = False
    prefix = b""
    acquired: Member | None = None
    response: PendingResponse | None = None
    body: ReplayableBody | None = None
    hook_request: AnyRequest = None
    refusal: Refusal | None = None

    @property
    def pool(self) -> str:
        return self.dispatcher.name

    def stop_listening(self) -> None:
        """``Dispatcher.run`` takes over."""
        if self.response:
            self.response.listener = None
