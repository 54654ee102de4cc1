"""The seams around a dispatcher: sinks of responses, spans of traces, and handlers of requests.

Base classes, because every request crosses them: a call through a Protocol cannot be compiled. This module has no
coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Final

from mypy_extensions import mypyc_attr

from balancer.dispatch.context import RequestContext, RequestRecord, Span
from balancer.errors import ClientGone, Refusal
from balancer.http.headers import AS_THEY_ARE, NO_FIELDS, Headers, Spelling
from balancer.http.request import Request
from balancer.upstream.base import PendingResponse, UpstreamResponse

# After these bytes a stream of server-sent events may end (HTML, section 9.2.5).
END_OF_EVENT = (b"\n\n", b"\r\n\r\n", b"\r\r")

Trace = Callable[[RequestRecord], Span | None]


class ResponseState(Enum):
    """The part of a response that has been sent."""

    PENDING = "pending"  # nothing, but for interim responses
    STARTED = "started"
    COMPLETE = "complete"


PENDING: Final = ResponseState.PENDING
STARTED: Final = ResponseState.STARTED
COMPLETE: Final = ResponseState.COMPLETE


@mypyc_attr(allow_interpreted_subclasses=True)
class Sink:
    """The receiver of a response. ``start`` and ``write`` wait while the client takes no more, and raise ClientGone.

    ``state``: of the response. ``spelling``: of the names of its headers, where the member gives one.
    """

    state: ResponseState = PENDING
    spelling: Spelling = AS_THEY_ARE

    def send_interim(self, status: int, headers: Headers) -> None:
        """Pass an interim response on (RFC 9110 section 15.2), or drop it where the sink cannot."""
        raise NotImplementedError

    def on_queue(self, is_queued: bool) -> None:
        """Note that the request begins to wait for a member, or has got one after that."""

    def on_connect(self, is_connecting: bool) -> None:
        """Note that a connection to the member is begun, or is there. Called for a program's own calls alone."""

    def start(self, status: int, headers: Headers, reason: bytes = b"") -> Coroutine[Any, Any, None]:
        """Send the response head, before any body. ``reason``: the reason phrase, or b"" for the usual one.

        Raises ClientGone where a head was sent already, so that the client notices.
        """
        raise NotImplementedError

    def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> Coroutine[Any, Any, None]:
        """Send a piece of the body; ``more`` is false for the last, after which ``trailers`` follow."""
        raise NotImplementedError

    def switch(
        self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]
    ) -> Coroutine[Any, Any, None]:
        """Pass bytes on both ways to the end: the member has switched protocols, as requested.

        ``count`` is called with the number of bytes that went to the client.
        """
        raise NotImplementedError


def is_event_stream(headers: Headers) -> bool:
    """Whether a response with these headers is server-sent events that may end after any event."""
    fields = dict(headers)
    plain = not fields.keys() & {b"content-length", b"content-encoding"}
    return plain and fields.get(b"content-type", b"").startswith(b"text/event-stream")


@mypyc_attr(allow_interpreted_subclasses=True)
class ActiveRequest(Sink):
    """A client request of any front end: the sink of its response.

    ``context``: the dispatcher's, while the request is in progress. ``task`` serves it, and is None once nothing is
    left to cancel. ``close_reason``: why it was ended early, or None: ClientGone, or a Refusal, which the client
    receives if its response has not begun. ``ends_after_event``: its response, server-sent events, ends with the next
    event.
    """

    # What ``del`` may take away, for mypyc.
    __deletable__ = ("context",)

    context: RequestContext
    task: asyncio.Task[Any] | None = None
    close_reason: Exception | None = None
    ends_after_event = False
    # Of the response: its headers, and the last piece of its body that has been sent whole.
    _headers: Headers = NO_FIELDS
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
        """Return a coroutine that ends an endless response before the balancer exits; None for other responses."""
        return None

    @property
    def is_event_stream(self) -> bool:
        """Whether the response is server-sent events that may end after any event."""
        return is_event_stream(self._headers)

    @property
    def is_between_events(self) -> bool:
        """Whether the last bytes sent end an event."""
        return self._sent.endswith(END_OF_EVENT)

    def finish(self) -> Coroutine[Any, Any, None]:
        """Send the end of the response."""
        raise NotImplementedError

    def watch(self, began_before: float) -> None:
        """Watch for the client to leave, if the request has lasted since ``began_before``, a clock reading."""

    def unwatch(self) -> None:
        """Stop watching for the client to leave."""


@mypyc_attr(allow_interpreted_subclasses=True)
class DirectSink(ActiveRequest):
    """A sink that takes a response without waiting."""

    @property
    def is_writable(self) -> bool:
        """Whether the client is there and takes what it is sent."""
        raise NotImplementedError

    def answer(self, response: PendingResponse, body: bytes) -> None:
        """Send a whole response. A client that has left is no error here."""
        raise NotImplementedError

    def begin_response(self, response: PendingResponse) -> None:
        """Begin a response that comes in pieces; a piece follows in the same step."""
        raise NotImplementedError

    def pass_on(self, data: bytes, more: bool, trailers: Headers) -> None:
        """Send a piece of the body, as ``write`` does."""
        raise NotImplementedError

    def on_response_progress(self) -> None:
        """Call ``Dispatcher.on_response_progress`` with the context of this request."""
        raise NotImplementedError

    def continue_in_task(self) -> None:
        """Await ``Dispatcher.run`` in a task: the rest takes waiting."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class RequestHandler:
    """A handler of requests for front ends, such as a ``Dispatcher``. ``name``: of the pool, or ""."""

    name = ""

    def begin(self, request: Request) -> RequestContext:
        """Return the context of a new request."""
        raise NotImplementedError

    def may_repeat(self, request: Request) -> bool:
        """Whether a request may be sent again after a member had it."""
        return True

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        """See ``FastPathDispatcher.try_send_nowait``."""
        raise NotImplementedError

    def on_response_progress(self, context: RequestContext, sink: DirectSink) -> None:
        """See ``FastPathDispatcher.on_response_progress``."""
        raise NotImplementedError

    def run(self, context: RequestContext, sink: Sink) -> Coroutine[Any, Any, None]:
        """See ``Dispatcher.run``."""
        raise NotImplementedError
