"""What a dispatcher needs of those around it: sinks for responses, spans of traces, and its own callers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from balancer.dispatch.context import RequestContext
from balancer.dispatch.record import RequestRecord
from balancer.http.headers import (
    NO_FIELDS,
    Headers,
)
from balancer.http.request import Request
from balancer.upstream.base import PendingResponse, UpstreamResponse


class Sink(Protocol):
    """Where a response goes. ``start`` and ``write`` wait while the client cannot take more, and raise ClientGone."""

    def send_interim(self, status: int, headers: Headers) -> None:
        """An interim response, before the response itself; a sink that cannot pass it on drops it."""

    async def start(self, status: int, headers: Headers) -> None:
        """The response head; once, before any body."""

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        """A piece of the body; ``more`` is false for the last, after which ``trailers`` follow."""

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        """The member has switched protocols, as the request asked: pass everything on, both ways, to the end.

        ``count`` is told of bytes that went to the client.
        """


class Span(Protocol):
    """A request's part of a trace. ``fields``: those that tell the member of it (W3C Trace Context)."""

    fields: Headers


Trace = Callable[[RequestRecord], Span | None]


class DirectSink(Sink, Protocol):
    """A sink that takes a complete response at once, without waiting."""

    def answer(self, response: PendingResponse, headers: Headers, body: bytes) -> None:
        """All of a response, with these fields in place of its own.

        A client that has left is not an error here: nothing more is done for it.
        """

    def on_response_progress(self) -> None:
        """There is news of the response: have ``Dispatcher.on_response_progress`` called."""

    def continue_in_task(self) -> None:
        """The rest takes waiting: have ``Dispatcher.run`` awaited."""


class RequestHandler(Protocol):
    """What a front end gives requests to: a ``Dispatcher``, or what stands for one. ``name``: of the pool, or ""."""

    name: str

    def begin(self, request: Request) -> RequestContext:
        """A request has come."""

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        """See ``Dispatcher.try_send_nowait``."""

    def on_response_progress(self, context: RequestContext, sink: DirectSink) -> None:
        """See ``Dispatcher.on_response_progress``."""

    async def run(self, context: RequestContext, sink: Sink) -> None:
        """See ``Dispatcher.run``."""
