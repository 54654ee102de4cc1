"""One request, from the choice of a member to the last byte of the response.

This module knows nothing of ASGI: it takes a request and a sink for the response. What to do after
a failure is ``balancer.dispatch.retry``'s decision; who may be chosen is ``balancer.members.membership``'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf

from balancer.config.settings import Settings
from balancer.dispatch import retry
from balancer.dispatch.admission import Slots
from balancer.dispatch.context import RequestContext
from balancer.dispatch.interfaces import DirectSink, Sink, Trace
from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.dispatch.record import RequestRecord, request_ids
from balancer.dispatch.refusals import overloaded, refuse, too_large
from balancer.dispatch.replay import ReplayableBody
from balancer.errors import SHUTTING_DOWN, ClientGone, ConnectFailed, Refusal, TruncatedResponse, UpstreamError
from balancer.http.headers import (
    NO_FIELDS,
    TRACE_FIELDS,
    Headers,
    RequestHeaders,
    content_length,
    own_headers,
    with_prefix,
)
from balancer.http.request import AnyRequest, Request
from balancer.http.serialize import request_head
from balancer.members.health import Event, State
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies.base import Policy
from balancer.types import Clock
from balancer.upstream.base import Upstream, UpstreamRequest, UpstreamResponse

# What the log gives as the status of a request whose client left before there was one (nginx's number).
CLIENT_GONE = 499

SWITCHING_PROTOCOLS = 101

_NONE: frozenset[Member] = frozenset()


class Dispatcher:
    """Hands requests to members. ``on_done`` is called once for every request, with its record.

    ``name``: of the pool that these members are, where there are several.
    """

    name = ""

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        policy: Policy,
        upstream: Upstream,
        on_done: Callable[[RequestRecord], None] = lambda record: None,
        clock: Clock = time.monotonic,
        trace: Trace | None = None,
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._policy = policy
        self._upstream = upstream
        self._on_done = on_done
        self._clock = clock
        self._max_body = settings.max_body_bytes or inf
        self._request_headers = RequestHeaders(settings.trusted_proxies, TRACE_FIELDS if trace else frozenset())
        self._new_id = request_ids()
        self._trace = trace
        self._budget = retry.Budget()
        self.hold = PendingQueue(settings.queue_max, settings.queue_max_bytes)
        self.slots = Slots(membership, policy, self.hold, settings.max_requests_per_member)

    def begin(self, request: Request) -> RequestContext:
        """A request has come."""
        now = self._clock()
        self._budget.request(now)
        course = RequestContext(request, now, request.id or self._new_id())
        course.dispatcher = self
        if request.body:
            course.body = ReplayableBody(request.body, self._max_body)
        if self._trace:
            course.span = self._trace(course)
        return course

    def at_once(self, course: RequestContext, sink: DirectSink, body: bytes, seen: AnyRequest = None) -> bool:
        """Send a request whose ``body`` is at hand without waiting for anything, if that can be.

        ``seen``: that of the course. (To look for it there costs every request, and most have none.)
        Then ``sink`` is told as soon as there is news of the response. If it cannot be (no member is available, no
        connection is idle, the request may be sent only once), ``run`` has to be awaited.
        """
        request = course.request
        if course.body:
            course.body.keep(body)
            course.received = len(body)
        if request.method not in retry.IDEMPOTENT or len(body) > self._max_body or course.span:
            # What may be sent only once waits for a turn of the event loop, in which it is learnt which connections
            # members have closed meanwhile. What is too large, ``run`` refuses. What is traced differs in its head.
            return False
        member = course.given = self.slots.acquire(seen or request, _NONE)
        if member is None:
            return False
        if not request.head:
            target = request.stripped or request.target
            request.head = request_head(request.method, target, self._headers(request))
        head = request.head + b"\r\n" if request.id else b"%bx-request-id: %b\r\n\r\n" % (request.head, course.id)
        response = self._upstream.send_at_once(member.address, request, head, body, sink.inform)
        if response is None:
            return False
        course.member = member.address
        course.response = response
        response.listener = sink.news
        return True

    def news(self, course: RequestContext, sink: DirectSink, seen: AnyRequest = None) -> None:
        """There is news of the response to a request that was sent at once: pass it on, if it has come whole."""
        response, member = course.response, course.given
        assert response and member
        response.listener = None
        if not (response.complete and response.started):
            sink.go_on()
            return
        now = self._clock()
        self._membership.answered(member, response.closes, now)
        headers = response.headers
        marks = self._policy.response_headers(seen or course.request, member)
        if marks:
            headers = headers + marks
        body = response.take()
        course.status = response.status
        course.body_bytes = len(body)
        course.duration = now - course.started
        sink.answer(response, headers, body)
        self.slots.release(member)
        self._on_done(course)

    def refused(self, request: Request, refusal: Refusal) -> None:
        """A request that a front end has answered by itself, because nothing could be made of it."""
        record = RequestRecord(request, self._clock(), request.id or self._new_id())
        record.status, record.error, record.reason = refusal.status, refusal.token, refusal.reason
        self._on_done(record)

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer the request; see ``run``."""
        await self.run(self.begin(request), sink)

    async def run(self, course: RequestContext, sink: Sink) -> None:
        """Answer the request, whatever it takes.

        Raises TruncatedResponse when the response has begun and cannot be completed: the caller
        must break the client's connection rather than end it cleanly.
        """
        try:
            await self._exchange(course, sink)
        except Refusal as refusal:
            course.error, course.reason = refusal.token, refusal.reason
            await refuse(refusal, sink, course)
        except TruncatedResponse as error:
            course.error = "truncated"
            if course.member:
                course.tried(course.member, error)
            raise
        except (ClientGone, asyncio.CancelledError) as error:
            # The canceller of a request says why in the message.
            course.error = str(error) or "client_gone"
            told = CLIENT_GONE
            if course.error == SHUTTING_DOWN.token:
                told, course.reason = SHUTTING_DOWN.status, SHUTTING_DOWN.reason
            course.status = course.status or told
            raise
        finally:
            if course.body:
                course.received = course.body.received
            course.duration = self._clock() - course.started
            self._on_done(course)

    def _heard(self, course: RequestContext, response: UpstreamResponse) -> None:
        """A member has answered, and nothing has been passed on: ``balancer.plugins.dispatcher`` may change the fields.

        Raises Refusal where the client must not get the response.
        """

    def _headers(self, request: Request) -> Headers:
        """The fields as members get them."""
        headers = self._request_headers(
            request.headers, request.client, request.scheme, request.host, request.chunked, request.upgrade
        )
        return with_prefix(headers, request.prefix) if request.prefix else headers

    def _outgoing(self, course: RequestContext, sink: Sink) -> UpstreamRequest:
        """The request as members get it. Raises Refusal where they must not."""
        request = course.request
        if course.body and content_length(request.headers) > course.body.limit:
            raise too_large(course.body.limit)
        headers = own_headers(request.headers, request.chunked) if course.own else self._headers(request)
        if course.prefix:
            headers = with_prefix(headers, course.prefix)
        if not request.id:
            headers.append((b"x-request-id", course.id))
        if course.span:
            headers += course.span.fields
        return UpstreamRequest(
            request.method,
            request.stripped or request.target,
            headers,
            course.body,
            request.chunked,
            repeatable=request.method in retry.IDEMPOTENT,
            upgrade=request.upgrade,
            expects=request.expects,
            inform=sink.inform,
        )

    async def _exchange(self, course: RequestContext, sink: Sink) -> None:  # noqa: PLR0915 - the attempts of one request, in the order of the rules of retry
        record, request, body = course, course.request, course.body
        outgoing = self._outgoing(course, sink)
        claim = QueuedRequest(course.seen or request)
        hold_until = record.started + self._settings.queue_timeout
        repeats = 0
        pause = False
        while True:
            if pause:
                await asyncio.sleep(retry.PAUSE_SECONDS)
                pause = False
            given, course.given = course.given, None
            begun, course.response = course.response, None
            member = given or self.slots.acquire(claim.request, claim.tried)
            if member is None:
                member = await self._wait_for_member(claim, body, hold_until, record)
            record.member = member.address
            record.retries = len(record.attempts)
            attempted = self._clock()
            response: UpstreamResponse
            try:
                try:
                    if begun:
                        response = begun
                        await begun.wait_for_head()
                    else:
                        response = await self._upstream.send(member.address, outgoing)
                except UpstreamError as fault:
                    record.tried(member.address, fault)
                    claim.tried |= {member}
                    # (Of a member that has come up since, perhaps as another container, an attempt says nothing.)
                    news = member.state is not State.UP or member.since <= attempted
                    if isinstance(fault, ConnectFailed) and news:
                        event = Event.REFUSED if fault.refused else Event.UNREACHABLE
                        self._membership.observe(member, event, self._clock(), str(fault), by_request=True)
                    in_hand = body is None or body.in_hand
                    refusal = retry.decide(fault, request.method, in_hand, repeats, self._afford_repeat)
                    if refusal:
                        raise refusal from fault
                    if fault.sent:
                        # The time that a member had the request for was not spent waiting for a member.
                        hold_until = self._clock() + self._settings.queue_timeout
                        repeats += 1
                        pause = repeats == retry.MAX_REPEATS
                        outgoing.fresh = True
                    elif self._clock() > hold_until + self._settings.connect_timeout:
                        # The last try began while the request might still have waited, and failed slowly.
                        raise self._no_member(record) from fault
                    if body:
                        body.rewind()
                    continue
                if response.status != SWITCHING_PROTOCOLS:
                    self._membership.answered(member, response.closes, self._clock())
                try:
                    self._heard(course, response)
                    await _relay(response, sink, record, self._policy.response_headers(claim.request, member))
                finally:
                    await response.close()
                return
            finally:
                self.slots.release(member)

    def _no_member(self, record: RequestRecord) -> Refusal:
        last = f"; last attempt: {record.attempts[-1]}" if record.attempts else ""
        why = f"{self._settings.alias}: {self._membership.shortage()}{last}"
        return Refusal(503, "no_member", f"no member became available in time ({why})", retry_after=1)

    def _afford_repeat(self) -> bool:
        return self._budget.spend(self._clock())

    async def _wait_for_member(
        self, claim: QueuedRequest, body: ReplayableBody | None, until: float, record: RequestRecord
    ) -> Member:
        """Hold the request, in order of arrival, until a member can take it. Raises Refusal if none can."""
        began = self._clock()
        given: asyncio.Future[Member] = asyncio.get_running_loop().create_future()

        def give(member: Member) -> bool:
            if given.done():
                return False
            given.set_result(member)
            return True

        claim.give = give
        claim.in_hand = body.size if body else 0
        waits = False
        try:
            self.slots.wait(claim, until - began)
            waits = True
            async with asyncio.timeout(max(0.0, until - began)):
                await given
        except (Refusal, TimeoutError) as error:
            if not given.done() or given.cancelled():
                if member := self.slots.fallback(claim):
                    return member
                if isinstance(error, Refusal):
                    raise
                raise (overloaded() if self._membership.anybody else self._no_member(record)) from None
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.slots.release(given.result())
            raise
        finally:
            self.hold.discard(claim)
            if waits:
                record.queued += self._clock() - began
        self.hold.record_wait(claim, self._clock() - began)
        return given.result()


async def _relay(response: UpstreamResponse, sink: Sink, record: RequestRecord, marks: Headers) -> None:
    record.status = response.status
    headers = response.headers + marks if marks else response.headers
    if response.status == SWITCHING_PROTOCOLS:

        def count(passed: int) -> None:
            record.body_bytes += passed

        await sink.switch(response, headers, count)
        return
    await sink.start(response.status, headers)
    more = True
    while more:
        piece, more = await response.read()
        record.body_bytes += len(piece)
        await sink.write(piece, more, NO_FIELDS if more else response.trailers)
