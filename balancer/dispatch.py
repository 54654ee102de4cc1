"""One request, from the choice of a member to the last byte of the response.

This module knows nothing of ASGI: it takes a request and a sink for the response. What to do after
a failure is ``balancer.retry``'s decision; who may be chosen is ``balancer.membership``'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from balancer import retry
from balancer.errors import ClientGone, ConnectFailed, Fault, Refusal, TruncatedResponse
from balancer.headers import Headers, RequestHeaders, response_headers
from balancer.health import Event
from balancer.hold import Hold
from balancer.membership import Member, Membership
from balancer.policies import Policy
from balancer.settings import Address, Settings
from balancer.upstream import Body, Upstream, UpstreamRequest, UpstreamResponse

# A request body up to this size stays in hand, so that the request can be sent again.
REPLAY_BYTES = 64 * 1024

# What the log gives as the status of a request whose client left before there was one (nginx's number).
CLIENT_GONE = 499

Clock = Callable[[], float]


@dataclass(slots=True)
class Request:
    """A client's request. ``client`` is the peer's IP address, or "" where there is none."""

    method: str
    target: bytes
    headers: Headers
    client: str
    scheme: str = "http"
    body: Body | None = None
    # The body's length is not announced: it goes on in chunks.
    chunked: bool = False


class Sink(Protocol):
    """Where a response goes. Both methods wait while the client cannot take more, and raise ClientGone."""

    async def start(self, status: int, headers: Headers) -> None:
        """The response head; once, before any body."""

    async def write(self, data: bytes, more: bool) -> None:
        """A piece of the body; ``more`` is false for the last."""


@dataclass(slots=True)
class Record:
    """What became of a request. Clock readings and durations are in seconds.

    ``tries``: a line for each member that failed it. ``error``: the token of ``X-Balancer-Error``,
    or ``client_gone`` or ``truncated`` for a response that could not be completed.
    """

    request: Request
    started: float
    status: int = 0
    body_bytes: int = 0
    member: Address | None = None
    tries: list[str] = field(default_factory=list)
    held: float = 0.0
    duration: float = 0.0
    error: str = ""


class ReplayableBody:
    """A request body that can be sent again from its beginning, while it is small."""

    def __init__(self, source: Body) -> None:
        self._source = source
        self._kept: list[bytes] = []
        self._size = 0
        self._position = 0
        self._source_ended = False
        self.in_hand = True

    def rewind(self) -> None:
        self._position = 0

    @property
    def ended(self) -> bool:
        return self._source_ended and self._position == len(self._kept)

    async def read(self) -> bytes:
        if self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        if self._source_ended:
            return b""
        piece = await self._source.read()
        self._source_ended = not piece or self._source.ended
        self._size += len(piece)
        if self.in_hand and self._size > REPLAY_BYTES:
            self.in_hand = False
            self._kept.clear()
            self._position = 0
        if self.in_hand and piece:
            self._kept.append(piece)
            self._position += 1
        return piece


class Dispatcher:
    """Hands requests to members. ``on_done`` is called once for every request, with its record."""

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        policy: Policy,
        upstream: Upstream,
        on_done: Callable[[Record], None] = lambda record: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._policy = policy
        self._upstream = upstream
        self._on_done = on_done
        self._clock = clock
        self._request_headers = RequestHeaders(settings.trusted_proxies)
        self._built_for = -1
        self.hold = Hold(settings.hold_max)

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer the request.

        Raises TruncatedResponse when the response has begun and cannot be completed: the caller
        must break the client's connection rather than end it cleanly.
        """
        record = Record(request, self._clock())
        try:
            await self._exchange(request, sink, record)
        except Refusal as refusal:
            record.error = refusal.token
            await refuse(refusal, sink, record)
        except TruncatedResponse as error:
            record.error = "truncated"
            record.tries.append(f"{record.member}: {error}")
            raise
        except (ClientGone, asyncio.CancelledError) as error:
            # Whoever cancels a request says why in the message.
            record.error = str(error) or "client_gone"
            record.status = record.status or CLIENT_GONE
            raise
        finally:
            record.duration = self._clock() - record.started
            self._on_done(record)

    async def _exchange(self, request: Request, sink: Sink, record: Record) -> None:
        body = ReplayableBody(request.body) if request.body else None
        outgoing = UpstreamRequest(
            request.method,
            request.target,
            self._request_headers(request.headers, request.client, request.scheme, request.chunked),
            body,
            request.chunked,
            repeatable=request.method in retry.IDEMPOTENT,
        )
        hold_until = record.started + self._settings.hold_seconds
        tried: set[Member] = set()
        repeats = 0
        while True:
            member = self._choose(tried)
            if member is None:
                await self._wait_for_member(hold_until, record)
                tried.clear()
                continue
            record.member = member.address
            member.in_flight += 1
            member.requests += 1
            try:
                try:
                    response = await self._upstream.send(member.address, outgoing)
                except Fault as fault:
                    record.tries.append(f"{member.address}: {fault}")
                    tried.add(member)
                    if isinstance(fault, ConnectFailed):
                        event = Event.REFUSED if fault.refused else Event.UNREACHABLE
                        self._membership.observe(member, event, self._clock(), str(fault))
                    refusal = retry.decide(fault, request.method, body is None or body.in_hand, repeats)
                    if refusal:
                        raise refusal from fault
                    if fault.sent:
                        # The time that a member had the request for was not spent waiting for a member.
                        hold_until = self._clock() + self._settings.hold_seconds
                        repeats += 1
                        outgoing.fresh = True
                    elif self._clock() > hold_until + self._settings.connect_timeout:
                        # The last try began while the request might still have waited, and failed slowly.
                        raise _nobody(record) from fault
                    if body:
                        body.rewind()
                    continue
                self._membership.answered(member, response.closes, self._clock())
                await _relay(response, sink, record)
                return
            finally:
                member.in_flight -= 1

    def _choose(self, tried: set[Member]) -> Member | None:
        if self._built_for != self._membership.generation:
            self._built_for = self._membership.generation
            self._policy.build(self._membership.available)
        return self._policy.choose(tried)

    async def _wait_for_member(self, until: float, record: Record) -> None:
        """Hold the request while nobody is available, in order of arrival."""
        began = self._clock()
        awake = asyncio.Event()
        ticket = self.hold.enter(awake.set)
        try:
            async with asyncio.timeout(max(0.0, until - began)):
                while not self._membership.available:
                    awake.clear()
                    await awake.wait()
        except TimeoutError:
            raise _nobody(record) from None
        finally:
            self.hold.leave(ticket)
            record.held += self._clock() - began


def _nobody(record: Record) -> Refusal:
    last = f"; last try: {record.tries[-1]}" if record.tries else ""
    return Refusal(503, "no_member", f"no member became available in time{last}", retry_after=1)


async def _relay(response: UpstreamResponse, sink: Sink, record: Record) -> None:
    try:
        record.status = response.status
        await sink.start(response.status, response_headers(response.headers))
        more = True
        while more:
            piece, more = await response.read()
            record.body_bytes += len(piece)
            await sink.write(piece, more)
    finally:
        await response.close()


async def refuse(refusal: Refusal, sink: Sink, record: Record | None = None) -> None:
    """Answer in the balancer's own name: short plain text with the reason."""
    text = f"{refusal.status} {refusal.reason}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        (b"x-balancer-error", refusal.token.encode()),
        (b"cache-control", b"no-store"),
    ]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if record:
        record.status, record.body_bytes = refusal.status, len(text)
    await sink.start(refusal.status, headers)
    await sink.write(text, False)
