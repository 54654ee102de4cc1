"""The front end of ``balancer serve``: HTTP/1.1 from the client's socket to ``dispatch``, without ASGI in between.

Rules (RFC 9110, RFC 9112):
* A request that is ambiguous or malformed is answered 4xx, its connection is closed, and nothing of it
  goes to a member.
* Responses leave in the order of their requests; the next request of a connection is not begun
  before the last is answered.
* Bytes of a client wait up to a high-water mark, and bytes for it up to the transport's: no request is begun beyond it.
* ``phase`` is what the client is expected to do. ``balancer.frontend.client_connection`` has the order of phases, and
  how long each may last. State of one request is on its exchange.

This module has no coroutine: those of an exchange are in ``balancer.frontend.http1_streaming``.
"""

from __future__ import annotations

import asyncio
from collections import deque

from balancer.dispatch.interfaces import ResponseState
from balancer.dispatch.refusals import refusal_response
from balancer.errors import Refusal
from balancer.frontend.client_connection import (
    BODY,
    CLOSED,
    DISCARDING,
    DONE,
    DRAINED,
    ENDED,
    ENDING,
    HEAD,
    IDLE,
    LINGERING,
    NEW,
    REJECTED,
    SWITCHING,
    TUNNEL,
    Phase,
)
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.http1_exchange import Framing, Http1Exchange
from balancer.frontend.http1_parser import RequestParser
from balancer.frontend.places import Place
from balancer.frontend.tunnel import HIGH_WATER, Tunnel
from balancer.frontend.turns import TURN_BYTES, FairConnection
from balancer.http.headers import as_lines, plain_address
from balancer.http.request import Request
from balancer.http.serialize import response_head
from balancer.loop_time import loop_time
from balancer.outbox import outbox

# Seconds in which a client that has closed its side may still get its answers.
HALF_CLOSED_SECONDS = 0.5
# Seconds for the first request of a client when the listener closes: it may be on its way.
NEW_SECONDS = 1.0
# Requests of a client ahead of the first answer, after which the connection ends (RFC 9112 section 9.3.2).
PIPELINE_MAX = 100


class Http1Connection(FairConnection, asyncio.Protocol):
    """A client connection that speaks HTTP/1.1. ``writable``: set while the client takes what it is sent."""

    __slots__ = (
        "_current", "_outbox", "_parser", "_queue", "_rest", "_unsent", "loop", "scheme", "transport", "writable",
    )  # fmt: skip

    def __init__(self, registry: ClientRegistry, place: Place) -> None:
        super().__init__(registry, place)
        # Global.
        self.loop = asyncio.get_running_loop()
        self._outbox = outbox()
        # Per connection.
        self.transport: asyncio.Transport
        self.scheme = "http"
        self._parser = RequestParser(self, registry.settings)
        self.writable = asyncio.Event()
        self.writable.set()
        # Per request: the exchange in progress, those behind it, and the bytes behind one for another protocol.
        self._current: Http1Exchange | None = None
        self._queue: deque[Http1Exchange] = deque()
        self._rest = b""
        # Answers that wait for the end of the turn.
        self._unsent = b""

    def __repr__(self) -> str:
        use = f"answers {self._current!r}" if self._current else "answers nothing"
        return f"<{type(self).__name__} {self.peer} {self.phase.value}, {use}, {len(self._queue)} behind it>"

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peer = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.begin_checks(self.place.since)
        if self.registry.stopping:
            self.shutdown()  # It was accepted when the listener closed.
        try:
            self.registry.admit(self)
        except Refusal as refusal:
            self.reject(refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self.registry.remove(self)
        self.writable.set()
        self.phase = CLOSED
        self.drop_waiting()
        self._parser.close()
        self._end_requests()

    def eof_received(self) -> bool:
        """Give a client that has closed its side HALF_CLOSED_SECONDS to get its answers, unless it owes a body.

        It has left, or it only sends no more (RFC 9112 section 9.6): nothing distinguishes the two.
        """
        self.send_unsent()
        receiving = self._parser.exchange
        if self.phase not in ENDING:
            self.phase = DONE
        if receiving:
            receiving.client_left()
            return False
        if self._current:
            loop_time().call_later(HALF_CLOSED_SECONDS, self._end_requests)
        return self._current is not None

    def _end_requests(self) -> None:
        self._queue.clear()
        if self._current:
            self._current.client_left()

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase in ENDING:
            self.drop(len(data))
            if len(data) > TURN_BYTES:
                self.end_turn(b"")
            return
        if len(data) > TURN_BYTES and len(data) > self._parser.left:
            data = self.end_turn(data)
        if phase is SWITCHING:
            self._rest += data
            if len(self._rest) > HIGH_WATER:
                self.pause()
        else:
            self._parse(data)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.drained += DRAINED
        self.writable.set()
        if self._current is None and self.phase not in ENDED:
            self._go_on()

    # What is sent.

    def send_soon(self, data: bytes) -> None:
        """Send an answer at the end of the turn (``balancer.outbox``), or before whatever else is sent or closes."""
        is_first = not self._unsent
        self._unsent += data
        if is_first:
            self._outbox.add(self.send_unsent)  # Perhaps it is sent at once.

    def send_unsent(self) -> None:
        """Send what waits for the end of the turn, unless the client has left: uvloop raises then."""
        if self._unsent:
            data, self._unsent = self._unsent, b""
            if not self.transport.is_closing():
                self.transport.write(data)

    def close(self) -> None:
        self.send_unsent()
        super().close()

    # Requests.

    def _parse(self, data: bytes) -> None:
        """Parse, and begin a request if none is in progress."""
        rest = self._parser.feed(data)
        if self._parser.refusal:
            self.reject(self._parser.refusal)
        elif rest is not None:
            self._rest = rest
        if self._queue:
            if self._current is None:
                self._begin()
            else:
                self.pause()

    def add_exchange(self, request: Request, version: str, closes: bool) -> Http1Exchange:
        """Queue an exchange for a head. ``closes``: the connection ends with its response, by the client's word.

        Raises Refusal where no request of this connection is served.
        """
        self.messages += 1
        closes = closes or len(self._queue) >= PIPELINE_MAX or self.registry.stopping
        exchange = Http1Exchange(self, request, version, closes)
        self._queue.append(exchange)
        return exchange

    def _begin(self) -> None:
        exchange = self._current = self._queue.popleft()
        if self._queue:
            self.pause()
        exchange.begin()

    def exchange_ended(self, exchange: Http1Exchange) -> None:
        """Begin the next exchange after one that has ended, or end the connection."""
        self._current = None
        if self.phase is CLOSED:
            return
        if exchange.state is not ResponseState.COMPLETE:
            exchange.break_off()
        elif self._parser.exchange is exchange or exchange.closes:
            # A client in mid-body reads the answer behind it, unless that ends with the connection.
            refusal, is_framed = self._parser.refusal, exchange.framing is not Framing.CLOSE
            is_uploading = self._parser.meets_upload(refusal.status, self.waiting) if refusal else self.phase is BODY
            self._linger(DISCARDING if is_uploading and is_framed else LINGERING)
        elif self.writable.is_set():
            self._go_on()
        else:
            self.pause()  # ``resume_writing`` goes on: answers that the client does not read must not pile up.

    def _go_on(self) -> None:
        """Begin the next exchange, if there is one, or end the connection if none may follow."""
        if self._queue:
            self._begin()
        elif self.phase is SWITCHING:
            self._decline_upgrade()
        elif self._parser.refusal:
            self._send_error(self._parser.refusal)
        elif self.phase is DONE:
            self.close()
        else:
            self.resume()
            if self.registry.stopping:
                self.shutdown()

    def on_tls_handshake(self) -> None:
        """Log a client that speaks TLS, which cannot read its answer."""
        self.limit_reached("wrong_protocol", "speaks TLS to a port without; BALANCER_TLS_CERT is not set")

    # The end of a connection.

    def shutdown(self) -> None:
        """Finish the requests that have come, then close: the server stops."""
        if self._current is not None:
            # The answer says so, unless its head has been sent: then the client may send one more request.
            self._current.closes = self._current.closes or self._current.state is ResponseState.PENDING
        elif self.phase is DISCARDING or self._queue:
            pass  # It ends by itself, and a reset would lose the answer.
        elif grace := max(NEW_SECONDS, self.registry.idle_grace) if self.phase is NEW else self.registry.idle_grace:
            loop_time().call_later(grace, self._close_if_idle)
        else:
            self.close()

    def _close_if_idle(self) -> None:
        if self._current is None and not self._queue and self.phase is not HEAD and self._parser.exchange is None:
            self.close()

    def reject(self, refusal: Refusal) -> None:
        """Send a refusal once everything before has been answered: the client's bytes cannot be served."""
        # Its traceback would keep this connection alive, and the head of the request.
        self._parser.refusal = refusal.with_traceback(None)
        self.phase = REJECTED
        receiving = self._parser.exchange
        self._parser.drop_body()
        if receiving:
            receiving.fail(refusal)
        elif self._current is None and not self._queue:
            self._send_error(refusal)

    def _send_error(self, refusal: Refusal) -> None:
        self.send_unsent()
        if self.transport.is_closing():
            return
        request = self._parser.refused_request()
        status, fields, text = refusal_response(refusal, self.registry.proxy.refused(request, refusal))
        is_head = "HEAD" in (self._parser.method, request.method)
        head = response_head(status, as_lines([*fields, (b"connection", b"close")]))
        self.transport.write(head + (b"" if is_head else text))
        self._linger(DISCARDING if self._parser.meets_upload(status, self.waiting) else LINGERING)

    def _linger(self, phase: Phase) -> None:
        """Close once the client has had time to read the answer: a close with bytes unread resets the connection."""
        self.phase = phase
        self._parser.drop_body()
        self._queue.clear()
        self.send_unsent()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        elif phase is LINGERING:
            self.close()  # TLS has no end of one side alone.
        self.resume()

    # Other protocols.

    def _decline_upgrade(self) -> None:
        """Go on with HTTP: the member has answered without switching protocols (RFC 9110 section 7.8)."""
        rest, self._rest = self._rest + self.take_waiting(), b""
        self.phase = IDLE
        self.resume()
        if rest:
            self.data_received(rest)

    def become_tunnel(self, tunnel: Tunnel) -> None:
        """Hand the connection over to a tunnel: the member has switched protocols."""
        self.phase = TUNNEL
        self.transport.set_protocol(tunnel)
        rest = self._rest + self.take_waiting()
        self.resume()
        if rest:
            tunnel.data_received(rest)  # It pauses, where that is too much.

    # Limits.

    def pause(self) -> None:
        if self._reading:
            super().pause()
            self.stop_waiting()

    @property
    def free_bytes(self) -> int:
        return self._parser.left

    @property
    def unread(self) -> int:
        return 0 if self.writable.is_set() else self.transport.get_write_buffer_size()

    @property
    def answered(self) -> int | None:
        exchange = self._current
        return exchange.answered if exchange and exchange is self._parser.exchange else None

    @property
    def is_waiting(self) -> bool:
        return self._reading and not self.has_waiting and not (self.phase is IDLE and self._current)

    def time_out(self, limit: float) -> None:
        if self.phase is HEAD:
            self.reject(Refusal(408, "request_timeout", f"a request head may take {limit:g} s"))
        else:
            self.close()
