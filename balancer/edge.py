"""The front end of ``balancer serve``: HTTP/1.1 from the client's socket to ``dispatch``, without ASGI in between.

uvicorn runs it (``Config(http=...)``) and keeps the sockets, TLS, signals and the shutdown. httptools
parses; what it lets pass and a balancer must not is refused here, because two servers in a row that
read the same bytes differently can be played off against each other (request smuggling).

Rules (RFC 9110, RFC 9112):
* A request that is ambiguous or malformed is answered 4xx, its connection is closed, and nothing of it
  goes to a member.
* Responses leave in the order of their requests; the next request of a connection is not begun
  before the last is answered.
* What a client sends is held only up to HIGH_WATER; then reading pauses. What it does not read is
  held only up to the transport's high-water mark.
* There is no timer for a connection: ``Clients`` looks after all of them once a second.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from math import inf
from typing import Any

import httptools
import uvicorn
from uvicorn.server import ServerState

from balancer.dispatch import refusal_response
from balancer.errors import ClientGone, Refusal
from balancer.headers import Headers
from balancer.proxy import Proxy
from balancer.request import Request
from balancer.upstream import UpstreamResponse
from balancer.visit import END_OF_EVENT, Visit

# Of a request head: its bytes and fields in all, and the bytes of its target.
HEAD_MAX = 32 * 1024
FIELDS_MAX = 100
TARGET_MAX = 16 * 1024
# Seconds for a request head from its first byte on, and of idleness between two requests (as nginx).
HEAD_SECONDS = 10.0
KEEPALIVE_SECONDS = 75.0
# Seconds without progress after which a client that sends a body, or reads a response, is cut off.
SILENCE_SECONDS = 60.0
# Seconds in which a client may read a refusal before its connection is closed for good.
LINGER_SECONDS = 1.0
# Seconds in which a client that has closed its side may still get its answers.
HALF_CLOSED_SECONDS = 0.5
# Body bytes that may wait to be taken.
HIGH_WATER = 64 * 1024
# How often limits are checked, in seconds.
SWEEP_SECONDS = 1.0
# Pieces from here on are handed to the kernel beside the head rather than copied behind it.
LARGE = 8 * 1024

# RFC 9110 section 7.2 and RFC 3986 section 3.2.2: a host, perhaps with a port.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]*)?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
# RFC 9110 section 5.5: what a field's value may not have.
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_NO_BODY = frozenset({204, 304})

STATUS_LINES = {it.value: b"HTTP/1.1 %d %b\r\n" % (it.value, it.phrase.encode()) for it in HTTPStatus}


def malformed(reason: str) -> Refusal:
    return Refusal(400, "malformed_request", reason)


class Clients:
    """The connections of a listener, and the limits that they have to keep."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.connections: set[Edge] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Edge:
        """A protocol for a new connection, as uvicorn asks for it."""
        return Edge(self, config, server_state, app_state)

    def add(self, connection: Edge) -> None:
        self.connections.add(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.overdue(now)
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep) if self.connections else None


class Edge(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_app_state", "_clients", "_config", "_current", "_deadline", "_fields", "_head_bytes", "_last", "_parser",
        "_peer", "_queue", "_receiving", "_refusal", "_scheme", "_server_state", "_stuck", "_target", "_websocket",
        "loop", "reading", "transport", "writable",
    )  # fmt: skip

    def __init__(
        self, clients: Clients, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self._clients = clients
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self.loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self._peer = ""
        self._scheme = "http"
        # The request that is answered now, those behind it, and the one whose body still comes in.
        self._current: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._receiving: Exchange | None = None
        # The head that comes in, and how many bytes have come since the last message was complete.
        self._target = b""
        self._fields: Headers = []
        self._head_bytes = 0
        self._websocket = False
        # Nothing more is taken from this client: it said so, or (``_refusal``) must be told so.
        self._last = False
        self._refusal: Refusal | None = None
        self.reading = True
        self.writable = asyncio.Event()
        self.writable.set()
        # What the client must have done something by, as a reading of the loop's clock.
        self._deadline = inf
        # Bytes that the client had not read at the last look, and since when there are so many.
        self._stuck = (0, inf)

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._clients.add(self)
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._deadline = self.loop.time() + HEAD_SECONDS

    def connection_lost(self, error: Exception | None) -> None:
        self._forget()
        self.writable.set()
        self._leave()

    def _forget(self) -> None:
        self._clients.connections.discard(self)
        self._server_state.connections.discard(self)

    def eof_received(self) -> bool:
        """The client has closed its side: it has left, or it only has nothing more to ask (RFC 9112 section 9.6).

        Nobody can tell these apart, so it has HALF_CLOSED_SECONDS to get its answers, unless it owes a body.
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

    def data_received(self, data: bytes) -> None:
        if self._refusal or (self._last and self._receiving is None):
            return  # It is not a request that anybody waits for.
        if self._receiving is None and not self._head_bytes:
            self._deadline = self.loop.time() + HEAD_SECONDS
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or malformed(str(error).lower()))
        else:
            if self._refusal:
                self._refuse(self._refusal)
            elif self._receiving is None and self._head_bytes > HEAD_MAX:
                self._refuse(_HEAD_TOO_LARGE)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def shutdown(self) -> None:
        """The server stops: finish what has been asked for, then close."""
        self._last = True
        if self._current is None:
            self.transport.close()

    # httptools' side. No exception crosses it: what is wrong with a request is kept in ``_refusal``.

    def on_message_begin(self) -> None:
        if self._receiving:
            return
        self._target = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        if self._receiving is None:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiving is None:  # else it is a trailer
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._last or self._refusal or self._receiving:
            return
        parser = self._parser
        version = parser.get_http_version()
        try:
            request, self._last = check(parser.get_method(), self._target, self._fields, version)
        except Refusal as refusal:
            self._refusal = refusal
            return
        request.client, request.scheme = self._peer, self._scheme
        if request.upgrade:
            self._websocket = True
            return
        exchange = self._receiving = Exchange(self, request, version, self._last)
        if exchange.expects:
            self._deadline = inf  # The client waits to be told to go on.
        else:
            self.expect_body()
        if self._current is None:
            self._begin(exchange)
        else:
            self._queue.append(exchange)
            self.pause()

    def on_body(self, piece: bytes) -> None:
        if self._receiving:
            self.expect_body()
            self._receiving.feed(piece)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and self._receiving and self._receiving.request.body:
            return  # httptools takes no body after an Upgrade; see _switch.
        receiving, self._receiving = self._receiving, None
        self._head_bytes = 0
        self._deadline = inf
        if receiving:
            receiving.fed()

    # The course of a connection.

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        exchange.task = self.loop.create_task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            assert exchange.task
            await self._clients.proxy.serve(exchange, exchange.request, exchange, exchange.task)
        finally:
            self._answered(exchange)

    def _answered(self, exchange: Exchange) -> None:
        """A request is over: go on with the next, or end the connection."""
        self._current = None
        if not exchange.finished:
            self.transport.close()  # The client must not take what it has for the whole.
        elif self._receiving is exchange or exchange.closes:
            self._end()  # The client sends a body that nobody reads, or was told that the connection ends.
        elif self._queue:
            self._begin(self._queue.popleft())
        elif self._refusal:
            self._tell(self._refusal)
        elif self._last:
            self.transport.close()
        else:
            if not self._head_bytes:
                self._deadline = self.loop.time() + KEEPALIVE_SECONDS
            self.resume()

    def _refuse(self, refusal: Refusal) -> None:
        """The client has sent something that cannot be served: say so once everything before has been answered."""
        self._refusal = refusal
        receiving, self._receiving = self._receiving, None
        if receiving:
            receiving.fail(refusal)
        elif self._current is None:
            self._tell(refusal)

    def _tell(self, refusal: Refusal) -> None:
        status, fields, text = refusal_response(refusal)
        lines = [_status_line(status), *(b"%b: %b\r\n" % field for field in fields), b"connection: close\r\n\r\n", text]
        self.transport.write(b"".join(lines))
        self._end()

    def _end(self) -> None:
        """Close, but give the client a moment to read the answer: a close with bytes unread resets the connection."""
        self._last = True
        self._receiving = None
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self.resume()
            self._deadline = self.loop.time() + LINGER_SECONDS
        else:
            self.transport.close()

    def _switch(self, rest: bytes) -> None:
        """A request asked for another protocol: WebSocket has a server of its own, others are not on offer here."""
        if self._refusal:
            self._refuse(self._refusal)
        elif not self._websocket:
            # RFC 9110 section 7.8: a server may ignore the field, and then the message is one like any other. httptools
            # has to be told so: a new parser gets the framing of the body again, or the next request.
            self._parser = httptools.HttpRequestParser(self)
            if self._receiving:
                framing = [b"%b: %b\r\n" % it for it in self._fields if it[0] in _FRAMING]
                self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            if rest:
                self.data_received(rest)
        elif self._current:
            self._refuse(malformed("a WebSocket handshake has to wait for the answers to what was asked before"))
        else:
            lines = [b"GET %b HTTP/1.1\r\n" % self._target, *(b"%b: %b\r\n" % field for field in self._fields), b"\r\n"]
            self._forget()
            server: Any = self._config.ws_protocol_class
            protocol = server(config=self._config, server_state=self._server_state, app_state=self._app_state)
            protocol.connection_made(self.transport)
            protocol.data_received(b"".join(lines) + rest)
            self.transport.set_protocol(protocol)

    def pause(self) -> None:
        if self.reading:
            self.reading = False
            self.transport.pause_reading()
            self._deadline = inf  # From here on it is the member that is waited for.

    def resume(self) -> None:
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()
            if self._receiving:
                self.expect_body()

    def expect_body(self) -> None:
        self._deadline = self.loop.time() + SILENCE_SECONDS

    def overdue(self, now: float) -> None:
        """Cut off a client that keeps the others waiting for nothing."""
        unread = 0 if self.writable.is_set() else self.transport.get_write_buffer_size()
        if unread != self._stuck[0]:
            self._stuck = (unread, now)
        elif unread and now > self._stuck[1] + SILENCE_SECONDS:
            self.transport.abort()
        if now <= self._deadline:
            return
        if self._receiving:
            self._refuse(Refusal(408, "request_timeout", f"no byte of the body for {SILENCE_SECONDS:g} s"))
        elif self._head_bytes and not self._last:
            self._refuse(Refusal(408, "request_timeout", f"a request head may take {HEAD_SECONDS:g} s"))
        else:
            self.transport.close()
        self._deadline = now + LINGER_SECONDS


class Exchange(Visit):
    """One request: the source of its body and the sink of its response."""

    __slots__ = (
        "_chunked", "_edge", "_error", "_head", "_is_head", "_pieces", "_size", "_version", "_waiter",
        "closes", "complete", "expects", "finished", "request",
    )  # fmt: skip

    def __init__(self, edge: Edge, request: Request, version: str, closes: bool) -> None:
        super().__init__(None)
        self._edge = edge
        self.request = request
        self._version = version
        self._is_head = request.method == "HEAD"
        self.expects = bool(request.body and version == "1.1") and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in request.headers
        )
        # The body: all of it has come; what nobody has taken yet.
        self.complete = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        # The response: its head, until it is sent; all of it has been sent; the connection has to end with it.
        self._head = b""
        self._chunked = False
        self.finished = False
        self.closes = closes
        if request.body is not None:
            request.body = self

    # The body.

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > HIGH_WATER:
            self._edge.pause()
        self._wake()

    def fed(self) -> None:
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

    async def read(self) -> bytes:
        if self.expects:
            self.expects = False
            if not self._pieces and not self.complete and not self.started:
                self._edge.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._edge.expect_body()
        while not self._pieces and not self.complete:
            if self._error:
                raise self._error
            self._edge.resume()  # It may have been paused for the sake of a request before.
            self._waiter = self._edge.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pieces, self._pieces, self._size = self._pieces, [], 0
        if not self.complete:
            self._edge.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # The response.

    async def start(self, status: int, headers: Headers) -> None:
        if self.started:
            raise ClientGone("refused in mid-response")
        self.started = True
        self._headers = headers
        self._sent = END_OF_EVENT[0]
        lines = [_status_line(status)]
        has_length = False
        for name, value in headers:
            if name == b"content-length":
                has_length = True
                if status == 204:
                    continue  # RFC 9110 section 8.6
            lines.append(b"%b: %b\r\n" % (name, value))
        self._is_head = self._is_head or status in _NO_BODY
        if not self._is_head and not has_length:
            if self._version == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.closes = True
        if self.closes:
            lines.append(b"connection: close\r\n")
        elif self._version != "1.1":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        # Head and body leave together where the body is at hand, and the head alone where it is not.
        self._edge.loop.call_soon(self._flush)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._edge.transport.write(head)

    async def write(self, data: bytes, more: bool) -> None:
        edge = self._edge
        if edge.transport.is_closing():
            raise ClientGone
        head, self._head = self._head, b""
        if self._is_head:
            data = b""
        tail = b""
        if self._chunked:
            if data:
                head += b"%x\r\n" % len(data)
                tail = b"\r\n"
            if not more:
                tail += b"0\r\n\r\n"
        if len(data) < LARGE:
            edge.transport.write(head + data + tail)
        else:
            edge.transport.writelines([head, data, tail])
        if not more:
            self.finished = True
            self.task = None
            return
        self._sent = b""
        if not edge.writable.is_set():
            await edge.writable.wait()
        self._sent = data
        if self._leaving:
            await self._end_between_events()

    async def _complete(self) -> None:
        self._flush()
        self._edge.transport.write(b"0\r\n\r\n" if self._chunked else b"")
        self.finished = True

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        raise AssertionError("a plain request does not ask for another protocol")


def check(method: bytes, target: bytes, fields: Headers, version: str) -> tuple[Request, bool]:
    """The request that a head makes, and whether it is the last of its connection.

    Raises Refusal where none can, or should, be made of it.
    """
    if version not in ("1.0", "1.1"):
        raise Refusal(505, "version_not_supported", f"HTTP/{version} is not spoken here")
    if len(fields) > FIELDS_MAX:
        raise Refusal(431, "head_too_large", f"a request may have {FIELDS_MAX} fields")
    if len(target) > TARGET_MAX:
        raise Refusal(414, "target_too_long", f"a request target may have {TARGET_MAX} bytes")
    if method in _REFUSED_METHODS:
        raise _REFUSED_METHODS[method]
    hosts = []
    size = len(target)
    length = chunked = connection = upgrade = b""
    for name, value in fields:
        size += len(name) + len(value) + 4
        if _CONTROL.search(value):
            raise malformed(f"the field {name.decode('latin-1')} has a control character")
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            length = value
        elif name == b"transfer-encoding":
            chunked += b"," + value if chunked else value
        elif name == b"connection":
            connection += b"," + value.lower()
        elif name == b"upgrade":
            upgrade = value.lower()
    if size > HEAD_MAX:
        raise _HEAD_TOO_LARGE
    if chunked:
        if chunked.lower() != b"chunked":
            raise malformed("the only Transfer-Encoding that is understood is chunked, once")
        if version == "1.0" or length:
            raise malformed("Transfer-Encoding is not for HTTP/1.0, and not for requests with a Content-Length")
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise malformed("a request needs one Host")
    if not target.startswith(b"/"):
        target = _absolute(method, target, fields, hosts)
    elif hosts and not _HOST.fullmatch(hosts[0]):
        raise malformed("the Host is not one")
    if not _TARGET.fullmatch(target):
        raise malformed("the request target has characters that a target has not")
    options = {it.strip() for it in connection.split(b",")}
    request = Request(method.decode("ascii"), target, fields, "")
    if chunked or (length and length != b"0"):
        request.body = _PENDING
        request.chunked = bool(chunked)
    elif upgrade == b"websocket" and b"upgrade" in options and method == b"GET" and version == "1.1":
        request.upgrade = upgrade
    return request, b"close" in options or (version == "1.0" and b"keep-alive" not in options)


def _absolute(method: bytes, target: bytes, fields: Headers, hosts: list[bytes]) -> bytes:
    """The path of a target in absolute form, whose authority takes the place of Host (RFC 9112 section 3.2.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if not found or not _HOST.fullmatch(found[1]):
        raise malformed("the request target is neither a path nor a URL")
    fields[:] = [(b"host", found[1]), *(it for it in fields if it[0] != b"host")]
    path = found[2] or b"/"
    return path if path.startswith(b"/") else b"/" + path


class _Pending:
    """Stands for the body of a request until its exchange takes that place."""

    ended = False

    async def read(self) -> bytes:
        raise AssertionError("nobody reads a body before its exchange begins")


_PENDING = _Pending()
_HEAD_TOO_LARGE = Refusal(431, "head_too_large", f"a request head may have {HEAD_MAX} bytes")
_REFUSED_METHODS = {
    b"CONNECT": Refusal(501, "method_refused", "CONNECT is for proxies of another kind"),
    b"TRACE": Refusal(405, "method_refused", "TRACE is not passed on"),
}


def _status_line(status: int) -> bytes:
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
