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
from balancer.dispatch.admission import Admission
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
    local_call_headers,
    with_prefix,
)
from balancer.http.request import AnyRequest, Request
from balancer.http.serialize import request_head
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies.base import Policy
from balancer.types import Clock
from balancer.upstream.base import Upstream, UpstreamRequest, UpstreamResponse

# What the log gives as the status of a request whose client left before there was one (nginx's number).
CLIENT_GONE = 499

SWITCHING_PROTOCOLS = 101

# Seconds for which a response head waits for the first piece of its body. Servers write the two one right after the
# other; a member that is killed between them costs no request, because nothing has been passed on.
HEAD_DELAY = 0.01

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
        self.queue = PendingQueue(settings.queue_max, settings.queue_max_bytes)
        self.admission = Admission(membership, policy, self.queue, settings.max_requests_per_member)

    def begin(self, request: Request) -> RequestContext:
        """A request has come."""
        now = self._clock()
        self._budget.request(now)
        context = RequestContext(request, now, request.id or self._new_id())
        context.dispatcher = self
        if request.body:
            context.body = ReplayableBody(request.body, self._max_body)
        if self._trace:
            context.span = self._trace(context)
        return context

    def try_send_nowait(
        self, context: RequestContext, sink: DirectSink, body: bytes, hook_request: AnyRequest = None
    ) -> bool:
        """Send a request whose ``body`` is at hand without waiting for anything, if that can be.

        ``hook_request``: that of the context. (To look for it there costs every request, and most have none.)
        Then ``sink`` is told as soon as there is news of the response. If it cannot be (no member is available, no
        connection is idle, the request may be sent only once), ``run`` has to be awaited.
        """
        request = context.request
        if context.body:
            context.body.keep(body)
            context.received = len(body)
        if request.method not in retry.IDEMPOTENT or len(body) > self._max_body or context.span:
            # What may be sent only once waits for a turn of the event loop, in which it is learnt which connections
            # members have closed meanwhile. What is too large, ``run`` refuses. What is traced differs in its head.
            return False
        member = context.given = self.admission.acquire(hook_request or request, _NONE)
        if member is None:
            return False
        if not request.head:
            target = request.stripped or request.target
            request.head = request_head(request.method, target, self._headers(request))
        head = request.head + b"\r\n" if request.id else b"%bx-request-id: %b\r\n\r\n" % (request.head, context.id)
        response = self._upstream.send_nowait(member.address, request, head, body, sink.send_interim)
        if response is None:
            return False
        context.member = member.address
        context.response = response
        response.listener = sink.on_response_progress
        return True

    def on_response_progress(self, context: RequestContext, sink: DirectSink, hook_request: AnyRequest = None) -> None:
        """There is news of the response to a request that was sent at once: pass it on, if it has come whole."""
        response, member = context.response, context.given
        assert response and member
        response.listener = None
        if not (response.complete and response.started):
            sink.continue_in_task()
            return
        now = self._clock()
        self._membership.answered(member, response.closes, now)
        headers = response.headers
        marks = self._policy.response_headers(hook_request or context.request, member)
        if marks:
            headers = headers + marks
        body = response.take()
        context.status = response.status
        context.body_bytes = len(body)
        context.duration = now - context.started
        sink.answer(response, headers, body)
        self.admission.release(member)
        self._on_done(context)

    def refused(self, request: Request, refusal: Refusal) -> None:
        """A request that a front end has answered by itself, because nothing could be made of it."""
        record = RequestRecord(request, self._clock(), request.id or self._new_id())
        record.status, record.error, record.reason = refusal.status, refusal.token, refusal.reason
        self._on_done(record)

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer the request; see ``run``."""
        await self.run(self.begin(request), sink)

    async def run(self, context: RequestContext, sink: Sink) -> None:
        """Answer the request, whatever it takes.

        Raises TruncatedResponse when the response has begun and cannot be completed: the caller
        must break the client's connection rather than end it cleanly.
        """
        try:
            await self._exchange(context, sink)
        except Refusal as refusal:
            context.error, context.reason = refusal.token, refusal.reason
            await refuse(refusal, sink, context)
        except TruncatedResponse as error:
            context.error = "truncated"
            if context.member:
                context.tried(context.member, error)
            raise
        except (ClientGone, asyncio.CancelledError) as error:
            # The canceller of a request says why in the message.
            context.error = str(error) or "client_gone"
            told = CLIENT_GONE
            if context.error == SHUTTING_DOWN.token:
                told, context.reason = SHUTTING_DOWN.status, SHUTTING_DOWN.reason
            context.status = context.status or told
            raise
        finally:
            if context.body:
                context.received = context.body.received
            context.duration = self._clock() - context.started
            self._on_done(context)

    def _on_response_head(self, context: RequestContext, response: UpstreamResponse) -> None:
        """Called with a response of which nothing has been passed on; plug-ins may change its headers.

        Raises Refusal where the client must not get the response.
        """

    def _headers(self, request: Request) -> Headers:
        """The fields as members get them."""
        headers = self._request_headers(
            request.headers, request.client, request.scheme, request.host, request.chunked, request.upgrade
        )
        return with_prefix(headers, request.prefix) if request.prefix else headers

    def _outgoing(self, context: RequestContext, sink: Sink) -> UpstreamRequest:
        """The request as members get it. Raises Refusal where they must not."""
        request = context.request
        if context.body and content_length(request.headers) > context.body.limit:
            raise too_large(context.body.limit)
        headers = (
            local_call_headers(request.headers, request.chunked) if context.is_local_call else self._headers(request)
        )
        if context.prefix:
            headers = with_prefix(headers, context.prefix)
        if not request.id:
            headers.append((b"x-request-id", context.id))
        if context.span:
            headers += context.span.fields
        return UpstreamRequest(
            request.method,
            request.stripped or request.target,
            headers,
            context.body,
            request.chunked,
            repeatable=request.method in retry.IDEMPOTENT,
            upgrade=request.upgrade,
            expects=request.expects,
            on_interim=sink.send_interim,
        )

    async def _exchange(self, context: RequestContext, sink: Sink) -> None:  # noqa: PLR0915 - the attempts of one request, in the order of the rules of retry
        record, request, body = context, context.request, context.body
        outgoing = self._outgoing(context, sink)
        queued = QueuedRequest(context.hook_request or request)
        hold_until = record.started + self._settings.queue_timeout
        repeats = 0
        pause = False
        while True:
            if pause:
                await asyncio.sleep(retry.PAUSE_SECONDS)
                pause = False
            given, context.given = context.given, None
            begun, context.response = context.response, None
            member = given or self.admission.acquire(queued.request, queued.tried)
            if member is None:
                member = await self._wait_for_member(queued, body, hold_until, record)
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
                    await response.wait_for_body(HEAD_DELAY)
                except UpstreamError as fault:
                    record.tried(member.address, fault)
                    queued.tried |= {member}
                    # (Of a member that has come up since, perhaps as another container, an attempt says nothing.)
                    news = member.state is not State.UP or member.since <= attempted
                    if isinstance(fault, ConnectFailed) and news:
                        event = HealthEvent.REFUSED if fault.refused else HealthEvent.UNREACHABLE
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
                    self._on_response_head(context, response)
                    await _relay(response, sink, record, self._policy.response_headers(queued.request, member))
                finally:
                    await response.close()
                return
            finally:
                self.admission.release(member)

    def _no_member(self, record: RequestRecord) -> Refusal:
        last = f"; last attempt: {record.attempts[-1]}" if record.attempts else ""
        why = f"{self._settings.alias}: {self._membership.shortage()}{last}"
        return Refusal(503, "no_member", f"no member became available in time ({why})", retry_after=1)

    def _afford_repeat(self) -> bool:
        return self._budget.spend(self._clock())

    async def _wait_for_member(
        self, queued: QueuedRequest, body: ReplayableBody | None, until: float, record: RequestRecord
    ) -> Member:
        """Hold the request, in order of arrival, until a member can take it. Raises Refusal if none can."""
        began = self._clock()
        given: asyncio.Future[Member] = asyncio.get_running_loop().create_future()

        def give(member: Member) -> bool:
            if given.done():
                return False
            given.set_result(member)
            return True

        queued.give = give
        queued.in_hand = body.size if body else 0
        waits = False
        try:
            self.admission.wait(queued, until - began)
            waits = True
            async with asyncio.timeout(max(0.0, until - began)):
                await given
        except (Refusal, TimeoutError) as error:
            if not given.done() or given.cancelled():
                if member := self.admission.fallback(queued):
                    return member
                if isinstance(error, Refusal):
                    raise
                raise (overloaded() if self._membership.has_available else self._no_member(record)) from None
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.admission.release(given.result())
            raise
        finally:
            self.queue.discard(queued)
            if waits:
                record.queued += self._clock() - began
        self.queue.record_wait(queued, self._clock() - began)
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
