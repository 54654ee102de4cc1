"""What a dispatcher needs of those around it: sinks for responses, spans of traces, and its own callers.

Base classes, because every request crosses them: a call through a Protocol cannot be compiled. This module has no
coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from balancer.dispatch.context import RequestContext, RequestRecord, Span
from balancer.errors import ClientGone, Refusal
from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import Request
from balancer.upstream.base import PendingResponse, UpstreamResponse

# After these bytes a stream of server-sent events may end (HTML, section 9.2.5).
END_OF_EVENT = (b"\n\n", b"\r\n\r\n", b"\r\r")

Trace = Callable[[RequestRecord], Span | None]


class Sink:
    """Where a response goes. ``start`` and ``write`` wait while the client cannot take more, and raise ClientGone."""

    def send_interim(self, status: int, headers: Headers) -> None:
        """Pass an interim response on (RFC 9110 section 15.2); a sink that cannot drops it."""
        raise NotImplementedError

    def start(self, status: int, headers: Headers) -> Coroutine[Any, Any, None]:
        """Send the response head; once, before any body."""
        raise NotImplementedError

    def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> Coroutine[Any, Any, None]:
        """Send a piece of the body; ``more`` is false for the last, after which ``trailers`` follow."""
        raise NotImplementedError

    def switch(
        self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]
    ) -> Coroutine[Any, Any, None]:
        """Pass everything on, both ways, to the end: the member has switched protocols, as the request asked.

        ``count`` is called with the number of bytes that went to the client.
        """
        raise NotImplementedError


class ResponseState(Enum):
    """How much of a response has been sent."""

    PENDING = "pending"  # nothing, but for interim responses
    STARTED = "started"
    COMPLETE = "complete"


PENDING, STARTED, COMPLETE = ResponseState


class ActiveRequest(Sink):
    """One request of one client, by whatever front end it came: the sink of its response.

    ``context``: what the dispatcher makes of it, while it is under way. ``task`` serves it, until there is nothing left
    to cancel. ``state``: of its response. ``close_reason``: why it was ended early, or None: a Refusal that the client
    is told if its response has not begun, or ClientGone. ``ends_after_event``: its response, server-sent events, ends
    with the event that comes next.
    """

    context: RequestContext
    task: asyncio.Task[Any] | None = None
    state: ResponseState = PENDING
    close_reason: Refusal | ClientGone | None = None
    ends_after_event = False
    # Of the response: its headers, and the last piece of its body that has been sent whole.
    _headers: Headers = []  # noqa: RUF012 - replaced, never changed
    _sent = b""

    def end(self, refusal: Refusal | None = None) -> None:
        """Cancel the request; the client gets ``refusal`` if its response has not begun."""
        if self.close_reason is None and self.task:
            self.close_reason = refusal or ClientGone()
            self.cancel()

    def cancel(self) -> None:
        """Cancel the task, with the token of the reason as its message."""
        if self.task:
            self.task.cancel(self.close_reason.token if isinstance(self.close_reason, Refusal) else "client_gone")

    def begin_shutdown(self) -> Coroutine[Any, Any, None] | None:
        """What ends a response that would not end by itself, or None: the balancer is about to exit."""
        return None

    @property
    def is_event_stream(self) -> bool:
        """Whether the response is server-sent events that may end after any event."""
        fields = dict(self._headers)
        plain = not fields.keys() & {b"content-length", b"content-encoding"}
        return plain and fields.get(b"content-type", b"").startswith(b"text/event-stream")

    @property
    def is_between_events(self) -> bool:
        """Whether what was sent last ends an event."""
        return self._sent.endswith(END_OF_EVENT)

    def finish(self) -> Coroutine[Any, Any, None]:
        """Send the end of the response."""
        raise NotImplementedError

    def watch(self, began_before: float) -> None:
        """Have a client that leaves noticed, if the request has lasted since ``began_before``."""

    def unwatch(self) -> None:
        """Stop watching for the client to leave."""


class DirectSink(Sink):
    """A sink that takes a complete response without waiting."""

    def answer(self, response: PendingResponse, headers: Headers, body: bytes) -> None:
        """Send all of a response, with these headers in place of its own.

        A client that has left is not an error here: nothing more is done for it.
        """
        raise NotImplementedError

    def on_response_progress(self) -> None:
        """Have ``Dispatcher.on_response_progress`` called."""
        raise NotImplementedError

    def continue_in_task(self) -> None:
        """Have ``Dispatcher.run`` awaited: the rest takes waiting."""
        raise NotImplementedError


class RequestHandler:
    """What a front end gives requests to: a ``Dispatcher``, or what stands for one. ``name``: of the pool, or ""."""

    name = ""

    def begin(self, request: Request) -> RequestContext:
        """The context of a request that has come."""
        raise NotImplementedError

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        """See ``NowaitDispatcher.try_send_nowait``."""
        raise NotImplementedError

    def on_response_progress(self, context: RequestContext, sink: DirectSink) -> None:
        """See ``NowaitDispatcher.on_response_progress``."""
        raise NotImplementedError

    def run(self, context: RequestContext, sink: Sink) -> Coroutine[Any, Any, None]:
        """See ``Dispatcher.run``."""
        raise NotImplementedError
