"""A request of an HTTP/1.1 client, as far as it does not wait: the source of its body and the sink of its response.

An exchange is made for one request and never used again, so that nothing of it reaches the next one on its connection.
``balancer.frontend.http1_streaming`` has what waits; this module has no coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from balancer.dispatch.interfaces import COMPLETE, PENDING, STARTED, DirectSink
from balancer.dispatch.replay import REPLAY_BYTES
from balancer.dispatch.serving import end_event_stream
from balancer.errors import ClientGone, Refusal
from balancer.frontend import http1_streaming
from balancer.frontend.client_connection import AWAIT_CONTINUE, BODY
from balancer.frontend.tunnel import HIGH_WATER, Tunnel
from balancer.http.chunked import chunk, last_chunk
from balancer.http.headers import NO_FIELDS, Headers, as_lines
from balancer.http.request import Request
from balancer.http.serialize import NO_BODY, response_head, status_line
from balancer.upstream.base import PendingResponse, UpstreamResponse

if TYPE_CHECKING:
    from balancer.frontend.http1_connection import Http1Connection

_KEEP_ALIVE = b"\r\nconnection: keep-alive"

# Bytes from which a piece is handed to the kernel beside the head rather than copied behind it.
LARGE = 8 * 1024


class Framing(Enum):
    """The sign by which a client finds the end of the response (RFC 9112 section 6.3)."""

    NONE = "none"  # there is no body
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"  # only the end of the connection


NONE: Final = Framing.NONE
LENGTH: Final = Framing.LENGTH
CHUNKED: Final = Framing.CHUNKED
CLOSE: Final = Framing.CLOSE


class Http1Exchange(DirectSink):
    """A request and its response.

    ``version``: the HTTP that the client speaks. ``closes``: the connection has to end with this response.
    ``complete``: all of the request has come. ``trailers``: the headers behind its body. ``framing``: of the response,
    from its head on.
    """

    # Defaults, because most requests change few of them. Of the body: bytes that wait, the reader's future, its error.
    complete = False
    trailers = NO_FIELDS
    _size = 0
    _waiter: asyncio.Future[None] | None = None
    _error: Exception | None = None
    # Of the response: its head, until it is sent.
    framing = LENGTH
    _head = b""
    # Behind a switch of protocols.
    tunnel: Tunnel | None = None

    def __init__(self, connection: Http1Connection, request: Request, version: str, closes: bool) -> None:
        self._connection = connection
        self.request = request
        self.version = version
        self.closes = closes
        if request.body is not None:
            self._pieces: list[bytes] = []
            request.body = self

    def __repr__(self) -> str:
        body = "whole" if self.complete else "incomplete"
        return f"<{type(self).__name__} {self.request.method} {body}, response {self.state.value}>"

    # The request's body.

    def feed(self, piece: bytes) -> None:
        """Take a piece of the body from the connection."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > HIGH_WATER:
            self._connection.pause()
        self._wake()

    def complete_request(self) -> None:
        """Note that all of the request has come."""
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the body early; its reader receives ``error``."""
        self._error = error
        self.closes = True
        self._wake()

    def client_left(self) -> None:
        """End the exchange: its client has left."""
        self.fail(ClientGone())
        self.end()

    @property
    def ended(self) -> bool:
        """Whether all of the body has been read."""
        return self.complete and not self._pieces

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return the next piece of the body, or b"" at its end; see ``balancer.http.request.Body``."""
        return http1_streaming.read(self)

    def _take_whole(self) -> bytes | None:
        """Take the whole body, if it has come and is small enough to be sent again; else return None."""
        if not self.complete or self._size > REPLAY_BYTES:
            return None
        return self._take()

    def _take(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # The course of the exchange.

    def begin(self) -> None:
        """Pass the request to its handler: its turn has come."""
        request, proxy = self.request, self._connection.registry.proxy
        proxy.in_flight.add(self)
        handler = proxy.dispatcher or proxy.choose(request)
        self.context = handler.begin(request)
        body = b"" if request.body is None else self._take_whole()
        if body is None:
            self.continue_in_task()
        elif handler.may_repeat(request):
            self._send_nowait(body)
        else:
            self._connection.loop.call_soon(self._send_nowait, body)

    def _send_nowait(self, body: bytes) -> None:
        """Send the request, all of which is there, in this step if possible."""
        # Its end may have been asked for since its turn came: a task has it then.
        if self.task is None and not self.context.dispatcher.try_send_nowait(self.context, self, body):
            self.continue_in_task()

    def continue_in_task(self) -> None:
        self.task = self._connection.loop.create_task(http1_streaming.serve(self))

    def on_response_progress(self) -> None:
        context = self.context
        context.dispatcher.on_response_progress(context, self)
        if self.state is COMPLETE:
            self._connection.registry.proxy.in_flight.discard(self)
            self._clean_up()

    def _clean_up(self) -> None:
        # Without these, reference counts alone free all that a request was made of.
        del self.context
        self.request.body = None
        if self._error:
            self._error.__traceback__ = None
        self._connection.exchange_ended(self)

    def end(self, refusal: Refusal | None = None) -> None:
        if self.close_reason or (self.state is COMPLETE and self.task is None):
            return
        if self.task is None:
            # A request without a task gets one, so that it ends like any other.
            self.context.stop_listening()
            self.continue_in_task()
        self.close_reason = refusal or ClientGone()
        # A task that is cancelled before it has begun never begins, and cleans up nothing.
        self._connection.loop.call_soon(self.cancel)

    # The response.

    def send_interim(self, status: int, headers: Headers) -> None:
        if self.state is not PENDING or self.version != "1.1":
            return
        if status == 100:
            if self.complete or self._connection.phase is not AWAIT_CONTINUE:
                return  # The body is there already, or on its way.
            self._connection.phase = BODY
        self._send(response_head(status, as_lines(headers)))

    def answer(self, response: PendingResponse, body: bytes) -> None:
        self.state = COMPLETE
        transport = self._connection.transport
        if transport.is_closing():
            return
        head = self._render_response(response)
        if self.framing is NONE:
            body = b""
        elif self.framing is CHUNKED:
            body = chunk(body) + last_chunk(response.trailers)
        if len(body) < LARGE:
            self._connection.send_soon(head + body)
        else:
            self._connection.send_unsent()
            transport.writelines([head, body])

    @property
    def is_writable(self) -> bool:
        return self._connection.writable.is_set() and not self._connection.transport.is_closing()

    def begin_response(self, response: PendingResponse) -> None:
        self.state = STARTED
        self._head = self._render_response(response)

    def pass_on(self, data: bytes, more: bool, trailers: Headers) -> None:
        """Write a piece in the framing of the response, with the head if that still waits."""
        if not more:
            self.state = COMPLETE
        head = self._take_head(whole=not more)
        tail = b""
        if self.framing is NONE:
            data = b""
        elif self.framing is CHUNKED:
            if data:
                head += b"%x\r\n" % len(data)
                tail = b"\r\n"
            if not more:
                tail += last_chunk(trailers)
        transport = self._connection.transport
        self._connection.send_unsent()
        if len(data) < LARGE:
            transport.write(head + data + tail)
        else:
            transport.writelines([head, data, tail])

    def _render_response(self, response: PendingResponse) -> bytes:
        """Return the head of a response; set ``framing`` and ``closes`` as ``_render`` does."""
        if response.lines and self.request.method != "HEAD":
            return self._end_head(response.lines)  # Its length is known.
        self.spelling = response.spelling
        return self._render(response.status, response.headers, response.reason)

    def _render(self, status: int, headers: Headers, reason: bytes) -> bytes:
        """Return the head as bytes; set ``framing``, and ``closes`` where the framing needs it."""
        if status in NO_BODY or self.request.method == "HEAD":
            self.framing = NONE
        head = status_line(status, reason) + as_lines(headers, self.spelling)
        if self.framing is not NONE and not any(name == b"content-length" for name, _ in headers):
            if self.version == "1.1":
                self.framing = CHUNKED
                head += b"\r\ntransfer-encoding: chunked"
            else:
                self.framing = CLOSE
                self.closes = True
        return self._end_head(head)

    def _end_head(self, head: bytes) -> bytes:
        """Return a head with what it says of the connection, and its end."""
        if self.closes:
            head += b"\r\nconnection: close"
        elif self.version != "1.1":
            head += _KEEP_ALIVE
        return head + b"\r\n\r\n"

    @property
    def answered(self) -> int | None:
        """Bytes of the response's body so far; None before it has begun."""
        return None if self.state is PENDING else self.context.body_bytes

    def _take_head(self, whole: bool) -> bytes:
        """Return the head, if it still waits for the first piece of the body. ``whole``: that piece is the last."""
        head, self._head = self._head, b""
        if head and whole and not (self.complete or self.closes):
            self.closes = True  # The answer is there, and the rest of the request is not read.
            head = head[:-4].removesuffix(_KEEP_ALIVE) + b"\r\nconnection: close\r\n\r\n"
        return head

    def break_off(self) -> None:
        """End the connection, so that the client does not take the response for the whole."""
        if self.framing is CLOSE:
            self._connection.transport.abort()
        else:
            self.flush()
            self._connection.close()

    def flush(self) -> None:
        """Send the head, if it still waits for the first piece of the body."""
        if head := self._take_head(whole=False):
            self._send(head)

    def _send(self, data: bytes) -> None:
        """Write to the client, unless it has left in the same turn of the event loop: uvloop raises then."""
        transport = self._connection.transport
        self._connection.send_unsent()
        if not transport.is_closing():
            transport.write(data)

    # What waits.

    def start(self, status: int, headers: Headers, reason: bytes = b"") -> Coroutine[Any, Any, None]:
        return http1_streaming.start(self, status, headers, reason)

    def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> Coroutine[Any, Any, None]:
        return http1_streaming.write(self, data, more, trailers)

    def finish(self) -> Coroutine[Any, Any, None]:
        return http1_streaming.finish(self)

    def switch(
        self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]
    ) -> Coroutine[Any, Any, None]:
        return http1_streaming.switch(self, response, headers, count)

    def begin_shutdown(self) -> Coroutine[Any, Any, None] | None:
        return http1_streaming.end_tunnel(self, self.tunnel) if self.tunnel else end_event_stream(self)
