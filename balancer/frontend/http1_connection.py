"""The front end of ``balancer serve``: HTTP/1.1 from the client's socket to ``dispatch``, without ASGI in between.

Rules (RFC 9110, RFC 9112):
* A request that is ambiguous or malformed is answered 4xx, its connection is closed, and nothing of it
  goes to a member.
* Responses leave in the order of their requests; the next request of a connection is not begun
  before the last is answered.
* What a client sends is held only up to a high-water mark, and what it does not read up to the transport's.
* ``phase`` says what the client is expected to do, ``balancer.frontend.client_connection`` which may follow, and how
  long each may last. What belongs to one request lives on its exchange.

This module has no coroutine: those of an exchange are in ``balancer.frontend.http1_coroutines``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from balancer.dispatch.interfaces import ResponseState
from balancer.dispatch.refusals import refusal_response
from balancer.errors import Refusal
from balancer.frontend.client_connection import (
    CLOSED,
    DONE,
    ENDING,
    HEAD,
    IDLE,
    LINGERING,
    NEW,
    REJECTED,
    SWITCHING,
    TUNNEL,
    ClientConnection,
)
from balancer.frontend.http1_coroutines import Http1Exchange
from balancer.frontend.http1_exchange import ClientExchange, Framing
from balancer.frontend.http1_parser import RequestParser
from balancer.frontend.tunnel import HIGH_WATER, Tunnel
from balancer.http.headers import plain_address
from balancer.http.memo import HEAD_MAX
from balancer.http.request import Request
from balancer.http.serialize import response_head

if TYPE_CHECKING:
    from balancer.frontend.registry import ClientRegistry

# Seconds in which a client that has closed its side may still get its answers.
HALF_CLOSED_SECONDS = 0.5
# Seconds that a client may take for its first request when the listener closes: it may be on its way.
NEW_SECONDS = 1.0
# Requests that a client may send without waiting for the answer to the first. After these the connection ends,
# which is how a client learns to send the rest again (RFC 9112 section 9.3.2).
PIPELINE_MAX = 100


class Http1Connection(ClientConnection, asyncio.Protocol):
    """One client connection that speaks HTTP/1.1.

    ``scheme``: http or https. ``writable``: set while the client takes what it is sent.
    """

    __slots__ = (
        "_current", "_origin", "_parser", "_queue", "_reading", "_rest", "loop", "registry", "scheme",
        "transport", "writable",
    )  # fmt: skip

    def __init__(self, registry: ClientRegistry) -> None:
        super().__init__(registry.settings)
        # Global.
        self.registry = registry
        self.loop = asyncio.get_running_loop()

        # Per connection.
        self.transport: asyncio.Transport
        self.scheme = "http"
        # Client and scheme: what a request is made of besides its bytes.
        self._origin = ""
        self._parser = RequestParser(self, registry.settings)
        self._reading = True
        self.writable = asyncio.Event()
        self.writable.set()

        # Per request: the one that is answered now, those behind it, and what came behind one for another protocol.
        self._current: Http1Exchange | None = None
        self._queue: deque[Http1Exchange] = deque()
        self._rest = b""

    def __repr__(self) -> str:
        use = f"answers {self._current!r}" if self._current else "answers nothing"
        return f"<{type(self).__name__} {self.peer} {self.phase.value}, {use}, {len(self._queue)} behind it>"

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peer = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._origin = f"{self.scheme} {self.peer}"
        self.begin_checks(self.loop.time())
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
        self._parser.close()
        self._leave()

    def eof_received(self) -> bool:
        """The client has closed its side: it has left, or it only has nothing more to ask (RFC 9112 section 9.6).

        These cannot be told apart, so it has HALF_CLOSED_SECONDS to get its answers, unless it owes a body.
        """
        receiving = self._parser.exchange
        if self.phase not in ENDING:
            self.phase = DONE
        if receiving:
            receiving.client_left()
            return False
        if self._current:
            self.loop.call_later(HALF_CLOSED_SECONDS, self._leave)
        return self._current is not None

    def _leave(self) -> None:
        self._queue.clear()
        if self._current:
            self._current.client_left()

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase is IDLE or phase is NEW:
            if self._current is None and len(data) <= HEAD_MAX and not self.registry.stopping:
                key = data, self._origin
                if known := self.registry.requests.get(key):
                    self._begin_known(known)
                else:
                    self._parse(data, key)
            else:
                self._parse(data)
        elif phase is SWITCHING:
            self._rest += data
            if len(self._rest) > HIGH_WATER:
                self.pause()
        elif phase not in ENDING:
            self._parse(data)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # Requests.

    def _begin_known(self, request: Request) -> None:
        """Begin a request that has come before, to the byte. The parser would be after it as it was before."""
        self.phase = IDLE
        self.messages += 1
        exchange = self._current = Http1Exchange(self, request, "1.1", False)
        exchange.complete = True
        exchange.begin()

    def _parse(self, data: bytes, key: tuple[bytes, str] | None = None) -> None:
        """Parse, and begin what has come if nothing is before it. ``key``: what a request is remembered by."""
        rest = self._parser.feed(data)
        if self._parser.refusal:
            self.reject(self._parser.refusal)
        elif rest is not None:
            self._rest = rest
        elif key and self._queue:
            self._cache_request(key)
        if self._queue:
            if self._current is None:
                self._begin()
            else:
                self.pause()

    def _cache_request(self, key: tuple[bytes, str]) -> None:
        """Remember a request that came alone and whole, if it has no body and the connection goes on behind it."""
        exchange = self._queue[0]
        whole = self.phase is IDLE and exchange.complete and len(self._queue) == 1
        if (
            whole
            and exchange.version == "1.1"
            and not exchange.request.body
            and self.registry.requests.seen_before(key)
        ):
            self.registry.requests.put(key, exchange.request)

    def request_received(self, request: Request, version: str, closes: bool) -> Http1Exchange:
        """The parser has read a head. ``closes``: the connection ends with its response, by the client's word."""
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

    def answered(self, exchange: ClientExchange) -> None:
        """A request is over: go on with the next, or end the connection."""
        self._current = None
        if self.phase is CLOSED:
            return
        if exchange.state is not ResponseState.COMPLETE:
            self._break(exchange)
        elif self._parser.exchange is exchange or exchange.closes:
            self._linger()  # The client sends a body that is not read, or has read that the connection ends.
        elif self._queue:
            self._begin()
        elif self.phase is SWITCHING:
            self._decline_upgrade()
        elif self._parser.refusal:
            self._send_error(self._parser.refusal)
        elif self.phase is DONE:
            self.transport.close()
        else:
            self.resume()
            if self.registry.stopping:
                self.shutdown()

    # The end of a connection.

    def shutdown(self) -> None:
        """The server stops: finish what has been asked for, then close."""
        if self._current is not None:
            # The client is told, unless it has the head of its answer already: then it may ask once more.
            self._current.closes = self._current.closes or self._current.state is ResponseState.PENDING
        elif grace := max(NEW_SECONDS, self.registry.idle_grace) if self.phase is NEW else self.registry.idle_grace:
            self.loop.call_later(grace, self._close_if_idle)
        else:
            self.transport.close()

    def _close_if_idle(self) -> None:
        if self._current is None and self.phase is not HEAD and self._parser.exchange is None:
            self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def _break(self, exchange: ClientExchange) -> None:
        """The client must not take what it has for the whole."""
        if exchange.framing is Framing.CLOSE:
            self.transport.abort()
        else:
            exchange.flush()
            self.transport.close()

    def reject(self, refusal: Refusal) -> None:
        """The client has sent something that cannot be served: say so once everything before has been answered."""
        # With its traceback it would keep alive what it came through, which is this connection, with its head.
        self._parser.refusal = refusal.with_traceback(None)
        self.phase = REJECTED
        receiving = self._parser.exchange
        self._parser.drop_body()
        if receiving:
            receiving.fail(refusal)
        elif self._current is None and not self._queue:
            self._send_error(refusal)

    def _send_error(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        status, fields, text = refusal_response(refusal)
        request = self._parser.refused_request()
        if "HEAD" in (self._parser.method, request.method):
            text = b""
        self.transport.write(response_head(status, fields, b"connection: close") + text)
        self.registry.proxy.refused(request, refusal)
        self._linger()

    def _linger(self) -> None:
        """Close, but give the client a moment to read the answer: a close with bytes unread resets the connection."""
        self.phase = LINGERING
        self._parser.drop_body()
        self._queue.clear()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self.resume()
        else:
            self.transport.close()

    # Other protocols.

    def _decline_upgrade(self) -> None:
        """The member has answered as if it had not been asked for another protocol (RFC 9110 section 7.8)."""
        rest, self._rest = self._rest, b""
        self.phase = IDLE
        self.resume()
        if rest:
            self.data_received(rest)

    def become_tunnel(self, tunnel: Tunnel) -> None:
        """Hand over: the member has switched protocols, and from here on the connection is not HTTP's."""
        self.phase = TUNNEL
        self.transport.set_protocol(tunnel)
        if self._rest:
            tunnel.data_received(self._rest)
        self.resume()

    # Limits.

    def pause(self) -> None:
        """Read nothing more from the client for now."""
        if self._reading:
            self._reading = False
            self.transport.pause_reading()
            self.stop_waiting()

    def resume(self) -> None:
        """Read on."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    @property
    def unread(self) -> int:
        return 0 if self.writable.is_set() else self.transport.get_write_buffer_size()

    @property
    def is_waiting(self) -> bool:
        return self._reading and not (self.phase is IDLE and self._current)

    def time_out(self, limit: float) -> None:
        if self.phase is HEAD:
            self.reject(Refusal(408, "request_timeout", f"a request head may take {limit:g} s"))
        else:
            self.transport.close()
