"""The dispatcher where there are plug-ins: its requests and responses pass hooks, and policies see what these see.

Rules:
* Hooks and policies get one object for a request, whose fields only ``on_request`` may change.
* Where there are hooks for requests, each request is an object of its own, with a head of its own for the member. What
  is known by its bytes (``balancer.http.memo``) stays as it was, because a hook may decide otherwise the next time.
"""

from __future__ import annotations

from typing import Any

from balancer.dispatch.context import RequestContext
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import DirectSink, Sink
from balancer.http.headers import connection, nominated
from balancer.http.request import Request
from balancer.plugins.hook_chain import HookChain
from balancer.plugins.hooks import HookRequest, HookResponse
from balancer.upstream.base import UpstreamResponse


class HookedDispatcher(Dispatcher):
    """A dispatcher with hooks for requests or responses, or a policy that is a plug-in. Others do not pay for these."""

    def __init__(self, chain: HookChain, *parts: Any) -> None:
        super().__init__(*parts)
        self._chain = chain

    def begin(self, request: Request) -> RequestContext:
        course = super().begin(request)
        if self._chain.on_requests:
            own = course.request = _own(request)
            seen = course.seen = HookRequest(own, course.id)
            course.refusal = self._chain.request(seen)
            own.headers = seen.headers.pairs
        else:
            seen = course.seen = HookRequest(request, course.id)
        seen.headers.freeze()
        return course

    def at_once(self, course: RequestContext, sink: DirectSink, body: bytes, seen: HookRequest | None = None) -> bool:
        return course.refusal is None and super().at_once(course, sink, body, course.seen)

    async def _exchange(self, course: RequestContext, sink: Sink) -> None:
        if not course.response:
            _raise(course)
        await super()._exchange(course, sink)

    def news(self, course: RequestContext, sink: DirectSink, seen: HookRequest | None = None) -> None:
        response = course.response
        if response and response.complete and response.started:
            before = response.headers
            self._ask(course, response)
            if course.refusal:
                course.listen_no_more()
                sink.go_on()  # ``_heard`` follows.
                return
            if response.headers is not before:
                response.lines = b""
        super().news(course, sink, course.seen)

    def _heard(self, course: RequestContext, response: UpstreamResponse) -> None:
        if not course.refusal:
            self._ask(course, response)
        _raise(course)

    def _ask(self, course: RequestContext, response: UpstreamResponse) -> None:
        """Have the hooks see a response, once."""
        if self._chain.on_responses and course.member and course.seen:
            heard = HookResponse(response.status, response.headers, course.member)
            course.refusal = self._chain.response(course.seen, heard)
            response.headers = heard.headers.pairs


def _raise(course: RequestContext) -> None:
    """Raise the refusal of a hook, if there is one."""
    try:
        if course.refusal:
            raise course.refusal
    finally:
        course.refusal = None  # It knows this frame, and so the course: reference counts shall free them.


def _own(request: Request) -> Request:
    """A request that is not shared, without the head that others may have.

    Its client's ``Connection`` has done its work, but for the fields that it names. They are for this hop alone, and
    go now: it must not take away what a hook puts there.
    """
    headers = request.headers
    if options := connection(headers):
        gone = nominated(options) | {b"connection"}
        headers = [it for it in headers if it[0] not in gone]
    return Request(
        request.method, request.target, headers, request.client, request.scheme, request.body, request.chunked,
        request.upgrade, request.expects, request.host, request.id,
    )  # fmt: skip
