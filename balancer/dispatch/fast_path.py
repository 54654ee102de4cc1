"""Requests that are sent and answered without waiting: one step of the event loop for each way.

A request that finds a member and an idle connection, and a response in one piece, need no task, future or coroutine.
``balancer.dispatch.dispatcher`` has what waits. This module has no coroutine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

from mypy_extensions import mypyc_attr

from balancer.config.settings import Settings
from balancer.dispatch import retry
from balancer.dispatch.admission import Admission
from balancer.dispatch.context import RequestContext, RequestRecord, request_ids
from balancer.dispatch.interfaces import DirectSink, RequestHandler, Trace
from balancer.dispatch.queue import PendingQueue
from balancer.dispatch.replay import ReplayableBody
from balancer.errors import Refusal
from balancer.http import loops
from balancer.http.clients import client_keys
from balancer.http.headers import TRACE_FIELDS, Headers, with_request_id
from balancer.http.request import AnyRequest, Request
from balancer.http.request_headers import RequestHeaders, with_prefix
from balancer.http.serialize import request_head
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies.base import Policy
from balancer.types import Clock
from balancer.upstream.base import Upstream

_NONE: frozenset[Member] = frozenset()


@mypyc_attr(allow_interpreted_subclasses=True)
class FastPathDispatcher(RequestHandler):
    """Hands requests to members. ``on_done`` is called once for every request, with its record.

    ``name``: of the pool that these members form, where there are several.
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
        # The methods of requests that may be sent again after a member had them.
        self._repeatable = retry.IDEMPOTENT if settings.retries else frozenset[str]()
        self._max_body = settings.max_body_bytes or inf
        self._request_headers = RequestHeaders(
            settings.trusted_proxies, TRACE_FIELDS if trace else frozenset(), settings.drop_underscore_headers
        )
        self._key_of = client_keys(settings.client_prefix_v6)
        self._new_id = request_ids()
        self._sends_id = settings.response_request_id
        self._trace = trace
        self._budget = retry.Budget()
        self.queue = PendingQueue(settings.queue_max, settings.queue_max_bytes, settings.max_queue_share)
        self.admission = Admission(membership, policy, self.queue, settings.max_requests_per_member)

    def begin(self, request: Request) -> RequestContext:
        """Return the context of a new request."""
        now = self._clock()
        self._budget.count_request(now)
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
        """Send a request whose ``body`` is at hand, if that takes no waiting; return whether it was sent.

        ``hook_request``: that of the context. (Looking it up here would cost every request, and most have none.)
        ``sink.on_response_progress`` is called at each progress of the response. After False (no member or idle
        connection is available, or the request may be sent only once, or never), ``run`` has to be awaited.
        """
        request = context.request
        if context.body:
            context.body.keep(body)
            context.received = len(body)
        if request.method not in self._repeatable or len(body) > self._max_body or context.span:
            # A request that may be sent only once waits for one turn of the event loop, in which closed connections are
            # noticed. ``run`` refuses a body that is too large. A traced request differs in its head.
            return False
        if not request.head and not self._render_head(request):
            return False
        member = context.acquired = self.admission.acquire(hook_request or request, _NONE)
        if member is None:
            return False
        head = request.head + b"\r\n" if request.id else b"%bx-request-id: %b\r\n\r\n" % (request.head, context.id)
        response = self._upstream.send_nowait(member.address, request, head, body, sink.send_interim)
        if response is None:
            return False
        context.member = member.address
        context.response = response
        response.listener = sink.on_response_progress
        return True

    def _render_head(self, request: Request) -> bool:
        """Render the head for members; return whether there is one. ``run`` refuses a request that has come back."""
        try:
            headers = self._headers(request)
        except Refusal:
            return False
        request.head = request_head(request.method, request.stripped or request.target, headers)
        return True

    def on_response_progress(self, context: RequestContext, sink: DirectSink, hook_request: AnyRequest = None) -> None:
        """Pass the response to a request sent without waiting on, if all of it is there; else continue in a task."""
        response, member = context.response, context.acquired
        assert response and member
        response.listener = None
        if not (response.complete and response.started):
            sink.continue_in_task()
            return
        now = self._clock()
        self._membership.record_response(member, response.status, response.closes, now)
        headers = response.headers
        policy_headers = self._policy.response_headers(hook_request or context.request, member)
        if policy_headers:
            headers = headers + policy_headers
        if self._sends_id:
            headers = with_request_id(headers, context.id)
        body = response.take()
        context.status = response.status
        context.body_bytes = len(body)
        context.duration = context.attempt_duration = now - context.started
        sink.answer(response, headers, body)
        self.admission.release(member)
        self._on_done(context)

    def mark_requests(self, identity: str) -> None:
        """Mark each request, from now on, as one that has passed this pool; see ``balancer.http.loops``."""
        pool = f"{self._settings.alias}:{self._settings.upstream_port}"
        self._request_headers.mark(loops.mark_of(identity, pool))

    def refused(self, request: Request, refusal: Refusal) -> bytes:
        """Record a request that a front end has refused before any dispatcher had it; return its id."""
        record = RequestRecord(request, self._clock(), request.id or self._new_id())
        record.status, record.error, record.reason = refusal.status, refusal.token, refusal.reason
        self._on_done(record)
        return record.id

    def _headers(self, request: Request) -> Headers:
        """Return the headers as members get them. Raises Refusal for a request that has come back."""
        headers = self._request_headers(
            request.headers, request.client, request.scheme, request.host, request.chunked, request.upgrade
        )
        return with_prefix(headers, request.prefix) if request.prefix else headers
