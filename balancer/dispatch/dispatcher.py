"""The course of a request, from the choice of a member to the last byte of the response.

This module is independent of ASGI: it takes a request and a sink for the response. ``balancer.dispatch.retry`` decides
what follows a failure, and ``balancer.members.membership`` which members may be chosen. ``balancer.dispatch.course``
has what waits; this module has no coroutine.
"""

from __future__ import annotations

from collections.abc import Coroutine
from math import inf
from typing import Any

from mypy_extensions import mypyc_attr

from balancer.dispatch import course, retry
from balancer.dispatch.attempts import Attempts
from balancer.dispatch.context import RequestContext, RequestRecord
from balancer.dispatch.fast_path import FastPathDispatcher
from balancer.dispatch.interfaces import Sink
from balancer.dispatch.refusals import too_large
from balancer.errors import ConnectFailed, Refusal, UpstreamError
from balancer.http.headers import content_length
from balancer.http.request import Request
from balancer.http.request_headers import with_prefix
from balancer.loop_time import loop_time
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.upstream.base import UpstreamRequest, UpstreamResponse


@mypyc_attr(allow_interpreted_subclasses=True)
class Dispatcher(FastPathDispatcher):
    """Hands requests to members, and waits where that is needed."""

    def handle(self, request: Request, sink: Sink) -> Coroutine[Any, Any, None]:
        """Answer the request; see ``run``."""
        return self.run(self.begin(request), sink)

    def run(self, context: RequestContext, sink: Sink) -> Coroutine[Any, Any, None]:
        """Answer the request, with all waiting and retries.

        Raises TruncatedResponse when the response has begun and cannot be completed: the caller
        must break the client's connection rather than end it cleanly.
        """
        return course.run(self, context, sink)

    def _exchange(self, context: RequestContext, sink: Sink) -> Coroutine[Any, Any, None]:
        """Send the request to members until one answers, and pass its response on. Raises Refusal where none does."""
        return course.exchange(self, context, sink)

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

    def _after_failure(self, fault: UpstreamError, member: Member, context: RequestContext, attempts: Attempts) -> None:
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
            attempts.repeat(loop_time().time() + self._settings.queue_timeout, died=True)
        elif loop_time().time() > attempts.until + self._settings.connect_timeout:
            # The last attempt began while the request might still have waited, and failed slowly.
            raise self._no_member(context) from fault
        if context.body:
            context.body.rewind()

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
