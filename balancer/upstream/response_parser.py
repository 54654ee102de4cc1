"""The bytes of a connection to a member as responses: httptools, and the rules that it leaves to its user.

* A response with a simple head (``balancer.http.simple_heads``) needs no httptools, nor does its body.
* A response's end is that of RFC 9112 section 6.3: nothing after HEAD, 204 and 304, else chunked, else
  Content-Length, else the close of the connection. What cannot be framed is a protocol error.
* A 101 that the request allows ends HTTP on the connection (RFC 9110 section 7.8). One that was not is a protocol
  error. No body is behind it, so a header that frames one is dropped.
* Other interim responses are passed on as they come (RFC 9110 section 15.2), up to INTERIM_MAX of them.
* A protocol error is written on the exchange, and ends the connection. It leaves a response that is complete alone.
"""

from __future__ import annotations

from math import inf

import httptools

from balancer.http.headers import (
    HOP_BY_HOP,
    LENGTH_DIGITS,
    Headers,
    Spelling,
    content_length,
    is_too_long,
    nominated,
    trailers,
    without_length,
)
from balancer.http.request import END_OF_HEAD
from balancer.http.serialize import own_reason
from balancer.http.simple_heads import HEAD_MAX, KNOWN_MAX, SimpleResponse, read_response
from balancer.upstream.exchange import MemberExchange

# Interim responses before a final one.
INTERIM_MAX = 20

_BYTES_AFTER = "bytes after the end of the response"
_SWITCHED_UNASKED = "the member switched protocols unasked"
_SWITCHED_EARLY = "the member switched protocols while the client waits for 100 (Continue)"
_INTERIM_BODY = "an interim response with a body"


class ResponseParser:
    """Writes what arrives on ``exchange``: the one under way, or None.

    ``idle_timeout``: seconds that an exchange gives the member once its head is there.
    """

    __slots__ = ("_headers", "_idle_timeout", "_known", "_parser", "_reason", "_spelling", "exchange")
    # What ``del`` may take away, for mypyc.
    __deletable__ = ("_parser",)

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._parser = httptools.HttpResponseParser(self)
        # The last simple head.
        self._known: SimpleResponse | None = None
        # Header lines since the last head, or trailers; and the reason phrase of a head.
        self._headers: Headers = []
        self._spelling: Spelling = {}
        self._reason = b""
        self.exchange: MemberExchange | None = None

    def feed(self, exchange: MemberExchange, buffer: bytearray, data: memoryview) -> None:
        """Parse bytes of the exchange under way: ``data`` is the beginning of ``buffer``."""
        is_first, exchange.received = not exchange.received, True
        if exchange.left:
            _take_body(exchange, data)
            return
        if is_first and not exchange.is_head and self._read_simple(exchange, buffer, data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not exchange.switched:
                exchange.protocol_error = _SWITCHED_UNASKED
            elif upgrade.args[0] < len(data):
                exchange.pieces.append(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserError as error:
            exchange.protocol_error = str(error)

    def _read_simple(self, exchange: MemberExchange, buffer: bytearray, data: memoryview) -> bool:
        """Take a simple head and what has come of its body; return whether that is what has come.

        httptools gets nothing of it, and is in the state behind a complete response.
        """
        size = len(data)
        head = self._known
        if head is None or len(head.head) > size or not buffer.startswith(head.head):
            end = buffer.find(END_OF_HEAD, 0, min(size, HEAD_MAX)) + len(END_OF_HEAD)
            head = read_response(bytes(data[:end])) if end >= len(END_OF_HEAD) else None
            if head is None:
                return False
            if end <= KNOWN_MAX:
                self._known = head
        end = len(head.head)
        if end + head.length < size:
            return False
        exchange.status, exchange.left, exchange.lines = head.status, head.length, head.lines
        exchange.started = True
        exchange.timeout = self._idle_timeout
        _take_body(exchange, data[end:])
        return True

    def close(self) -> None:
        """Free httptools' parser, which refers to this object's methods: reference counts alone then free both."""
        del self._parser

    # httptools' side.

    def on_message_begin(self) -> None:
        """Begin a head; after a complete response it is a protocol error."""
        exchange = self.exchange
        if exchange and exchange.complete:
            exchange.protocol_error = _BYTES_AFTER

    def on_status(self, piece: bytes) -> None:
        """Take a piece of a reason phrase."""
        self._reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer behind a body."""
        lowered = name.lower()
        if lowered != name:
            self._spelling[lowered] = name
        # httptools leaves the white space behind a value, which is not part of it (RFC 9112 section 5).
        self._headers.append((lowered, value.rstrip()))

    def on_headers_complete(self) -> None:
        """Write the head on the exchange."""
        exchange = self.exchange
        if exchange is None or exchange.complete or exchange.protocol_error:
            return
        received, self._headers = self._headers, []
        exchange.spelling, self._spelling = self._spelling, {}
        reason, self._reason = self._reason, b""
        headers, has_length, chunked, error = read_headers(received)
        status = self._parser.get_status_code()
        if status == 101:
            exchange.interim_count += 1
            exchange.reason = own_reason(status, reason)
            _switch(exchange, without_length(headers), received)
            return
        if status < 100:
            error = f"{status} is no status"
        elif chunked and self._parser.get_http_version() == "1.0":
            error = "there are no chunks in that version of HTTP"
        if error:
            exchange.protocol_error = error
        elif status >= 200:
            if status == 204 and has_length:
                headers = without_length(headers)
            exchange.status, exchange.headers, exchange.started = status, headers, True
            exchange.reason = own_reason(status, reason)
            exchange.timeout = self._idle_timeout
            exchange.closes = not self._parser.should_keep_alive()
            exchange.lasts_until_close = not (has_length or chunked)
            if exchange.is_head:
                # httptools would wait for the body that the header fields describe.
                exchange.complete = True
                self._parser = httptools.HttpResponseParser(self)
        elif chunked or (has_length and content_length(headers)):
            # httptools reads a body here, and other parsers do not: RFC 9110 section 8.6 forbids to announce one.
            exchange.protocol_error = _INTERIM_BODY
        else:
            if has_length:
                headers = without_length(headers)
            exchange.interim_count += 1
            _pass_on_interim(exchange, status, headers)

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.complete:
            exchange.protocol_error = _BYTES_AFTER
        elif not exchange.protocol_error:
            exchange.pieces.append(piece)

    def on_message_complete(self) -> None:
        """End the response."""
        exchange = self.exchange
        if exchange and exchange.started and not (exchange.protocol_error or exchange.switched):
            exchange.complete = True
            if self._headers:
                exchange.trailers = trailers(self._headers)
        self._headers = []


def _take_body(exchange: MemberExchange, data: memoryview) -> None:
    """Take a piece of a body of known length."""
    size = len(data)
    if size > exchange.left:
        exchange.protocol_error = _BYTES_AFTER
        data = data[: exchange.left]
    exchange.left -= len(data)
    if data:
        exchange.pieces.append(bytes(data))
    exchange.complete = not exchange.left


def _switch(exchange: MemberExchange, headers: Headers, received: Headers) -> None:
    """End HTTP on the connection with a 101, whose header lines are all in ``received``."""
    if not exchange.may_switch:
        exchange.protocol_error = _SWITCHED_UNASKED
        return
    if exchange.awaits_continue:
        # RFC 9110 section 7.8 has the member send 100 first: the client sends its body only then.
        exchange.protocol_error = _SWITCHED_EARLY
        return
    exchange.status, exchange.headers, exchange.started, exchange.switched = 101, headers, True, True
    for name, value in received:
        if name == b"upgrade":
            exchange.upgrade = value
    exchange.deadline = inf


def _pass_on_interim(exchange: MemberExchange, status: int, headers: Headers) -> None:
    """Pass an interim response on."""
    if exchange.interim_count > INTERIM_MAX:
        exchange.protocol_error = f"more than {INTERIM_MAX} interim responses"
        return
    if status == 100 and exchange.awaits_continue:
        exchange.awaits_continue = False
        exchange.deadline = inf  # The client's time is not the member's.
    if exchange.on_interim:
        exchange.on_interim(status, headers)


def read_headers(received: Headers) -> tuple[Headers, bool, bool, str]:
    """Return the headers to pass on, whether the response has a length, whether it is chunked, and an error or "".

    Hop-by-hop headers and those that ``Connection`` names stay behind (RFC 9110 section 7.6.1).
    """
    passed: Headers = []
    options: list[bytes] = []
    has_length = chunked = False
    error = ""
    for pair in received:
        name = pair[0]
        if name == b"content-length":
            has_length = True
            passed.append(pair)
            if len(pair[1]) > LENGTH_DIGITS and is_too_long(pair[1]):
                error = "no body is as long as its Content-Length"
        elif name not in HOP_BY_HOP:
            passed.append(pair)
        elif name == b"connection":
            options.append(pair[1])
        elif name == b"transfer-encoding":
            if chunked or pair[1].lower() != b"chunked":
                error = "only Transfer-Encoding: chunked, once, can be framed"
            chunked = True
    gone = options and nominated(b",".join(options))
    if gone:
        passed = [pair for pair in passed if pair[0] not in gone]
    return passed, has_length, chunked, error
