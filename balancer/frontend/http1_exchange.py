"""One request of an HTTP/1.1 client: the source of its body and the sink of its response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from balancer.dispatch.replay import REPLAY_BYTES
from balancer.errors import SHUTTING_DOWN, ClientGone, Refusal
from balancer.frontend.active_requests import END_OF_EVENT, ActiveRequest
from balancer.frontend.tunnel import CLOSE_SECONDS, HIGH_WATER, Tunnel
from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import Request
from balancer.http.serialize import NO_BODY, chunk, last_chunk, response_head, response_lines
from balancer.upstream.base import PendingResponse, UpstreamResponse

if TYPE_CHECKING:
    from balancer.frontend.http1_connection import Http1Connection

# Pieces from here on are handed to the kernel beside the head rather than copied behind it.
LARGE = 8 * 1024


class ClientExchange(ActiveRequest):
    """``closes``: the connection has to end with this response. ``finished``: all of it has been sent.

    ``version``: what HTTP the client speaks. ``complete``: all of the request has come. ``trailers``: the fields that
    came after its body. ``awaits_continue``: the client waits to be told to send the body. ``ends_by_closing``:
    only that the connection ends tells the client that the response is complete.
    """

    # Most requests leave these alone. Of the body: what has not been taken yet, and the future of a reader that waits.
    complete = False
    finished = False
    ends_by_closing = False
    trailers = NO_FIELDS
    _size = 0
    _waiter: asyncio.Future[None] | None = None
    _error: Exception | None = None
    # Of the response: its head, until it is sent, and whether it goes on in chunks.
    _head = b""
    _chunked = False
    _tunnel: Tunnel | None = None

    def __init__(self, connection: Http1Connection, request: Request, version: str, closes: bool) -> None:
        self._connection = connection
        self.request = request
        self.version = version
        self._is_head = request.method == "HEAD"
        self.closes = closes
        self.awaits_continue = request.expects
        if request.body is not None:
            self._pieces: list[bytes] = []
            request.body = self

    # The body.

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        self.awaits_continue = False
        if self._size > HIGH_WATER:
            self._connection.pause()
        self._wake()

    def fed(self) -> None:
        """The request is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The body will not be complete."""
        self._error = error
        self.closes = True
        self._wake()

    def client_left(self) -> None:
        self.fail(ClientGone())
        self.end()

    @property
    def ended(self) -> bool:
        return self.complete and not self._pieces

    def _at_hand(self) -> bytes | None:
        """The whole body, if it has come and is small enough to be sent again; else None."""
        if not self.complete or self._size > REPLAY_BYTES:
            return None
        return self._take()

    def _take(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        while not self._pieces and not self.complete:
            if self._error:
                raise self._error
            self._connection.resume()  # It may have been paused for the sake of a request before.
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        piece = self._take()
        if not self.complete:
            self._connection.resume()
        return piece

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # The course of the exchange.

    def begin(self) -> None:
        """It is this request's turn."""
        connection = self._connection
        connection.in_flight.add(self)
        request = self.request
        dispatcher = connection.dispatcher or request.pool or connection.clients.proxy.choose(request)
        context = self.context = dispatcher.begin(request)
        body = b"" if request.body is None else self._at_hand()
        if body is None or not dispatcher.try_send_nowait(context, self, body):
            self.continue_in_task()

    def continue_in_task(self) -> None:
        self.task = self._connection.loop.create_task(self._serve())

    async def _serve(self) -> None:
        assert self.task
        try:
            await self._connection.clients.proxy.serve(self, self.context, self, self.task)
        finally:
            self._over()

    def on_response_progress(self) -> None:
        context = self.context
        context.dispatcher.on_response_progress(context, self)
        if self.finished:
            self._connection.in_flight.discard(self)
            self._over()

    def _over(self) -> None:
        # Without these, reference counts alone free all that a request was made of.
        del self.context
        self.request.body = None
        if self._error:
            self._error.__traceback__ = None
        self._connection.answered(self)

    def end(self, refusal: Refusal | None = None) -> None:
        if self.cancelled or (self.finished and self.task is None):
            return
        if self.task is None:
            # What waits for its response without a task gets one, so that it ends like any other.
            self.context.stop_listening()
            self.continue_in_task()
        self.cancelled, self.refusal = True, refusal
        # A task that is cancelled before it has begun never begins, and cleans up nothing.
        self._connection.loop.call_soon(self.cancel)

    # The response.

    def send_interim(self, status: int, headers: Headers) -> None:
        if self.started or self.version != "1.1":
            return
        if status == 100:
            if not self.awaits_continue or self.complete:
                return  # It is there already, or on its way.
            self.awaits_continue = False
        self._connection.transport.write(response_head(status, headers))

    def answer(self, response: PendingResponse, headers: Headers, body: bytes) -> None:
        self.started = self.finished = True
        transport = self._connection.transport
        if transport.is_closing():
            return
        head = self._render(response.status, headers, response.lines if headers is response.headers else b"")
        if self._is_head:
            body = b""
        elif self._chunked:
            body = chunk(body) + last_chunk(response.trailers)
        if len(body) < LARGE:
            transport.write(head + body)
        else:
            transport.writelines([head, body])

    def _render(self, status: int, headers: Headers, lines: bytes = b"") -> bytes:
        if status in NO_BODY:
            self._is_head = True
            if status == 204:  # RFC 9110 section 8.6
                headers = [it for it in headers if it[0] != b"content-length"]
        head = lines or response_lines(status, headers)
        # No value has a line break in it.
        if not self._is_head and b"\r\ncontent-length: " not in head:
            if self.version == "1.1":
                self._chunked = True
                head += b"\r\ntransfer-encoding: chunked"
            else:
                self.closes = self.ends_by_closing = True
        if self.closes:
            head += b"\r\nconnection: close"
        elif self.version != "1.1":
            head += b"\r\nconnection: keep-alive"
        return head + b"\r\n\r\n"

    async def start(self, status: int, headers: Headers) -> None:
        if self.started:
            raise ClientGone("refused in mid-response")
        self.started = True
        self._headers = headers
        self._sent = END_OF_EVENT[0]
        self._head = self._render(status, headers)
        # Head and body leave together where the body is at hand, and the head alone where it is not.
        self._connection.loop.call_soon(self.flush)

    def flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._connection.transport.write(head)

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        connection = self._connection
        if connection.transport.is_closing():
            raise ClientGone
        if self.finished:
            # It was ended between two events, and the task has not come to the point where it learns that.
            raise ClientGone(SHUTTING_DOWN.token)
        head, self._head = self._head, b""
        if self._is_head:
            data = b""
        tail = b""
        if self._chunked:
            if data:
                head += b"%x\r\n" % len(data)
                tail = b"\r\n"
            if not more:
                tail += last_chunk(trailers)
        if len(data) < LARGE:
            connection.transport.write(head + data + tail)
        else:
            connection.transport.writelines([head, data, tail])
        if not more:
            self.finished = True
            self.task = None
            return
        self._sent = b""
        if not connection.writable.is_set():
            await connection.writable.wait()
        self._sent = data
        if self._leaving:
            await self._end_between_events()

    async def _complete(self) -> None:
        self.flush()
        self._connection.transport.write(b"0\r\n\r\n" if self._chunked else b"")
        self.finished = True

    # Another protocol.

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        self.started = True
        upgrade = response.upgrade or self.request.upgrade
        head = response_head(101, headers, b"connection: upgrade", b"upgrade: " + upgrade)
        self._connection.transport.write(head)
        # A member that names a protocol that was not asked for does not make the client speak it.
        asked = [it.strip() for it in self.request.upgrade.lower().split(b",")]
        websocket = upgrade.lower() == b"websocket" and b"websocket" in asked
        self._tunnel = self._connection.become_tunnel(response, websocket)
        await self._tunnel.run(count)

    async def begin_shutdown(self) -> None:
        if self._tunnel and self.task:
            if self._tunnel.leave():
                await asyncio.wait([self.task], timeout=CLOSE_SECONDS)
        else:
            await super().begin_shutdown()
