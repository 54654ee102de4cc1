"""A request over HTTP/2: one stream of a connection, as an ASGI application reads and answers it.

Rules:
* Each stream has the rates and limits of silence that a connection of HTTP/1.1 has (``balancer.frontend.progress``).
* Bytes wait for the client while a window stays shut, the stream's or the connection's: the client grants both. While
  the connection itself is not read, its own check has that, and streams rest.
* No upload is to blame while the balancer does not read from the connection, for the sake of another stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import zttp
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle

from balancer.errors import Refusal
from balancer.frontend.client_connection import LINGERING, timeout
from balancer.frontend.progress import Progress, Slowness, body_refusal, unread_words
from balancer.http.headers import Headers
from balancer.http.http2 import CANCEL, NO_ERROR, STATUS_MAX, with_status
from balancer.http.request import TARGET_EXTENSION
from balancer.loop_time import loop_time
from balancer.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from balancer.frontend.http2_connection import Http2Connection


class Http2Stream:
    """A request. ``gone``: its client has left."""

    def __init__(self, connection: Http2Connection, event: zttp.Request, fields: Headers) -> None:
        self._connection = connection
        self._limits = connection.limits
        self._handle = connection.conn.stream(event.stream_id)
        self._fields = fields
        self._expects = not event.end_stream and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in fields
        )
        self._task: asyncio.Task[Any] | None = None
        self._receive: Receive
        self._send: Send
        # Bytes of the body that the application has read, and of the response that zttp has.
        self._read = 0
        self._answered = 0
        # Progress of both, once they last for more than a moment.
        self._upload: Progress | None = None
        self._download: Progress | None = None
        # Why no more of the body is read.
        self._refusal: Refusal | None = None
        self.cycle: RequestResponseCycle
        self.event = event
        self.gone = False

    def client_left(self) -> None:
        """Cancel the request: its client has left."""
        self.gone = True
        self.cycle.disconnected = True  # uvicorn would answer for an application that says nothing.
        if self._task:
            self._task.cancel("client_gone")

    # The check.

    def check_progress(self, now: float) -> None:
        """End the request if its client sends or takes too little. ``now``: a reading of ``LoopTime``."""
        if self.gone:
            return
        if slowness := self._check_upload(now):
            self._refusal = body_refusal(slowness, self._limits)
            self.cycle.message_event.set()
        if slowness := self._check_download(now):
            self._connection.limit_reached("unread", unread_words(slowness, self._limits))
            self._break_off()
            self.client_left()

    def _check_upload(self, now: float) -> Slowness | None:
        cycle = self.cycle
        if not cycle.more_body or cycle.response_complete or self._refusal:
            return None
        received = self._read + len(cycle.body)
        upload = self._upload = self._upload or Progress()
        upload.received = received
        if self._connection.flow.read_paused or (self._expects and not received):
            upload.rest()
            return None
        return upload.check(now, self._limits, self._answered if cycle.response_started else None)

    def _check_download(self, now: float) -> Slowness | None:
        pending = self._handle.pending_bytes
        if pending and not self._connection.flow.write_paused:
            download = self._download = self._download or Progress()
            download.received = self._answered - pending
            return download.check(now, self._limits)
        if self._download:
            self._download.rest()
        return None

    # The course of a request.

    async def serve(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve the request by an ASGI application."""
        self._task = asyncio.current_task()
        self._receive, self._send = receive, send
        scope["headers"] = self._fields
        scope["extensions"][TARGET_EXTENSION] = self.event.target
        if self.event.end_stream:
            # The scope of HTTP/2 cannot say that no body follows; that of HTTP/1.1 does.
            scope["http_version"] = "1.1"
        try:
            await app(scope, self.receive, self.send)
            if not self.cycle.response_started:
                self._break_off()  # It was cut while the head waited for the client: uvicorn would answer 500.
        except asyncio.CancelledError:
            # The client has left, or the server's time is up: no answer is due.
            self._break_off()
        finally:
            self._task = None
        if self.cycle.response_complete and self.cycle.more_body:
            # The client sends a body that is not read. It gets a moment to read the answer first (section 8.1).
            limit = timeout(LINGERING, self._limits)
            loop_time().call_later(limit, self._connection.reset, self.event.stream_id, NO_ERROR)

    def _break_off(self) -> None:
        if not self.gone:
            self.gone = True
            self._connection.reset(self.event.stream_id, CANCEL)
        self.cycle.disconnected = True

    async def receive(self) -> Message:
        cycle = self.cycle
        if self._expects and cycle.more_body and not cycle.message_event.is_set():
            self._expects = False
            self._handle.send_informational(100)
            self._connection.flush()
        message = await self._receive()
        if self._refusal:
            raise self._refusal
        self._read += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        try:
            if message.get("status", 0) > STATUS_MAX:
                await self._send_status(message)
            else:
                await self._send(message)
            if body := message.get("body"):
                self._connection.overhead.carry(len(body))
                self._answered += len(body)
        except zttp.LocalProtocolError as error:
            await self._send_without_tabs(message, error)
        while self._handle.pending_bytes:
            await self._connection.credit.wait()

    async def _send_status(self, message: Message) -> None:
        """Send a head with a status that zttp refuses: any three digits are one (RFC 9110 section 15)."""
        self.cycle.conn = cast(Any, _Rewriter(self._connection.conn, self.event.stream_id, message["status"]))
        try:
            await self._send({**message, "status": STATUS_MAX})
        finally:
            self.cycle.conn = self._connection.conn

    async def _send_without_tabs(self, message: Message, error: zttp.LocalProtocolError) -> None:
        """Send again with a space for each tab, which zttp refuses and RFC 9110 section 5.5 allows in a value."""
        fields = [(name, value.replace(b"\t", b" ")) for name, value in message.get("headers", ())]
        self.cycle.response_started = False
        if fields == list(message.get("headers", ())):
            raise Refusal(502, "bad_response", f"the response cannot be said in HTTP/2: {error}") from error
        await self.send({**message, "headers": fields})


class _Rewriter:
    """Stands before zttp while uvicorn writes the head of one response, and gives it its status."""

    def __init__(self, connection: zttp.H2Connection, stream_id: int, status: int) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._status = status

    def data_to_send(self) -> bytes:
        return with_status(self._connection.data_to_send(), self._stream_id, self._status)
