"""The bytes of a client's connection as requests: httptools, and the rules that it leaves to its user.

* A malformed or ambiguous request becomes no exchange: ``refusal`` has the reason, and nothing behind it is read
  (RFC 9112 section 9.2; ``balancer.http.validation``).
* Bytes beside a body in its chunks count as a head does (``balancer.http.chunked``).
* Behind a request for another protocol, parsing stops (RFC 9110 section 7.8).
* No exception crosses httptools: with its traceback it would keep the connection alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.frontend.client_connection import AWAIT_CONTINUE, BODY, DONE, HEAD, IDLE, NEW, SWITCHING
from balancer.frontend.http1_exchange import ClientExchange
from balancer.http.chunked import overhead
from balancer.http.headers import Headers
from balancer.http.request import Request
from balancer.http.validation import check, head_size, headers_too_large, malformed

if TYPE_CHECKING:
    from balancer.frontend.http1_connection import Http1Connection

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class RequestParser:
    """Makes exchanges of bytes.

    ``exchange``: the one whose request is not complete, or None. ``refusal``: of the last request, or None.
    """

    __slots__ = (
        "_connection", "_head_bytes", "_headers", "_limits", "_parser", "_refused", "_target",
        "exchange", "refusal",
    )  # fmt: skip

    def __init__(self, connection: Http1Connection, limits: Settings) -> None:
        self._connection = connection
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self.exchange: ClientExchange | None = None
        self.refusal: Refusal | None = None
        # Of the head that comes in. ``_head_bytes``: its bytes, or those beside the body in its chunks.
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0
        # The refused request, as far as it could be read.
        self._refused: Request | None = None

    def feed(self, data: bytes) -> bytes | None:
        """Parse. Returns None, or the bytes behind a request for another protocol, where parsing has stopped."""
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self.refusal = self.refusal or malformed(str(error).lower())
            return None
        if self._connection.phase is IDLE:
            self._head_bytes = 0  # Empty lines between requests are nothing (RFC 9112 section 2.2).
        elif self._head_bytes > self._limits.max_header_bytes and not self.refusal:
            too_much = malformed("there is too much beside the body in its chunks")
            self.refusal = too_much if self.exchange else headers_too_large(self._limits)
        return None

    def restart(self) -> None:
        """Parse HTTP again after a stop: httptools' parser takes nothing more, and a new one does."""
        self._parser = httptools.HttpRequestParser(self)
        if self.exchange:
            framing = [b"%b: %b\r\n" % pair for pair in self.exchange.request.headers if pair[0] in _FRAMING]
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self.exchange.trailers = []

    def refused_request(self) -> Request:
        """Return the refused request as far as it was read, for the log."""
        # Without a byte of the target, this may be the method of the request before.
        method = self.method if self._target else ""
        peer, scheme = self._connection.peer, self._connection.scheme
        return self._refused or Request(method, self._target, self._headers, peer, scheme)

    @property
    def method(self) -> str:
        """The method read last."""
        return self._parser.get_method().decode()

    def close(self) -> None:
        """Drop httptools' parser and the connection, which refer to this object: reference counts then free all."""
        del self._parser, self._connection

    # httptools' side.

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._connection.phase is IDLE or self._connection.phase is NEW:
            self._connection.phase = HEAD

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        if self.exchange is None:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer behind a body."""
        # httptools leaves the white space behind a value.
        pair = (name.lower(), value.rstrip())
        if self.exchange is None:
            self._headers.append(pair)
        elif len(self.exchange.trailers) >= self._limits.max_headers:
            self.refusal = malformed("a body has too many trailers")
        elif not self.refusal:
            self.exchange.trailers = [*self.exchange.trailers, pair]

    def on_headers_complete(self) -> None:
        """Make an exchange of the head, or refuse it."""
        connection = self._connection
        if connection.phase is not HEAD or self.refusal:
            return
        parser = self._parser
        version = parser.get_http_version()
        target, headers = self._target, self._headers
        self._target, self._headers = b"", []
        try:
            request, closes = check(parser.get_method(), target, headers, version, self._head_bytes, self._limits)
        except Refusal as refusal:
            self.refusal = refusal
            self._refused = Request(self.method, target, headers, connection.peer, connection.scheme)
            return
        request.client, request.scheme = connection.peer, connection.scheme
        # Bytes of a body that came with the head count for the body, but only httptools finds where chunks begin.
        self._head_bytes = max(0, self._head_bytes - head_size(target, headers)) if request.chunked else 0
        if request.body:
            connection.phase = AWAIT_CONTINUE if request.expects else BODY
        self.exchange = connection.add_exchange(request, version, closes)

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._head_bytes = overhead(self._head_bytes, len(piece))
        if self.exchange and not self.refusal:
            connection = self._connection
            connection.phase = BODY
            connection.body.received += len(piece)
            self.exchange.feed(piece)

    def on_message_complete(self) -> None:
        """End the request."""
        exchange = self.exchange
        if exchange is None or self.refusal:
            return
        if exchange.request.body and self._parser.should_upgrade():
            return  # httptools takes no body after an Upgrade; see ``restart``.
        self.exchange = None
        self._head_bytes = 0
        self._connection.phase = SWITCHING if exchange.request.upgrade else DONE if exchange.closes else IDLE
        exchange.complete_request()
