"""Requests that are sent and answered without waiting: one step of the event loop for each way.

A request that finds a member and an idle connection, and a response in one piece, need no task, future or coroutine.
``balancer.dispatch.dispatcher`` has what waits. This module has no coroutine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Final

from mypy_extensions import mypyc_attr

from balancer.config.settings import Settings
from balancer.dispatch import retry
from balancer.dispatch.admission import Admission
from balancer.dispatch.context import RequestContext, RequestRecord, request_ids
from balancer.dispatch.interfaces import DirectSink, RequestHandler, Trace, is_event_stream
from balancer.dispatch.limit_finder import LimitFinder
from balancer.dispatch.limits import START
from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.dispatch.replay import ReplayableBody
from balancer.errors import Refusal, TruncatedResponse
from balancer.http import loops
from balancer.http.clients import client_keys
from balancer.http.headers import TRACE_FIELDS, with_request_id
from balancer.http.request import Request
from balancer.http.request_headers import RequestHeaders
from balancer.http.serialize import request_head
from balancer.loop_time import loop_time
from balancer.members.ejector import Ejector
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.outcome import Learner, Outcome
from balancer.policies.base import Policy
from balancer.types import Clock
from balancer.upstream.base import PendingResponse, Upstream

_NONE: Final[frozenset[Member]] = frozenset()


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
        # Statuses of responses that a task decides about; most pools have none. The header of a request's key.
        self._retry_status = settings.retry_status if settings.retries else frozenset[int]()
        self._retries_by_status = len(self._retry_status) > 0
        self._key_header = settings.idempotency_header.lower().encode()
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
        limit, processes = settings.max_requests_per_member, settings.processes
        self.admission = Admission(membership, policy, self.queue, START if isinstance(limit, str) else limit)
        # Judges members by their attempts, where that is wanted.
        self.ejector: Ejector | None = None
        self._learners: list[Learner] = []
        self._limits: LimitFinder | None = None
        if isinstance(limit, str):
            parts = 1 if isinstance(processes, str) else processes
            self._limits = LimitFinder(
                membership, self.admission, lambda delay, call: loop_time().call_later(delay, call), clock, parts
            )
            self.report_to(self._limits.learn)
        if policy.learns:
            self.report_to(policy.finished)

    def report_to(self, learner: Learner) -> None:
        """Call ``learner`` with the member and the outcome of each attempt from now on."""
        self._learners.append(learner)

    def begin(self, request: Request) -> RequestContext:
        """Return the context of a new request."""
        now = self._clock()
        self._budget.count_request(now)
        context = RequestContext(request, now, request.id or self._new_id())
        context.dispatcher = self
        if request.body:
            context.body = ReplayableBody(request.body, self._max_body, self._clock)
        if self._trace:
            context.span = self._trace(context)
        return context

    def may_repeat(self, request: Request) -> bool:
        return request.method in self._repeatable

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        """Send a request whose ``body`` is at hand, if that takes no waiting; return whether it was sent.

        ``sink.on_response_progress`` is called at each progress of the response. After False (no member or idle
        connection is available, or the request must not be sent), ``run`` has to be awaited.

        A request that may be sent only once comes here in the turn of the event loop after its arrival: closed
        connections have been noticed by then.
        """
        request = context.request
        if context.body:
            context.body.keep(body)
            context.received = len(body)
        if len(body) > self._max_body or context.span:
            return False  # ``run`` refuses a body that is too large. A traced request differs in its head.
        try:
            lines = self._request_headers.lines(request)
        except Refusal:
            return False  # ``run`` refuses a request that has come back.
        member = context.acquired = self.admission.acquire(context.hook_request or request, _NONE)
        if member is None:
            return False
        if not request.id:
            lines += b"\r\nx-request-id: " + context.id
        head = request_head(request.method, request.stripped or request.target, lines)
        response = self._upstream.send_nowait(
            member.address, request, head, body, request.method in self._repeatable, sink.send_interim
        )
        if response is None:
            return False
        context.member = member.address
        context.response = response
        response.listener = sink.on_response_progress
        return True

    def on_response_progress(self, context: RequestContext, sink: DirectSink) -> None:
        """Pass on what there is of the response to a request sent without waiting; else continue in a task."""
        response, member = context.response, context.acquired
        assert response and member
        now = self._clock()
        is_whole = response.complete and not context.is_relaying
        if not (
            response.is_flowing
            and (is_whole or sink.is_writable)
            and (
                context.is_relaying
                or (
                    (is_whole or _ends(response))
                    and not (self._retries_by_status and response.status in self._retry_status)
                    and self._begin_response(context, now)
                )
            )
        ):
            response.listener = None
            sink.continue_in_task()
            return
        body = response.take()
        context.body_bytes += len(body)
        if is_whole:
            sink.answer(response, body)
        else:
            if not context.is_relaying:
                context.is_relaying = True
                sink.begin_response(response)
            sink.pass_on(body, not response.complete, response.trailers)
        if response.complete:
            response.listener = None
            context.duration = context.attempt_duration = now - context.started
            self._end_attempt(context, member)
            self._on_done(context)

    def _begin_response(self, context: RequestContext, now: float) -> bool:
        """Record a response and complete its headers; return whether the client may get it.

        Plug-ins may change the headers before that, or refuse the response.
        """
        response, member = context.response, context.acquired
        assert response and member
        self._membership.record_response(member, response.status, response.closes, now)
        context.status = response.status
        self._note_head(context, member, response.status, now - context.started)
        policy_headers = self._policy.response_headers(context.hook_request or context.request, member)
        if policy_headers:
            response.headers = response.headers + policy_headers
        if self._sends_id:
            response.headers = with_request_id(response.headers, context.id)
        return True

    def _note_head(self, context: RequestContext, member: Member, status: int, first_byte: float) -> None:
        """Note the head of a response, which came after so many seconds."""
        ejector = self.ejector
        if ejector is not None and status < 500:
            ejector.answered(member, first_byte)
            if not self._learners:
                return
        self._note_outcome(context, status, "", first_byte)

    def _first_byte(self, context: RequestContext, began: float) -> float:
        """Return the seconds since the member had all of a request: since ``began``, or the end of its upload."""
        return self._clock() - (max(began, context.body.ended_at) if context.body else began)

    def _note_outcome(self, context: RequestContext, status: int, failure: str, first_byte: float) -> None:
        if self._learners or self.ejector is not None:
            context.outcome = Outcome(status, failure, first_byte)

    def _note_break(self, context: RequestContext, error: TruncatedResponse) -> None:
        """Note that a response has broken off."""
        if context.outcome is None:
            self._note_outcome(context, context.status, "", self._clock() - context.started)
        if context.outcome:
            context.outcome.failure = error.reason

    def _end_attempt(self, context: RequestContext, member: Member, queued: QueuedRequest | None = None) -> None:
        """Take a member back after an attempt, and pass on what came of it."""
        self.admission.release(member, queued)
        outcome, context.outcome = context.outcome, None
        if outcome:
            outcome.duration = context.attempt_duration
            if self.ejector is not None and (outcome.failure or outcome.status >= 500):
                self.ejector.failed(member, outcome)
            for learner in self._learners:
                learner(member, outcome)
        elif self._limits:
            self._limits.left(member, context.attempt_duration)

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


def _ends(response: PendingResponse) -> bool:
    """Whether a response ends by itself. Streams of events do not: a task ends them, between two events."""
    return response.lines != b"" or not is_event_stream(response.headers)
