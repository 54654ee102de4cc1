"""The front end of ``balancer serve``: HTTP/1.1 from the client's socket to ``dispatch``, without ASGI in between.

uvicorn runs it (``Config(http=...)``) and keeps the sockets, TLS, signals and the shutdown. httptools
parses, and ``balancer.http.validation`` refuses what it lets pass and must not be passed on.

Rules (RFC 9110, RFC 9112):
* A request that is ambiguous or malformed is answered 4xx, its connection is closed, and nothing of it
  goes to a member.
* Responses leave in the order of their requests; the next request of a connection is not begun
  before the last is answered.
* What a client sends is held only up to a high-water mark; then reading pauses. What it does not read is
  held only up to the transport's.
* There is no timer for a connection, and no clock is read for it: ``ClientRegistry`` looks at all of them once a
  second. A connection in the same phase on two sweeps has been in it the whole time between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import httptools
from uvicorn.server import ServerState

from balancer.dispatch.refusals import refusal_response
from balancer.errors import Refusal
from balancer.frontend.http1_exchange import ClientExchange
from balancer.frontend.phases import Phase, timeout
from balancer.frontend.tunnel import HIGH_WATER, Tunnel
from balancer.http.headers import Headers, plain_address
from balancer.http.memo import HEAD_MAX
from balancer.http.request import Request
from balancer.http.serialize import response_head
from balancer.http.validation import check, head_size, headers_too_large, malformed
from balancer.upstream.base import UpstreamResponse

if TYPE_CHECKING:
    from balancer.frontend.registry import ClientRegistry

# Seconds in which a client that has closed its side may still get its answers.
HALF_CLOSED_SECONDS = 0.5
# Seconds that a client may take for its first request when the listener closes: it may be on its way.
NEW_SECONDS = 1.0
# Bytes of chunk sizes and extensions that a byte of a body makes up for; what is beyond counts as if it were a head.
BODY_WORTH = 16
# Seconds that a body may take whatever its rate.
RATE_SECONDS = 20.0
# Requests that a client may send without waiting for the answer to the first. After these the connection ends,
# which is how a client learns to send the rest again (RFC 9112 section 9.3.2).
PIPELINE_MAX = 100

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Http1Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_begun",
        "_body_bytes",
        "_current",
        "_fields",
        "_head_bytes",
        "_last",
        "_lingers",
        "_messages",
        "_origin",
        "_parser",
        "_queue",
        "_quiet",
        "_receiving",
        "_refusal",
        "_refused",
        "_rest",
        "_scheme",
        "_server_state",
        "_since",
        "_stuck",
        "_target",
        "_waits_for",
        "clients",
        "dispatcher",
        "in_flight",
        "loop",
        "peer",
        "reading",
        "transport",
        "writable",
    )  # fmt: skip

    def __init__(self, clients: ClientRegistry, server_state: ServerState) -> None:
        self.clients = clients
        self.dispatcher = clients.proxy.dispatcher
        self.in_flight = clients.proxy.in_flight
        self._server_state = server_state
        self.loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self.peer = ""
        self._scheme = "http"
        # Client and scheme: what a request is made of besides its bytes.
        self._origin = ""
        # The request that is answered now, those behind it, and the one whose body still comes in.
        self._current: ClientExchange | None = None
        self._queue: deque[ClientExchange] = deque()
        self._receiving: ClientExchange | None = None
        # The head that comes in; bytes since a message was complete, but for those of its body; messages so far.
        self._target = b""
        self._fields: Headers = []
        self._head_bytes = 0
        self._messages = 0
        # The parser has seen the beginning of a message, and not its end.
        self._begun = False
        # What came behind a request for another protocol, until it is known who shall have it.
        self._rest: bytes | None = None
        # Nothing more is taken from this client: by its own word, or after a refusal (``_refusal``, then ``_lingers``).
        self._last = False
        self._refusal: Refusal | None = None
        self._lingers = False
        # What could still be made of the request that was refused.
        self._refused: Request | None = None
        self.reading = True
        self.writable = asyncio.Event()
        self.writable.set()
        # What the client was waited for at the last look, since when, and how much of a body has come meanwhile.
        self._waits_for = (Phase.HEAD, 0)
        self._since = 0.0
        self._body_bytes = 0
        self._quiet = (0, 0.0)
        # Bytes that the client had not read at the last look, and since when there are so many.
        self._stuck = (0, 0.0)

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peer = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._origin = f"{self._scheme} {self.peer}"
        self._since = self.loop.time()
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        if self.clients.stopping:
            self.shutdown()  # It was accepted when the listener closed.
        try:
            self.clients.admit(self)
        except Refusal as refusal:
            self._reject(refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self._forget(error)
        self.writable.set()
        self._last = True
        # The parser knows this object's methods: without it, reference counts alone free both.
        del self._parser
        self._leave()

    def _forget(self, error: Exception | None) -> None:
        self.clients.remove(self)
        self._server_state.connections.discard(self)

    def eof_received(self) -> bool:
        """The client has closed its side: it has left, or it only has nothing more to ask (RFC 9112 section 9.6).

        These cannot be told apart, so it has HALF_CLOSED_SECONDS to get its answers, unless it owes a body.
        """
        self._last = True
        if self._receiving:
            self._receiving.client_left()
            return False
        if self._current:
            self.loop.call_later(HALF_CLOSED_SECONDS, self._leave)
        return self._current is not None

    def _leave(self) -> None:
        self._queue.clear()
        if self._current:
            self._current.client_left()

    def data_received(self, data: bytes) -> None:  # noqa: C901 - each way that bytes can go, without a call between
        if self._refusal or (self._last and self._receiving is None):
            return  # No answer to it is due.
        if self._rest is not None:
            self._rest += data
            if len(self._rest) > HIGH_WATER:
                self.pause()
            return
        key = data, self._origin
        alone = self._current is None and not (self._begun or self._head_bytes) and len(data) <= HEAD_MAX
        if alone and not self.clients.stopping and (known := self.clients.requests.get(key)):
            # The parser would be after it as it was before.
            self._messages += 1
            exchange = self._current = ClientExchange(self, known, "1.1", False)
            exchange.complete = True
            exchange.begin()
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._on_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._reject(self._refusal or malformed(str(error).lower()))
        else:
            if self._refusal:
                self._reject(self._refusal)
            elif self._head_bytes > self.clients.settings.max_header_bytes:
                too_much = malformed("there is too much beside the body in its chunks")
                self._reject(headers_too_large(self.clients.settings) if self._receiving is None else too_much)
            elif alone and self._queue:
                self._cache_request(key)
        if self._queue:
            if self._current is None:
                self._begin()
            else:
                self.pause()

    def _cache_request(self, key: tuple[bytes, str]) -> None:
        """Remember a request that came alone and whole, if it has no body and the connection goes on behind it."""
        exchange = self._queue[0]
        request = exchange.request
        whole = exchange.complete and len(self._queue) == 1 and not self._begun
        plain = exchange.version == "1.1" and not (self._last or request.body or request.upgrade)
        if whole and plain and self.clients.requests.seen_before(key):
            self.clients.requests.put(key, request)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def shutdown(self) -> None:
        """The server stops: finish what has been asked for, then close."""
        if self._current is not None:
            # The client is told, unless it has the head of its answer already: then it may ask once more.
            self._current.closes = self._current.closes or not self._current.started
        elif idle_grace := self.clients.idle_grace if self._messages else max(NEW_SECONDS, self.clients.idle_grace):
            self.loop.call_later(idle_grace, self._close_if_idle)
        else:
            self.transport.close()

    def _close_if_idle(self) -> None:
        if self._current is None and not self._begun:
            self.transport.close()

    # httptools' side. No exception crosses it: what is wrong with a request is kept in ``_refusal``.

    def on_message_begin(self) -> None:
        self._begun = True

    def on_url(self, url: bytes) -> None:
        if self._receiving is None:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiving is None:
            # httptools leaves the white space behind a value to us.
            self._fields.append((name.lower(), value.rstrip()))
        else:
            self._on_trailer((name.lower(), value.rstrip()))

    def _on_trailer(self, field: tuple[bytes, bytes]) -> None:
        exchange = self._receiving
        assert exchange
        if len(exchange.trailers) >= self.clients.settings.max_headers:
            self._refusal = malformed("a body has too many trailers")
        elif not self._refusal:
            exchange.trailers = [*exchange.trailers, field]

    def on_headers_complete(self) -> None:
        if self._last or self._refusal or self._receiving:
            return
        parser = self._parser
        version = parser.get_http_version()
        target, fields = self._target, self._fields
        self._target, self._fields = b"", []
        try:
            request, closes = check(
                parser.get_method(), target, fields, version, self._head_bytes, self.clients.settings
            )
        except Refusal as refusal:
            self._refusal = refusal
            self._refused = Request(parser.get_method().decode(), target, fields, self.peer, self._scheme)
            return
        request.client, request.scheme = self.peer, self._scheme
        self._messages += 1
        # What has come of a body already counts for that, but for its chunks only the parser knows where they begin.
        self._head_bytes = max(0, self._head_bytes - head_size(target, fields)) if request.chunked else 0
        self._last = closes or len(self._queue) >= PIPELINE_MAX or self.clients.stopping
        exchange = self._receiving = ClientExchange(self, request, version, self._last)
        self._queue.append(exchange)

    def on_body(self, piece: bytes) -> None:
        self._head_bytes = max(0, self._head_bytes - BODY_WORTH * len(piece))
        if self._receiving and not self._refusal:
            self._body_bytes += len(piece)
            self._receiving.feed(piece)

    def on_message_complete(self) -> None:
        receiving = self._receiving
        if receiving is None or self._refusal:
            return
        if receiving.request.body and self._parser.should_upgrade():
            return  # httptools takes no body after an Upgrade; see _on_upgrade.
        self._receiving = None
        self._head_bytes = 0
        self._begun = False
        receiving.fed()

    # The course of a connection.

    def _begin(self) -> None:
        exchange = self._current = self._queue.popleft()
        if self._queue:
            self.pause()
        exchange.begin()

    def answered(self, exchange: ClientExchange) -> None:
        """A request is over: go on with the next, or end the connection."""
        self._current = None
        if not exchange.finished:
            self._break(exchange)
        elif self._receiving is exchange or exchange.closes:
            self._end()  # The client sends a body that is not read, or has read that the connection ends.
        elif self._rest is not None and not self._queue:
            self._decline_upgrade()
        elif self._queue:
            self._begin()
        elif self._refusal:
            self._send_error(self._refusal)
        elif self._last:
            self.transport.close()
        else:
            if not self.reading:
                self.resume()
            if self.clients.stopping:
                self.shutdown()

    def _break(self, exchange: ClientExchange) -> None:
        """The client must not take what it has for the whole."""
        if exchange.ends_by_closing:
            self.transport.abort()
        else:
            exchange.flush()
            self.transport.close()

    def _reject(self, refusal: Refusal) -> None:
        """The client has sent something that cannot be served: say so once everything before has been answered."""
        # With its traceback it would keep alive what it came through, which is this connection, with its head.
        self._refusal = refusal.with_traceback(None)
        receiving, self._receiving = self._receiving, None
        if receiving:
            receiving.fail(refusal)
        elif self._current is None and not self._queue:
            self._send_error(refusal)

    def _send_error(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        status, fields, text = refusal_response(refusal)
        # Where nothing of the target has been read, this may be the method of the request before.
        method = self._parser.get_method().decode()
        known = method if self._target else ""
        request = self._refused or Request(known, self._target, self._fields, self.peer, self._scheme)
        if "HEAD" in (method, request.method):
            text = b""
        self.transport.write(response_head(status, fields, b"connection: close") + text)
        self.clients.proxy.refused(request, refusal)
        self._end()

    def _end(self) -> None:
        """Close, but give the client a moment to read the answer: a close with bytes unread resets the connection."""
        self._last = self._lingers = True
        self._receiving = None
        self._queue.clear()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self.resume()
        else:
            self.transport.close()

    # Other protocols.

    def _on_upgrade(self, rest: bytes) -> None:
        """httptools has stopped behind a request for another protocol."""
        if self._refusal:
            self._reject(self._refusal)
        elif self._queue and self._queue[-1].request.upgrade:
            self._rest = rest
        elif not self._last or self._receiving:
            self._go_on_with_http(rest)

    def _decline_upgrade(self) -> None:
        """The member has answered as if it had not been asked for another protocol (RFC 9110 section 7.8)."""
        rest, self._rest = self._rest, None
        if self._last or self.transport.is_closing():
            self.transport.close()
            return
        self.resume()
        self._go_on_with_http(rest or b"")

    def _go_on_with_http(self, rest: bytes) -> None:
        """A new parser gets the framing of the body again, or the next request: the old one takes nothing more."""
        self._parser = httptools.HttpRequestParser(self)
        if self._receiving:
            fields = self._receiving.request.headers
            framing = [b"%b: %b\r\n" % it for it in fields if it[0] in _FRAMING]
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self._receiving.trailers = []
        if rest:
            self.data_received(rest)

    def become_tunnel(self, response: UpstreamResponse, websocket: bool) -> Tunnel:
        """The member has switched protocols: from here on the connection is not HTTP's."""
        silence = self.clients.settings.stream_idle_timeout
        tunnel = Tunnel(self.transport, response, websocket, silence, self._forget)
        self.transport.set_protocol(tunnel)
        if self._rest:
            tunnel.data_received(self._rest)
        self.resume()
        return tunnel

    # Limits.

    def pause(self) -> None:
        if self.reading:
            self.reading = False
            self.transport.pause_reading()
            self._waits_for = (Phase.ACTIVE, -1)  # The time from here on is not the client's.

    def resume(self) -> None:
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """See ``Connection``."""
        limits = self.clients.settings
        unread = 0 if self.writable.is_set() else self.transport.get_write_buffer_size()
        if unread != self._stuck[0]:
            self._stuck = (unread, now)
        elif unread and now > self._stuck[1] + timeout(Phase.READ, limits):
            self.transport.abort()
        waits_for = (self._phase(), self._messages)
        if waits_for != self._waits_for:
            self._waits_for, self._since, self._body_bytes = waits_for, now, 0
            return
        waited, phase = now - self._since, waits_for[0]
        if phase is Phase.BODY:
            self._check_body_rate(waited, now)
        elif waited > (limit := timeout(phase, limits)):
            if phase is Phase.HEAD and self._head_bytes:
                self._reject(Refusal(408, "request_timeout", f"a request head may take {limit:g} s"))
            else:
                self.transport.close()

    def _phase(self) -> Phase:
        if self._lingers:
            return Phase.LINGERING
        if self._refusal or not self.reading or (self._last and not self._receiving):
            return Phase.ACTIVE
        if self._receiving:
            return Phase.ACTIVE if self._receiving.awaits_continue else Phase.BODY
        if self._begun or self._head_bytes or not self._messages:
            return Phase.HEAD
        return Phase.ACTIVE if self._current else Phase.IDLE

    def _check_body_rate(self, waited: float, now: float) -> None:
        limits = self.clients.settings
        if self._body_bytes != self._quiet[0]:
            self._quiet = (self._body_bytes, now)
        elif now > max(self._quiet[1], self._since) + (limit := timeout(Phase.BODY, limits)):
            self._reject(Refusal(408, "request_timeout", f"no byte of the body for {limit:g} s"))
        if waited > RATE_SECONDS and self._body_bytes < limits.min_body_rate * (waited - RATE_SECONDS):
            words = f"the body came with less than {limits.min_body_rate} bytes/s"
            self._reject(Refusal(408, "request_timeout", words))
