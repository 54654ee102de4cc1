"""Repeats of requests that a member has answered with a status of RETRY_STATUS.

Rules:
* Such a request may run twice: its method is idempotent, or its client has given it a key. (A connection that died is
  another matter: ``balancer.dispatch.retry`` knows no keys.) All of its body is in hand, and it is sent again RETRIES
  times at most, within the budget of all repeats.
* What follows is decided before the response is dropped, and its next member is taken by then. Where it has none, the
  response passes on with its body.
* A member that is free and has not been tried gets the request at once. Without one, a Retry-After of at most WAIT_MAX
  seconds is waited for. Any member will do after that: it is the members' own word.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from balancer.dispatch import retry
from balancer.dispatch.attempts import Attempts
from balancer.dispatch.context import RequestContext
from balancer.errors import RetriedStatus
from balancer.http.retry_after import retry_after
from balancer.loop_time import loop_time
from balancer.members.member import Member
from balancer.upstream.base import UpstreamResponse

if TYPE_CHECKING:
    from balancer.dispatch.dispatcher import Dispatcher

# Seconds of a Retry-After that a request waits for; with more of them, its client is asked to.
WAIT_MAX = 1.0


async def drop(
    dispatcher: Dispatcher, response: UpstreamResponse, member: Member, context: RequestContext, attempts: Attempts
) -> bool:
    """Drop a response of ``member`` with such a status, if its request can be sent again; return whether that is done.

    ``context.acquired`` is the member of the next attempt then.
    """
    attempts.queued.tried |= {member}
    other = await _next_member(dispatcher, response, member, context, attempts)
    if other is None:
        return False
    # Nothing waits from here to the next attempt, which has its member.
    context.acquired = other
    context.tried(member.address, RetriedStatus(response.status))
    dispatcher._membership.record_response(member, response.status, response.closes, dispatcher._clock())
    response.drop()
    attempts.repeat(loop_time().time() + dispatcher._settings.queue_timeout, died=False)
    if context.body:
        context.body.rewind()
    return True


async def _next_member(
    dispatcher: Dispatcher, response: UpstreamResponse, member: Member, context: RequestContext, attempts: Attempts
) -> Member | None:
    """Return a member that has been acquired for the next attempt, or None for none."""
    admission, budget, clock, queued = dispatcher.admission, dispatcher._budget, dispatcher._clock, attempts.queued
    has_key = dict(context.request.headers).get(dispatcher._key_header, b"") != b""
    is_whole = context.body is None or context.body.is_whole
    limit = dispatcher._settings.retries
    if not retry.may_repeat_answered(context.request.method, has_key, is_whole, attempts.repeats, limit):
        return None
    if not budget.has_room(clock()):
        return None
    other = admission.acquire(queued.request, queued.tried, again=False)
    if other is None and (pause := retry_after(response.headers, time.time())) <= WAIT_MAX:
        try:
            await asyncio.sleep(pause)
        except BaseException:
            response.drop()
            raise
        if budget.has_room(clock()):
            other = admission.acquire(queued.request, queued.tried) or admission.keep(member)
    if other:
        budget.spend(clock())
    return other
