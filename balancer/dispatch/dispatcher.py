"""The course of a request, from the choice of a member to the last byte of the response.

This module is independent of ASGI: it takes a request and a sink for the response. ``balancer.dispatch.retry`` decides
what follows a failure, and ``balancer.members.membership`` which members may be chosen.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf

from balancer.dispatch import retry
from balancer.dispatch.context import RequestContext, RequestRecord
from balancer.dispatch.fast_path import FastPathDispatcher
from balancer.dispatch.interfaces import Sink, is_event_stream
from balancer.dispatch.queue import QueuedRequest
from balancer.dispatch.refusals import overloaded, refuse, too_large
from balancer.dispatch.replay import ReplayableBody
from balancer.errors import SHUTTING_DOWN, ClientGone, ConnectFailed, Refusal, TruncatedResponse, UpstreamError
from balancer.http.headers import NO_FIELDS, Headers, content_length, with_request_id
from balancer.http.request import Request
from balancer.http.request_headers import with_prefix
from balancer.loop_time import Limit, loop_time
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.outcome import Outcome
from balancer.upstream.base import UpstreamRequest, UpstreamResponse

# Status in the log of a request whose client left before there was one (nginx's number).
CLIENT_GONE = 499

SWITCHING_PROTOCOLS = 101

# Seconds for which a response head waits for the first piece of its body. Servers write the two in a row; a member
# that is killed between them costs no request, because nothing has been passed on.
HEAD_DELAY = 0.01


@dataclass(slots=True)
class _Attempts:
    """The attempts that a request has left.

    ``until``: the reading of ``LoopTime`` up to which it may wait for a member. ``repeats``: repeats after a member had
    the request. ``pause``: the next attempt comes after a pause. ``began``: the reading at which the last attempt
    began; infinite if it came to no connection.
    """

    queued: QueuedRequest
    until: float = 0.0
    repeats: int = 0
    pause: bool = False
    began: float = 0.0


class Dispatcher(FastPathDispatcher):
    """Hands requests to members, and waits where that is needed."""

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer the request; see ``run``."""
        await self.run(self.begin(request), sink)

    async def run(self, context: RequestContext, sink: Sink) -> None:
        """Answer the request, with all waiting and retries.

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
            # The message of a cancellation is the token of its reason.
            context.error = str(error) or "client_gone"
            status = CLIENT_GONE
            if context.error == SHUTTING_DOWN.token:
                status, context.reason = SHUTTING_DOWN.status, SHUTTING_DOWN.reason
            context.status = context.status or status
            raise
        finally:
            if context.body:
                context.received = context.body.received
            context.duration = self._clock() - context.started
            self._on_done(context)

    def _on_response_head(self, context: RequestContext, response: UpstreamResponse) -> None:
        """Let plug-ins change the headers of a response before any of it is passed on.

        Raises Refusal where the client must not get the response.
        """

    def _outgoing(self, context: RequestContext, sink: Sink) -> UpstreamRequest:
        """Return the request as members get it. Raises Refusal where no member must get it."""
        request = context.request
        if context.body:
            length = content_length(request.headers)
            if length > context.body.limit:
                raise too_large(context.body.limit)
            context.body.length = None if request.chunked else length
        if context.is_local_call:
            headers = self._request_headers.of_local_call(request.headers, request.chunked)
        else:
            headers = self._request_headers.pairs(request)
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
            repeatable=request.method in self._repeatable,
            upgrade=request.upgrade,
            expects=request.expects,
            on_interim=sink.send_interim,
            on_connect=sink.on_connect if context.is_local_call else None,
            spelling=request.spelling,
        )

    async def _exchange(self, context: RequestContext, sink: Sink) -> None:
        """Send the request to members until one answers, and pass its response on. Raises Refusal where none does."""
        if context.is_relaying:
            await self._finish_relay(context, sink)
            return
        outgoing = self._outgoing(context, sink)
        attempts = _Attempts(QueuedRequest(context.hook_request or context.request))
        attempts.until = loop_time().time() + self._settings.queue_timeout
        while True:
            member = await self._find_member(context, attempts, sink)
            attempts.began = context.started if context.response else self._clock()
            try:
                try:
                    response = await self._attempt(member, context, outgoing)
                except UpstreamError as fault:
                    self._note_outcome(context, 0, fault.reason, attempts.began)
                    self._after_failure(fault, member, context, attempts)
                else:
                    self._note_outcome(context, response.status, "", attempts.began)
                    await self._pass_on(response, member, context, sink)
                    return
            finally:
                context.attempt_duration = max(0.0, self._clock() - attempts.began)
                self._end_attempt(context, member, attempts.queued)
            outgoing.fresh = attempts.repeats > 0
            outgoing.repeatable = outgoing.repeatable and attempts.repeats < self._settings.retries
            if attempts.pause:
                await asyncio.sleep(retry.PAUSE_SECONDS)

    async def _finish_relay(self, context: RequestContext, sink: Sink) -> None:
        """Pass on the rest of a response that has begun without waiting. Raises TruncatedResponse or ClientGone."""
        response, member = context.response, context.acquired
        assert response and member
        try:
            await _relay_body(response, sink, context)
        except TruncatedResponse as error:
            _note_break(context, error)
            raise
        finally:
            await response.close()
            context.attempt_duration = self._clock() - context.started
            self._end_attempt(context, member)

    def _note_outcome(self, context: RequestContext, status: int, failure: str, began: float) -> None:
        if self._learners:
            if context.body:
                began = max(began, context.body.ended_at)
            context.outcome = Outcome(status, failure, self._clock() - began)

    async def _find_member(self, context: RequestContext, attempts: _Attempts, sink: Sink) -> Member:
        """Return the member acquired before, one that is free now, or one from the queue."""
        member, context.acquired = context.acquired, None
        member = member or self.admission.acquire(attempts.queued.request, attempts.queued.tried)
        if member is None:
            sink.on_queue(True)
            member = await self._wait_for_member(attempts.queued, context.body, attempts.until, context)
            sink.on_queue(False)
        context.member = member.address
        context.retries = len(context.attempts)
        return member

    async def _attempt(self, member: Member, context: RequestContext, outgoing: UpstreamRequest) -> UpstreamResponse:
        """Send the request to a member, if it has not been sent without waiting. Raises UpstreamError."""
        pending, context.response = context.response, None
        if pending:
            await pending.wait_for_head()
            response: UpstreamResponse = pending
        else:
            response = await self._upstream.send(member.address, outgoing)
        await response.wait_for_body(HEAD_DELAY)
        return response

    def _after_failure(
        self, fault: UpstreamError, member: Member, context: RequestContext, attempts: _Attempts
    ) -> None:
        """Prepare another attempt after one that has failed. Raises Refusal where there must be none."""
        now, began = self._clock(), attempts.began
        context.tried(member.address, fault)
        attempts.queued.tried |= {member}
        # An attempt is no evidence against a member that has come up since, perhaps as another container.
        if isinstance(fault, ConnectFailed) and (member.state is not State.UP or member.since <= began):
            event = HealthEvent.REFUSED if fault.refused else HealthEvent.UNREACHABLE
            self._membership.observe(member, event, now, str(fault), by_request=True)
        if not fault.sent:
            attempts.began = inf
        in_hand = context.body is None or context.body.in_hand
        limit = self._settings.retries
        refusal = retry.decide(fault, context.request.method, in_hand, attempts.repeats, limit, self._afford_repeat)
        if refusal:
            raise refusal from fault
        attempts.pause = False
        if fault.sent:
            # The time in which a member had the request was not spent waiting for a member.
            attempts.until = loop_time().time() + self._settings.queue_timeout
            attempts.repeats += 1
            attempts.pause = attempts.repeats > 1
        elif loop_time().time() > attempts.until + self._settings.connect_timeout:
            # The last attempt began while the request might still have waited, and failed slowly.
            raise self._no_member(context) from fault
        if context.body:
            context.body.rewind()

    async def _pass_on(self, response: UpstreamResponse, member: Member, context: RequestContext, sink: Sink) -> None:
        """Pass a member's response on to its end. Raises TruncatedResponse, ClientGone, or a hook's Refusal."""
        is_switch = response.status == SWITCHING_PROTOCOLS
        if not is_switch:
            self._membership.record_response(member, response.status, response.closes, self._clock())
        is_stream = self._limits is not None and (is_switch or is_event_stream(response.headers))
        if is_stream:
            self._count_stream(context, member, 1)
        try:
            self._on_response_head(context, response)
            policy_headers = self._policy.response_headers(context.hook_request or context.request, member)
            headers = response.headers + policy_headers if policy_headers else response.headers
            if self._sends_id:
                headers = with_request_id(headers, context.id)
            await _relay(response, sink, context, headers)
        except TruncatedResponse as error:
            _note_break(context, error)
            raise
        finally:
            if is_stream:
                self._count_stream(context, member, -1)
            await response.close()

    def _count_stream(self, context: RequestContext, member: Member, change: int) -> None:
        """Count a WebSocket or server-sent events that begin (1) or end (-1) for the limit that finds itself."""
        assert self._limits and context.outcome
        context.outcome.is_stream = True
        self._limits.count_stream(member, change)

    def _no_member(self, record: RequestRecord) -> Refusal:
        last = f"; last attempt: {record.attempts[-1]}" if record.attempts else ""
        why = f"{self._settings.alias}: {self._membership.shortage()}{last}"
        return Refusal(503, "no_member", f"no member became available in time ({why})", retry_after=1)

    def _afford_repeat(self) -> bool:
        return self._budget.spend(self._clock())

    async def _wait_for_member(
        self, queued: QueuedRequest, body: ReplayableBody | None, until: float, record: RequestRecord
    ) -> Member:
        """Queue the request until its turn comes and a member can take it. Raises Refusal if none can."""
        began = self._clock()
        ended: asyncio.Future[Member | Refusal] = asyncio.get_running_loop().create_future()

        def end(outcome: Member | Refusal) -> bool:
            if ended.done():
                return False
            ended.set_result(outcome)
            return True

        queued.give = queued.refuse = end
        queued.client = self._key_of(self._request_headers.origin(record.request.headers, record.request.client))
        queued.in_hand = body.size if body else 0
        patience = max(0.0, until - loop_time().time())
        is_queued = False
        try:
            self.admission.wait(queued, patience)
            is_queued = True
            async with Limit(patience):
                outcome = await ended
            if isinstance(outcome, Refusal):
                raise outcome
        except (Refusal, TimeoutError) as error:
            if not _member_in(ended):
                if member := self.admission.fallback(queued):
                    return member
                if isinstance(error, Refusal):
                    raise
                raise (overloaded() if self._membership.has_available else self._no_member(record)) from None
        except asyncio.CancelledError:
            if member := _member_in(ended):
                self.admission.release(member, queued)
            raise
        finally:
            self.queue.discard(queued)
            if is_queued:
                record.queued += self._clock() - began
        self.queue.record_wait(queued, self._clock() - began)
        given = _member_in(ended)
        assert given
        return given


def _note_break(context: RequestContext, error: TruncatedResponse) -> None:
    """Note that a response has broken off."""
    if context.outcome:
        context.outcome.failure = error.reason


def _member_in(ended: asyncio.Future[Member | Refusal]) -> Member | None:
    """Return the member that a request has got, or None if its wait has had another end, or none yet."""
    outcome = ended.result() if ended.done() and not ended.cancelled() else None
    return outcome if isinstance(outcome, Member) else None


async def _relay(response: UpstreamResponse, sink: Sink, record: RequestRecord, headers: Headers) -> None:
    """Pass a response on to its end, with these headers in place of its own."""
    record.status = response.status
    sink.spelling = response.spelling
    if response.status == SWITCHING_PROTOCOLS:

        def count(passed: int) -> None:
            record.body_bytes += passed

        await sink.switch(response, headers, count)
        return
    await sink.start(response.status, headers, response.reason)
    await _relay_body(response, sink, record)


async def _relay_body(response: UpstreamResponse, sink: Sink, record: RequestRecord) -> None:
    """Pass a body on to its end."""
    more = True
    while more:
        piece, more = await response.read()
        record.body_bytes += len(piece)
        await sink.write(piece, more, NO_FIELDS if more else response.trailers)
