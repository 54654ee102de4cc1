"""The bytes of a client's connection as requests: httptools, and the rules that it leaves to its user.

* A request that is malformed or ambiguous becomes no exchange: ``refusal`` says what is wrong with it, and nothing that
  follows it is read (RFC 9112 section 9.2; ``balancer.http.validation``).
* What comes beside a body in its chunks counts as a head does (``balancer.http.chunked``).
* Behind a request for another protocol, parsing stops (RFC 9110 section 7.8).
* No exception crosses httptools: with its traceback it would keep the connection alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.frontend.client_connection import AWAIT_CONTINUE, BODY, DONE, HEAD, IDLE, NEW, SWITCHING, BodyRate
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

    ``exchange``: the one whose request is not complete, or None; ``body``: how its body comes. ``refusal``: what is
    wrong with the request that came last.
    """

    __slots__ = (
        "_connection", "_head_bytes", "_headers", "_limits", "_parser", "_refused", "_target", "body",
        "exchange", "refusal",
    )  # fmt: skip

    def __init__(self, connection: Http1Connection, limits: Settings) -> None:
        self._connection = connection
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self.exchange: ClientExchange | None = None
        self.refusal: Refusal | None = None
        self.body = BodyRate()
        # Of the head that comes in. ``_head_bytes``: those that it has, or that came beside the body in its chunks.
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0
        # What could still be made of the request that was refused.
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
        """Go on with HTTP where parsing has stopped: httptools' parser takes nothing more, and a new one can."""
        self._parser = httptools.HttpRequestParser(self)
        if self.exchange:
            framing = [b"%b: %b\r\n" % pair for pair in self.exchange.request.headers if pair[0] in _FRAMING]
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self.exchange.trailers = []

    def refused_request(self) -> Request:
        """The request that was refused, as far as it is known. The log has it."""
        # Where nothing of the target has been read, this may be the method of the request before.
        method = self.method if self._target else ""
        peer, scheme = self._connection.peer, self._connection.scheme
        return self._refused or Request(method, self._target, self._headers, peer, scheme)

    @property
    def method(self) -> str:
        """The method that was read last."""
        return self._parser.get_method().decode()

    def close(self) -> None:
        """Let go of httptools' parser and of the connection, which know this object: reference counts then free all."""
        del self._parser, self._connection

    # httptools' side.

    def on_message_begin(self) -> None:
        if self._connection.phase is IDLE or self._connection.phase is NEW:
            self._connection.phase = HEAD

    def on_url(self, url: bytes) -> None:
        if self.exchange is None:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # httptools leaves the white space behind a value to us.
        pair = (name.lower(), value.rstrip())
        if self.exchange is None:
            self._headers.append(pair)
        elif len(self.exchange.trailers) >= self._limits.max_headers:
            self.refusal = malformed("a body has too many trailers")
        elif not self.refusal:
            self.exchange.trailers = [*self.exchange.trailers, pair]

    def on_headers_complete(self) -> None:
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
        # What has come of a body already counts for that, but for its chunks only the parser knows where they begin.
        self._head_bytes = max(0, self._head_bytes - head_size(target, headers)) if request.chunked else 0
        if request.body:
            connection.phase = AWAIT_CONTINUE if request.expects else BODY
        self.exchange = connection.request_received(request, version, closes)

    def on_body(self, piece: bytes) -> None:
        self._head_bytes = overhead(self._head_bytes, len(piece))
        if self.exchange and not self.refusal:
            self._connection.phase = BODY
            self.body.received += len(piece)
            self.exchange.feed(piece)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or self.refusal:
            return
        if exchange.request.body and self._parser.should_upgrade():
            return  # httptools takes no body after an Upgrade; see ``restart``.
        self.exchange = None
        self._head_bytes = 0
        self._connection.phase = SWITCHING if exchange.request.upgrade else DONE if exchange.closes else IDLE
        exchange.complete_request()
