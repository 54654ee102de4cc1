"""A request that is sent, and answered, without waiting: one step of the event loop for each way.

Where a member and an idle connection are at hand and the whole response comes in one piece, there is no task, no future
and no coroutine. ``balancer.dispatch.dispatcher`` does what takes waiting. This module has no coroutine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

from balancer.config.settings import Settings
from balancer.dispatch import retry
from balancer.dispatch.admission import Admission
from balancer.dispatch.context import RequestContext, RequestRecord, request_ids
from balancer.dispatch.interfaces import DirectSink, RequestHandler, Trace
from balancer.dispatch.queue import PendingQueue
from balancer.dispatch.replay import ReplayableBody
from balancer.errors import Refusal
from balancer.http.headers import TRACE_FIELDS, Headers, RequestHeaders, with_prefix
from balancer.http.request import AnyRequest, Request
from balancer.http.serialize import request_head
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies.base import Policy
from balancer.types import Clock
from balancer.upstream.base import Upstream

_NONE: frozenset[Member] = frozenset()


class NowaitDispatcher(RequestHandler):
    """Hands requests to members. ``on_done`` is called once for every request, with its record.

    ``name``: of the pool that these members are, where there are several.
    """

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
        """The context of a request that has come."""
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
        member = context.acquired = self.admission.acquire(hook_request or request, _NONE)
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
        response, member = context.response, context.acquired
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

    def _headers(self, request: Request) -> Headers:
        """The fields as members get them."""
        headers = self._request_headers(
            request.headers, request.client, request.scheme, request.host, request.chunked, request.upgrade
        )
        return with_prefix(headers, request.prefix) if request.prefix else headers
