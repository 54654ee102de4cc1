"""The dispatcher where there are plug-ins: its requests and responses pass hooks, and policies see what hooks see.

Rules:
* Hooks and policies get one object for a request, whose fields only ``on_request`` may change.
* Where there are hooks for requests, the log has the request as it came, and members get another one.
"""

from __future__ import annotations

from typing import Any

from balancer.dispatch.context import RequestContext
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import DirectSink, Sink
from balancer.http.headers import connection, nominated
from balancer.http.request import Request
from balancer.plugins.hook_api import HookRequest, HookResponse
from balancer.plugins.hook_chain import HookChain
from balancer.upstream.base import UpstreamResponse


class HookedDispatcher(Dispatcher):
    """A dispatcher with hooks for requests or responses, or a policy that is a plug-in. Others do not pay for these."""

    def __init__(self, chain: HookChain, *parts: Any) -> None:
        super().__init__(*parts)
        self._chain = chain

    def begin(self, request: Request) -> RequestContext:
        context = super().begin(request)
        if self._chain.has_request_hooks:
            request_copy = context.request = _copy(request)
            hook_request = context.hook_request = HookRequest(request_copy, context.id)
            context.refusal = self._chain.request(hook_request)
            request_copy.headers = hook_request.headers.pairs
        else:
            hook_request = context.hook_request = HookRequest(request, context.id)
        hook_request.headers.freeze()
        return context

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        return context.refusal is None and super().try_send_nowait(context, sink, body)

    async def _exchange(self, context: RequestContext, sink: Sink) -> None:
        if not context.response:
            _raise(context)
        await super()._exchange(context, sink)

    def _begin_response(self, context: RequestContext, now: float) -> bool:
        assert context.response
        self._call_response_hooks(context, context.response)
        # ``_on_response_head`` follows where there is a refusal.
        return context.refusal is None and super()._begin_response(context, now)

    def _on_response_head(self, context: RequestContext, response: UpstreamResponse) -> None:
        if not context.refusal:
            self._call_response_hooks(context, response)
        _raise(context)

    def _call_response_hooks(self, context: RequestContext, response: UpstreamResponse) -> None:
        """Call the hooks for a response, once."""
        if self._chain.has_response_hooks and context.member and context.hook_request:
            hook_response = HookResponse(response.status, response.headers, context.member)
            context.refusal = self._chain.response(context.hook_request, hook_response)
            if hook_response.headers.pairs is not response.headers:
                response.headers = hook_response.headers.pairs


def _raise(context: RequestContext) -> None:
    """Raise the refusal of a hook, if there is one."""
    try:
        if context.refusal:
            raise context.refusal
    finally:
        context.refusal = None  # It refers to this frame, and so to the context: reference counts shall free them.


def _copy(request: Request) -> Request:
    """Return a copy of a request that is not shared, without the head that others may have.

    Its client's ``Connection`` has done its work, but for the fields that it names. They are for this hop alone, and
    are left out: ``Connection`` must not take away what a hook adds.
    """
    headers = request.headers
    if options := connection(headers):
        gone = nominated(options) | {b"connection"}
        headers = [pair for pair in headers if pair[0] not in gone]
    request_copy = Request(
        request.method, request.target, headers, request.client, request.scheme, request.body, request.chunked,
        request.upgrade, request.expects, request.host, request.id,
    )  # fmt: skip
    request_copy.spelling = request.spelling
    return request_copy
