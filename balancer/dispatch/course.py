"""What waits in the course of a request: for a member, for its response, for the client that takes it.

These coroutines are functions beside ``Dispatcher``, whose private attributes are theirs as well: that class is
compiled, and coroutines are not (docs/decisions/compilation.md).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from balancer.dispatch import retry, status_retry
from balancer.dispatch.attempts import Attempts
from balancer.dispatch.context import RequestContext, RequestRecord
from balancer.dispatch.interfaces import Sink, is_event_stream
from balancer.dispatch.queue import QueuedRequest
from balancer.dispatch.refusals import overloaded, refuse
from balancer.dispatch.replay import ReplayableBody
from balancer.errors import SHUTTING_DOWN, ClientGone, Refusal, TruncatedResponse, UpstreamError
from balancer.http.headers import NO_FIELDS, Headers, with_request_id
from balancer.loop_time import Limit, loop_time
from balancer.members.member import Member
from balancer.upstream.base import UpstreamRequest, UpstreamResponse

if TYPE_CHECKING:
    from balancer.dispatch.dispatcher import Dispatcher

# Status in the log of a request whose client left before there was one (nginx's number).
CLIENT_GONE = 499

SWITCHING_PROTOCOLS = 101

# Seconds for which a response head waits for the first piece of its body. Servers write the two in a row; a member
# that is killed between them costs no request, because nothing has been passed on.
HEAD_DELAY = 0.01


async def run(dispatcher: Dispatcher, context: RequestContext, sink: Sink) -> None:
    """Answer the request, with all waiting and retries.

    Raises TruncatedResponse when the response has begun and cannot be completed: the caller
    must break the client's connection rather than end it cleanly.
    """
    try:
        await dispatcher._exchange(context, sink)
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
        context.duration = dispatcher._clock() - context.started
        dispatcher._on_done(context)


async def exchange(dispatcher: Dispatcher, context: RequestContext, sink: Sink) -> None:
    """Send the request to members until one answers, and pass its response on. Raises Refusal where none does."""
    if context.is_relaying:
        await _finish_relay(dispatcher, context, sink)
        return
    outgoing = dispatcher._outgoing(context, sink)
    attempts = Attempts(QueuedRequest(context.hook_request or context.request))
    attempts.until = loop_time().time() + dispatcher._settings.queue_timeout
    while True:
        member = await _find_member(dispatcher, context, attempts, sink)
        attempts.began = context.started if context.response else dispatcher._clock()
        try:
            try:
                response = await _attempt(dispatcher, member, context, outgoing)
            except UpstreamError as fault:
                dispatcher._note_outcome(context, 0, fault.reason, dispatcher._first_byte(context, attempts.began))
                dispatcher._after_failure(fault, member, context, attempts)
            else:
                first_byte = dispatcher._first_byte(context, attempts.began)
                dispatcher._note_head(context, member, response.status, first_byte)
                if response.status not in dispatcher._retry_status or not await status_retry.drop(
                    dispatcher, response, member, context, attempts
                ):
                    await _pass_on(dispatcher, response, member, context, sink)
                    return
        finally:
            context.attempt_duration = max(0.0, dispatcher._clock() - attempts.began)
            dispatcher._end_attempt(context, member, attempts.queued)
        outgoing.fresh = attempts.fresh
        outgoing.repeatable = outgoing.repeatable and attempts.repeats < dispatcher._settings.retries
        if attempts.pause:
            await asyncio.sleep(retry.PAUSE_SECONDS)


async def _finish_relay(dispatcher: Dispatcher, context: RequestContext, sink: Sink) -> None:
    """Pass on the rest of a response that has begun without waiting. Raises TruncatedResponse or ClientGone."""
    response, member = context.response, context.acquired
    assert response and member
    try:
        await _relay_body(response, sink, context)
    except TruncatedResponse as error:
        dispatcher._note_break(context, error)
        raise
    finally:
        await response.close()
        context.attempt_duration = dispatcher._clock() - context.started
        dispatcher._end_attempt(context, member)


async def _find_member(dispatcher: Dispatcher, context: RequestContext, attempts: Attempts, sink: Sink) -> Member:
    """Return the member acquired before, one that is free now, or one from the queue."""
    member, context.acquired = context.acquired, None
    member = member or dispatcher.admission.acquire(attempts.queued.request, attempts.queued.tried)
    if member is None:
        sink.on_queue(True)
        member = await _wait_for_member(dispatcher, attempts.queued, context.body, attempts.until, context)
        sink.on_queue(False)
    context.member = member.address
    context.retries = len(context.attempts)
    return member


async def _attempt(
    dispatcher: Dispatcher, member: Member, context: RequestContext, outgoing: UpstreamRequest
) -> UpstreamResponse:
    """Send the request to a member, if it has not been sent without waiting. Raises UpstreamError."""
    pending, context.response = context.response, None
    if pending:
        await pending.wait_for_head()
        response: UpstreamResponse = pending
    else:
        response = await dispatcher._upstream.send(member.address, outgoing)
    await response.wait_for_body(HEAD_DELAY)
    return response


async def _pass_on(
    dispatcher: Dispatcher, response: UpstreamResponse, member: Member, context: RequestContext, sink: Sink
) -> None:
    """Pass a member's response on to its end. Raises TruncatedResponse, ClientGone, or a hook's Refusal."""
    is_switch = response.status == SWITCHING_PROTOCOLS
    if not is_switch:
        dispatcher._membership.record_response(member, response.status, response.closes, dispatcher._clock())
    is_stream = dispatcher._limits is not None and (is_switch or is_event_stream(response.headers))
    if is_stream:
        dispatcher._count_stream(context, member, 1)
    try:
        dispatcher._on_response_head(context, response)
        policy_headers = dispatcher._policy.response_headers(context.hook_request or context.request, member)
        headers = response.headers + policy_headers if policy_headers else response.headers
        if dispatcher._sends_id:
            headers = with_request_id(headers, context.id)
        await _relay(response, sink, context, headers)
    except TruncatedResponse as error:
        dispatcher._note_break(context, error)
        raise
    finally:
        if is_stream:
            dispatcher._count_stream(context, member, -1)
        await response.close()


async def _wait_for_member(
    dispatcher: Dispatcher, queued: QueuedRequest, body: ReplayableBody | None, until: float, record: RequestRecord
) -> Member:
    """Queue the request until its turn comes and a member can take it. Raises Refusal if none can."""
    began = dispatcher._clock()
    ended: asyncio.Future[Member | Refusal] = asyncio.get_running_loop().create_future()

    def end(outcome: Member | Refusal) -> bool:
        if ended.done():
            return False
        ended.set_result(outcome)
        return True

    queued.give = queued.refuse = end
    queued.client = dispatcher._key_of(
        dispatcher._request_headers.origin(record.request.headers, record.request.client)
    )
    queued.in_hand = body.size if body else 0
    patience = max(0.0, until - loop_time().time())
    is_queued = False
    try:
        dispatcher.admission.wait(queued, patience)
        is_queued = True
        async with Limit(patience):
            outcome = await ended
        if isinstance(outcome, Refusal):
            raise outcome
    except (Refusal, TimeoutError) as error:
        if not _member_in(ended):
            if member := dispatcher.admission.fallback(queued):
                return member
            if isinstance(error, Refusal):
                raise
            raise (overloaded() if dispatcher._membership.has_available else dispatcher._no_member(record)) from None
    except asyncio.CancelledError:
        if member := _member_in(ended):
            dispatcher.admission.release(member, queued)
        raise
    finally:
        dispatcher.queue.discard(queued)
        if is_queued:
            record.queued += dispatcher._clock() - began
    dispatcher.queue.record_wait(queued, dispatcher._clock() - began)
    given = _member_in(ended)
    assert given
    return given


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
