"""HTTP/2 with clients, on uvicorn's protocol for zttp, and the bounds that the two leave open.

Requests go to the ASGI application as they do from any server. This module needs the extra ``http2`` and is imported
only where HTTP/2 is on. zttp parses, and bounds what one connection may do (streams, resets, field blocks). uvicorn
makes requests of it. Neither has a clock, and neither waits for a client that does not read.

Rules (RFC 9113 unless noted):
* A request has the limits of one of HTTP/1.1, and is refused with the same tokens.
* A piece of a response is taken from the member once the last has left for the client. So a client that does not read
  holds up the member, and takes no memory.
* The reset of a stream means that its client has left: its request is cancelled immediately.
* Before zttp would break a connection off because of its age, it is closed in a moment without requests. Without such
  a moment, or for requests while the server stops, GOAWAY has the client open another (section 6.8). The h2
  package, and so httpx, takes GOAWAY for the end of the requests under way: it is sent only when needed.
* WebSocket (RFC 8441) is not on offer, so that browsers open a connection of HTTP/1.1 for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any, cast

import uvicorn
import zttp
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol
from uvicorn.server import ServerState

from balancer.dispatch.refusals import refusal_response
from balancer.errors import SHUTTING_DOWN, ClientGone, Refusal
from balancer.frontend.client_connection import (
    ACTIVE,
    BODY,
    CLOSED,
    IDLE,
    LINGERING,
    ClientConnection,
    timeout,
    unread_timeout,
)
from balancer.frontend.client_registry import ClientRegistry
from balancer.http.headers import Headers, sound_request_id
from balancer.http.http2 import STATUS_MAX, check_http2, join_cookies, server_settings, with_status
from balancer.http.request import TARGET_EXTENSION, Request
from balancer.loop_time import Limit, loop_time
from balancer.types import Message, Receive, Scope, Send

# zttp breaks a connection off after 4096 streams, and after 256 resets by the client. A connection is closed when
# idle after the first of these numbers, and retired at the last, with 128 streams under way in mind.
STREAMS_MAX, STREAMS_LAST = 3072, 3840
RESETS_MAX, RESETS_LAST = 128, 192

_MAX_STREAM_ID = 2**31 - 1
_NO_ERROR, _CANCEL = 0x0, 0x8


class Http2Connection(ClientConnection, ZttpH2Protocol):
    """A client connection that speaks HTTP/2."""

    def __init__(self, registry: ClientRegistry, config: uvicorn.Config) -> None:
        ClientConnection.__init__(self, registry.settings)
        ZttpH2Protocol.__init__(self, config, ServerState(), {})
        self._registry = registry
        self._application = self.app
        self._streams: dict[int, _Stream] = {}
        self._opened = 0
        self._resets = 0
        self._settings_sent = False
        self._retiring = False
        self._stopping = False
        # Set for a moment when the client may have granted credit for more bytes.
        self.credit = asyncio.Event()

    # asyncio's side.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self.begin_checks(loop_time().time())
        try:
            self._registry.admit(self)
        except Refusal:
            self._close_connection()  # There is no request yet that could be answered.

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.phase = CLOSED
        self._registry.remove(self)
        for stream in self._streams.values():
            stream.client_left()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.credit.set()
        self.credit.clear()

    def pause_writing(self) -> None:
        super().pause_writing()
        # Every frame may need an answer, and a client that reads none must not send more.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.resume_reading_if_idle()

    def resume_reading_if_idle(self) -> None:
        """Read again, unless the client reads nothing."""
        if not self.flow.write_paused:
            super().resume_reading_if_idle()

    def shutdown(self) -> None:
        """Finish the requests that have come, then close: the server stops."""
        self._stopping = True
        self._close_connection()

    def flush(self) -> None:
        """Write what zttp has to send, after the settings of this server."""
        data = self.conn.data_to_send()
        if data and not self._settings_sent:
            self._settings_sent = True
            data = server_settings(data, self.limits.max_header_bytes)
        if data:
            self.transport.write(data)

    # uvicorn's side.

    def handle_request(self, event: zttp.Request) -> None:
        """Serve a request on a new stream, or refuse it."""
        self._opened += 1
        if self._stopping or self._opened >= STREAMS_LAST or self._resets >= RESETS_LAST:
            self._retire()
        fields = [(name.lower(), value) for name, value in event.headers]
        if self.shutdown_requested:
            return self._reject(event, fields, SHUTTING_DOWN)  # The client itself ends this connection.
        try:
            check_http2(event.method, event.target, fields, self.limits)
        except Refusal as refusal:
            return self._reject(event, fields, refusal)
        self.phase = ACTIVE
        self.messages += 1
        stream = _Stream(self, event, join_cookies(fields))
        self._streams[event.stream_id] = stream
        # uvicorn hands ``app`` to the task that it makes for this request.
        self.app = cast(Any, partial(self._serve, stream))
        super().handle_request(event)
        stream.cycle = cycle = self.cycles[event.stream_id]
        if event.end_stream:
            # zttp reports it with the head, and uvicorn 0.54 waits for a separate event.
            cycle.more_body = False
            cycle.message_event.set()

    def handle_rst_stream(self, event: zttp.RstStream) -> None:
        """Cancel a request whose stream the client has reset."""
        self._resets += 1
        super().handle_rst_stream(event)
        if stream := self._streams.get(event.stream_id):
            stream.client_left()

    def _close_connection(self) -> None:
        # uvicorn counts a stream as closed although bytes of it are still waiting for the client.
        if not self._streams:
            super()._close_connection()

    # The course of a connection.

    async def _serve(self, stream: _Stream, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not stream.gone:
                await stream.serve(self._application, scope, receive, send)
        finally:
            del self._streams[stream.event.stream_id]
            if not self._streams:
                self._idle()

    def _idle(self) -> None:
        if self.phase is CLOSED:
            return
        if self._retiring:
            # Requests that were on their way before GOAWAY are still served.
            self.phase = LINGERING
        elif self._stopping or self.shutdown_requested or self._opened >= STREAMS_MAX or self._resets >= RESETS_MAX:
            self._close_connection()
        else:
            self.phase = IDLE

    def _reject(self, event: zttp.Request, fields: Headers, refusal: Refusal) -> None:
        method, id = event.method.decode("latin-1"), sound_request_id(fields)
        request = Request(method, event.target, fields, self.peer, "https", id=id)
        status, headers, text = refusal_response(refusal, self._registry.proxy.refused(request, refusal))
        stream = self.conn.stream(event.stream_id)
        stream.send_response(status, headers)
        if event.method != b"HEAD":
            stream.send_data(text)
        stream.end_message()
        if not event.end_stream:
            loop_time().call_later(timeout(LINGERING, self.limits), self.reset, event.stream_id, _NO_ERROR)

    def _retire(self) -> None:
        """Have the client open another connection for further requests (RFC 9113 section 6.8)."""
        if not self._retiring:
            self._retiring = True
            self.conn.close(_NO_ERROR, _MAX_STREAM_ID)
            self.flush()

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream, if it has not ended."""
        stream = self.conn.stream(stream_id)
        if stream.pending_bytes is not None and not self.transport.is_closing():
            stream.reset(code)
            self.flush()

    @property
    def unread(self) -> int:
        return self.transport.get_write_buffer_size() if self.flow.write_paused else 0

    def timeout_keep_alive_handler(self) -> None:
        """Do nothing: the registry closes idle connections, after KEEPALIVE_TIMEOUT. uvicorn would after 5 s."""

    def abort(self) -> None:
        self.transport.abort()

    def time_out(self, limit: float) -> None:
        self._close_connection()


class _Stream:
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
        # When the last piece of the response was sent, as a reading of ``LoopTime``.
        self._answered_at = -inf
        self.cycle: RequestResponseCycle
        self.event = event
        self.gone = False

    def client_left(self) -> None:
        """Cancel the request: its client has left."""
        self.gone = True
        if self._task:
            self._task.cancel("client_gone")

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
        except asyncio.CancelledError:
            # The client has left, or the server's time is up: no answer is due.
            self._break_off()
        finally:
            self._task = None
        if self.cycle.response_complete and self.cycle.more_body:
            # The client sends a body that is not read. It gets a moment to read the answer first (section 8.1).
            limit = timeout(LINGERING, self._limits)
            loop_time().call_later(limit, self._connection.reset, self.event.stream_id, _NO_ERROR)

    def _break_off(self) -> None:
        if not self.gone:
            self.gone = True
            self._connection.reset(self.event.stream_id, _CANCEL)
        self.cycle.disconnected = True

    async def receive(self) -> Message:
        cycle = self.cycle
        if not cycle.more_body or cycle.message_event.is_set():
            return await self._receive()
        if self._expects:
            self._expects = False
            self._handle.send_informational(100)
            self._connection.flush()
        clock = loop_time()
        since = clock.time()
        while True:
            limit = timeout(BODY, self._limits)
            try:
                async with Limit(since + limit - clock.time()):
                    return await self._receive()
            except TimeoutError:
                if self._connection.flow.read_paused:
                    since = clock.time()  # Reading from the client is paused, for the sake of another stream.
                elif self._answered_at > since:
                    since = self._answered_at  # A byte of the response ends the silence as well.
                else:
                    raise Refusal(408, "request_timeout", f"no byte of the body for {limit:g} s") from None

    async def send(self, message: Message) -> None:
        try:
            if message.get("status", 0) > STATUS_MAX:
                await self._send_status(message)
            else:
                await self._send(message)
            self._answered_at = loop_time().time()
        except zttp.LocalProtocolError as error:
            await self._send_without_tabs(message, error)
        while pending := self._handle.pending_bytes:
            try:
                async with Limit(unread_timeout(self._limits)):
                    while self._handle.pending_bytes == pending:
                        await self._connection.credit.wait()
            except TimeoutError:
                self._break_off()
                raise ClientGone from None

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
