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
from collections.abc import Generator
from functools import partial
from typing import Any, cast

import uvicorn
import zttp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol
from uvicorn.server import ServerState

from balancer.dispatch.refusals import refusal_response
from balancer.errors import SHUTTING_DOWN, Refusal
from balancer.frontend.client_connection import (
    ACTIVE,
    CLOSED,
    DRAINED,
    IDLE,
    LINGERING,
    timeout,
)
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.http2_stream import Http2Stream
from balancer.frontend.kernel_figures import read_little
from balancer.frontend.places import Place
from balancer.frontend.turns import TURN_BYTES, FairConnection
from balancer.http.headers import Headers, plain_address, sound_request_id
from balancer.http.http2 import (
    ENHANCE_YOUR_CALM,
    FAULTS,
    NO_ERROR,
    Overhead,
    check_http2,
    join_cookies,
    server_settings,
)
from balancer.http.request import Request
from balancer.loop_time import loop_time
from balancer.types import Receive, Scope, Send

# zttp breaks a connection off after 4096 streams, and after 256 resets by the client. A connection is closed when
# idle after the first of these numbers, and retired at the last, with 128 streams under way in mind.
STREAMS_MAX, STREAMS_LAST = 3072, 3840
RESETS_MAX, RESETS_LAST = 128, 192

# Bytes of bodies that zttp lets a client send ahead. So much of a client whose frames carry something is parsed in one
# turn: uploads take no longer, and frames of one byte cost 3 ms.
WINDOW = 64 * 1024

_MAX_STREAM_ID = 2**31 - 1


class Http2Connection(FairConnection, ZttpH2Protocol):
    """A client connection that speaks HTTP/2."""

    def __init__(self, registry: ClientRegistry, config: uvicorn.Config, place: Place) -> None:
        FairConnection.__init__(self, registry, place)
        ZttpH2Protocol.__init__(self, config, ServerState(), {})
        self._application = self.app
        self._streams: dict[int, Http2Stream] = {}
        self._opened = 0
        self._resets = 0
        self._settings_sent = False
        # When the client was sent GOAWAY, and not the end of the connection with it.
        self._retired_at: float | None = None
        self._stopping = False
        # The client has done what ends a connection: nothing more is read.
        self._is_cut_off = False
        self.overhead = Overhead()
        # Set for a moment when the client may have granted credit for more bytes.
        self.credit = asyncio.Event()

    # asyncio's side.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Its pauses are reasons for which this connection does not read, beside turns.
        self.flow = FlowControl(cast(asyncio.Transport, self))
        self.peer = plain_address(self.client[0]) if self.client else ""
        self.begin_checks(self.place.since)
        try:
            self.registry.admit(self)
        except Refusal:
            self._close_connection()  # There is no request yet that could be answered.

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.phase = CLOSED
        self.drop_waiting()
        self.registry.remove(self)
        for stream in self._streams.values():
            stream.client_left()
        # Both know this object: without them, reference counts free it.
        self.app = self._application
        self.flow = FlowControl(self.transport)

    def data_received(self, data: bytes) -> None:
        if len(data) > TURN_BYTES and len(data) > self.free_bytes:
            data = self.end_turn(data)
        self.overhead.receive(len(data))
        try:
            self.conn.receive_data(data)
            self.handle_events()
        except zttp.RemoteProtocolError as error:
            self._cut_off("http2_error", f"breaks the rules of HTTP/2, and its connection is ended: {error}")
            return
        self.flush()
        if self.transport.is_closing():
            read_little(self.transport)  # TLS reads on until the client ends it, too.
        self.credit.set()
        self.credit.clear()
        if self.overhead.is_too_much and not self.transport.is_closing():
            self.conn.close(ENHANCE_YOUR_CALM)
            self._cut_off("http2_control", "sends frames of HTTP/2 that carry nothing, and its connection is ended")

    @property
    def free_bytes(self) -> int:
        return WINDOW if self.overhead.is_small else 0

    def pause_reading(self) -> None:
        """Stop reading, where uvicorn takes this connection for its transport."""
        self.pause()

    def resume_reading(self) -> None:
        """Read again, where uvicorn takes this connection for its transport."""
        self.resume()

    def pause_writing(self) -> None:
        super().pause_writing()
        # Every frame may need an answer, and a client that reads none must not send more.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        self.drained += DRAINED
        super().resume_writing()
        self.resume_reading_if_idle()

    def resume_reading_if_idle(self) -> None:
        """Read again, unless the client reads nothing."""
        if not (self.flow.write_paused or self._is_cut_off):
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

    def events(self) -> Generator[zttp.Event]:
        while (event := self.conn.next_event()) is not zttp.NEED_DATA:
            if isinstance(event, zttp.Data) and event.data:
                self.overhead.carry(len(event.data))
            yield event

    def handle_request(self, event: zttp.Request) -> None:
        """Serve a request on a new stream, or refuse it."""
        self._opened += 1
        if self._stopping or self._opened >= STREAMS_LAST or self._resets >= RESETS_LAST:
            self._retire()
        fields = [(name.lower(), value) for name, value in event.headers]
        self.overhead.carry_head(sum([len(name) + len(value) for name, value in fields]))
        if self.shutdown_requested:
            return self._reject(event, fields, SHUTTING_DOWN)  # The client itself ends this connection.
        try:
            check_http2(event.method, event.target, fields, self.limits)
        except Refusal as refusal:
            return self._reject(event, fields, refusal)
        self.phase = ACTIVE
        self.messages += 1
        stream = Http2Stream(self, event, join_cookies(fields))
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
        """Cancel a request whose stream the client has reset, or zttp because of what came on it."""
        self._resets += 1
        if fault := FAULTS.get(event.error_code):
            self.limit_reached("http2_stream", f"has a stream of HTTP/2 that ends with {fault}")
        super().handle_rst_stream(event)
        if stream := self._streams.get(event.stream_id):
            stream.client_left()

    def _close_connection(self) -> None:
        # uvicorn counts a stream as closed although bytes of it are still waiting for the client.
        if not self._streams:
            read_little(self.transport)
            super()._close_connection()

    # The course of a connection.

    def _cut_off(self, limit: str, words: str) -> None:
        """End the connection for what its client does. GOAWAY is queued, and has a moment to be read.

        Nothing more is read meanwhile: it would take turns from others, in vain.
        """
        self.limit_reached(limit, words)
        self._is_cut_off = True
        self._retired_at = loop_time().time()
        self.flush()
        self.drop_waiting()
        self.flow.pause_reading()
        for stream in self._streams.values():
            stream.client_left()
        self.phase = LINGERING
        loop_time().call_later(timeout(LINGERING, self.limits), self.transport.abort)

    async def _serve(self, stream: Http2Stream, scope: Scope, receive: Receive, send: Send) -> None:
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
        if self._retired_at is not None and loop_time().time() < self._retired_at + timeout(LINGERING, self.limits):
            # Requests that were on their way before GOAWAY are still served.
            self.phase = LINGERING
        elif self._is_ending or self._opened >= STREAMS_MAX or self._resets >= RESETS_MAX:
            self._close_connection()
        else:
            self.phase = IDLE

    @property
    def _is_ending(self) -> bool:
        return self._retired_at is not None or self._stopping or self.shutdown_requested

    def _reject(self, event: zttp.Request, fields: Headers, refusal: Refusal) -> None:
        method, id = event.method.decode("latin-1"), sound_request_id(fields)
        request = Request(method, event.target, fields, self.peer, "https", id=id)
        status, headers, text = refusal_response(refusal, self.registry.proxy.refused(request, refusal))
        stream = self.conn.stream(event.stream_id)
        stream.send_response(status, headers)
        if event.method != b"HEAD":
            stream.send_data(text)
        stream.end_message()
        if not event.end_stream or stream.pending_bytes:  # The client sends on, or has no room for the text.
            loop_time().call_later(timeout(LINGERING, self.limits), self.reset, event.stream_id, NO_ERROR)

    def _retire(self) -> None:
        """Have the client open another connection for further requests (RFC 9113 section 6.8)."""
        if self._retired_at is None:
            self._retired_at = loop_time().time()
            self.conn.close(NO_ERROR, _MAX_STREAM_ID)
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

    def check_timeouts(self, now: float) -> None:
        self.overhead.renew(now)
        super().check_timeouts(now)
        for stream in list(self._streams.values()):
            stream.check_progress(now)

    def timeout_keep_alive_handler(self) -> None:
        """Do nothing: the registry closes idle connections, after KEEPALIVE_TIMEOUT. uvicorn would after 5 s."""

    def time_out(self, limit: float) -> None:
        self._close_connection()
