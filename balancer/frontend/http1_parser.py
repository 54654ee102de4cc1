"""The bytes of a client's connection as requests: httptools for heads, and the rules that it leaves to its user.

* httptools gets heads alone, and none that is simple (``balancer.http.simple_heads``). Bodies are framed here: by
  Content-Length, or in chunks (``balancer.http.chunked``).
* A malformed or ambiguous request becomes no exchange: ``refusal`` has the reason, and nothing behind it is read
  (RFC 9112 section 9.2; ``balancer.http.validation``).
* Bytes beside a body in its chunks are bounded as a head is.
* Behind a request for another protocol, and its body, parsing stops (RFC 9110 section 7.8).
* Any token is a method (RFC 9110 section 9.1), and httptools takes those alone that it knows. A head with another one
  goes to it with a substitute in its place.
* No exception crosses httptools: with its traceback it would keep the connection alive.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httptools

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.frontend.client_connection import AWAIT_CONTINUE, BODY, DONE, HEAD, IDLE, NEW, SWITCHING
from balancer.frontend.http1_exchange import Http1Exchange
from balancer.http.chunked import ChunkedReader, MalformedChunk
from balancer.http.headers import Headers, Spelling, content_length, sound_request_id, without_underscores
from balancer.http.request import END_OF_HEAD, HeaderBlock, Request
from balancer.http.simple_heads import KNOWN_MAX, read_request
from balancer.http.validation import TOKEN, check, headers_too_large, malformed

if TYPE_CHECKING:
    from balancer.frontend.http1_connection import Http1Connection

_EMPTY_LINES = re.compile(rb"(?:\r?\n)*+")
_LINE_BREAKS = b"\r\n"
# Refusals of clients in good faith, which may be in the middle of an upload and read the answer behind it.
TOO_LARGE = frozenset({413, 414, 431})
# The first byte of TLS (RFC 8446 section 5.1: a record of the type *handshake*).
TLS_HANDSHAKE = 0x16

# Methods that go to httptools as they are, and the one that takes the place of others. Behind GET, httptools would read
# another protocol as well.
_AS_THEY_ARE = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"PRI"})
_SUBSTITUTE = b"PUT"
# The method with which HTTP/2 begins (RFC 9113 section 3.4). httptools waits for the rest of that behind its head.
_PREFACE = b"PRI"


class RequestParser:
    """Makes exchanges of bytes.

    ``exchange``: the one whose body is not complete, or None. ``refusal``: of the last request, or None.
    ``head_bytes``: of the head that comes in, with the empty lines before it. ``left``: bytes of a body of known length
    that are still to come.
    """

    __slots__ = (
        "_begun", "_chunks", "_connection", "_headers", "_is_split", "_known", "_limits", "_method", "_parser",
        "_refused", "_replaced", "_spelling", "_tail", "_target", "exchange", "head_bytes", "left", "refusal",
    )  # fmt: skip
    __deletable__ = ("_connection", "_parser")

    def __init__(self, connection: Http1Connection, limits: Settings) -> None:
        self._connection = connection
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self.refusal: Refusal | None = None
        # The header block of the last simple head.
        self._known: HeaderBlock | None = None
        # The method read last, and the refused request as far as it was read.
        self._method = ""
        self._refused: Request | None = None

        # Of the head that comes in: its bytes so far, and the last of them, which may begin its end. ``_is_split``: an
        # empty line before it has begun with CR, and its LF is still to come.
        self._target = b""
        self._headers: Headers = []
        self._spelling: Spelling = {}
        self.head_bytes = 0
        self._tail = b""
        self._is_split = False
        # Its method as far as it has come, where it comes in pieces; and a method that a substitute stands for.
        self._begun = self._replaced = b""

        # Of the body that comes in: the reader of its chunks, if it has any.
        self.exchange: Http1Exchange | None = None
        self._chunks: ChunkedReader | None = None
        self.left = 0

    def feed(self, data: bytes) -> bytes | None:
        """Parse. Returns None, or the bytes behind a request for another protocol, where parsing has stopped."""
        while data and not self.refusal and self._connection.phase is not DONE:
            if self._chunks:
                data = self._feed_chunks(self._chunks, data)
            elif self.exchange:
                data = self._feed_body(self.exchange, data)
            else:
                data = self._feed_head(data)
            if self._connection.phase is SWITCHING:
                return data
        return None

    def _feed_head(self, data: bytes) -> bytes:
        """Parse the next head, as far as it has come; return the bytes behind it."""
        if (self._is_split or data[0] in _LINE_BREAKS) and not (data := self._skip_empty_lines(data)):
            return b""
        if not self.head_bytes and (end := self._feed_simple(data)):
            return data[end:]
        tail = self._tail
        found = (tail + data if tail else data).find(END_OF_HEAD)
        end = len(data) if found < 0 else found + len(END_OF_HEAD) - len(tail)
        self._tail = (tail + data)[-3:] if found < 0 else b""
        self.head_bytes += end
        head = data if end == len(data) else data[:end]
        if (found < 0 or tail) and not (head := self._whole_method(head)):
            return b""
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)  # A parser that has stopped takes nothing more.
        except httptools.HttpParserError as error:
            if found < 0 or tail or not self._feed_replaced(head):
                self._refuse(head, error)
        if self.head_bytes > self._limits.max_header_bytes and not (self.refusal or self.exchange):
            self.refusal = headers_too_large(self._limits)
        return data[end:]

    def _feed_simple(self, data: bytes) -> int:
        """Make an exchange of a simple head that is whole; return its bytes, or 0.

        httptools gets nothing of it, and is in the state behind a complete request.
        """
        connection = self._connection
        if not (connection.phase is IDLE or connection.phase is NEW):
            return 0
        request = read_request(data, self._known, connection.peer, connection.scheme, self._limits)
        if request is None or (block := request.block) is None:
            return 0
        try:
            exchange = connection.add_exchange(request, "1.1", False)
        except Refusal:
            return 0  # So it is below.
        self._method = request.method
        if len(block.lines) <= KNOWN_MAX:
            self._known = block
        if block.length:
            connection.phase = HEAD
            connection.phase = BODY
            self.exchange, self.left = exchange, block.length
        else:
            self._complete(exchange)
        return request.head_bytes

    def _whole_method(self, piece: bytes) -> bytes:
        """Return what httptools gets of a piece of a head: nothing until the method is whole, and then a known one."""
        connection = self._connection
        if connection.phase is HEAD and not self._begun:
            return piece
        if TOKEN.fullmatch(piece):
            if not self._begun:
                connection.phase, self._method = HEAD, ""
            self._begun += piece
            if self.head_bytes > self._limits.max_header_bytes:
                self.refusal = headers_too_large(self._limits)
            return b""
        head, self._begun = self._begun + piece, b""
        return self._replace_method(head) or head

    def _feed_replaced(self, head: bytes) -> bool:
        """Parse a whole head with a substitute for the method that httptools refuses; return whether there is one."""
        if self.refusal or self._parser.get_method() == _PREFACE or not (head := self._replace_method(head)):
            return False
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError as error:
            self._refuse(head, error)
        return True

    def _replace_method(self, head: bytes) -> bytes:
        """Return the beginning of a head with a substitute for its method, or b"" where that is no help."""
        found = TOKEN.match(head)
        if not found or found[0] in _AS_THEY_ARE or head[found.end() : found.end() + 1] != b" ":
            return b""
        self._parser = httptools.HttpRequestParser(self)  # The old one may have begun with it.
        self._target, self._headers, self._spelling = b"", [], {}
        self._replaced = found[0]
        return _SUBSTITUTE + head[found.end() :]

    def _refuse(self, head: bytes, error: httptools.HttpParserError) -> None:
        """Refuse a head that httptools does not take, unless it is refused already."""
        if self._parser.get_method() == _PREFACE:
            words = "HTTP/2 is spoken over TLS alone"
        elif head[0] == TLS_HANDSHAKE and self.head_bytes == len(head):
            self._connection.on_tls_handshake()
            words = "this port does not speak TLS: use http://"
        elif self._replaced == b"PROXY":
            words = "a PROXY header is read from trusted proxies alone, and only where it is expected"
        else:
            words = str(error).lower()
        self.refusal = self.refusal or malformed(words)

    def _skip_empty_lines(self, data: bytes) -> bytes:
        """Return the bytes behind the empty lines before a request, which are nothing (RFC 9112 section 2.2).

        They count as bytes of the next head, and cost no call of the parser each.
        """
        connection = self._connection
        if connection.phase is HEAD and not self._is_split:
            return data
        if self._is_split:
            data, self._is_split, connection.phase = b"\r" + data, False, IDLE
        found = _EMPTY_LINES.match(data)
        assert found
        self.head_bytes += found.end()
        if self.head_bytes > self._limits.max_header_bytes:
            self.refusal = headers_too_large(self._limits)
            self._tail = b"\n"  # There is no head.
            return b""
        data = data[found.end() :]
        if data == b"\r":
            self._is_split, connection.phase, data = True, HEAD, b""
        elif data.startswith(b"\r"):
            self.refusal = malformed("a bare CR before a request")
            return b""
        return data

    def _feed_body(self, exchange: Http1Exchange, data: bytes) -> bytes:
        """Pass on a body of known length; return the bytes behind it."""
        left = self.left - len(data)
        piece, rest = (data, b"") if left >= 0 else (data[: self.left], data[self.left :])
        self.left = max(0, left)
        self._pass_on(exchange, piece)
        if not self.left:
            self._complete(exchange)
        return rest

    def _feed_chunks(self, chunks: ChunkedReader, data: bytes) -> bytes:
        """Pass on a body in chunks; return the bytes behind it."""
        exchange = self.exchange
        assert exchange
        try:
            pieces, rest = chunks.feed(data)
        except MalformedChunk as error:
            self.refusal = malformed(str(error))
            return b""
        if pieces:
            self._pass_on(exchange, pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if len(chunks.trailers) > self._limits.max_headers:
            self.refusal = malformed("a body has too many trailers")
        elif chunks.overhead > self._limits.max_header_bytes:
            self.refusal = malformed("there is too much beside the body in its chunks")
        elif chunks.complete:
            drops = self._limits.drop_underscore_headers
            exchange.trailers = without_underscores(chunks.trailers) if drops else chunks.trailers
            self._complete(exchange)
        return rest

    def _pass_on(self, exchange: Http1Exchange, piece: bytes) -> None:
        connection = self._connection
        connection.phase = BODY
        connection.body.received += len(piece)
        exchange.feed(piece)

    def _complete(self, exchange: Http1Exchange) -> None:
        """End a request: all of it has come."""
        self.exchange = self._chunks = None
        self.head_bytes = 0
        self._connection.phase = SWITCHING if exchange.request.upgrade else DONE if exchange.closes else IDLE
        exchange.complete_request()

    def drop_body(self) -> None:
        """Drop the body under way: nothing more of it is read."""
        self.exchange = self._chunks = None
        self.left = 0

    def refused_request(self) -> Request:
        """Return the refused request as far as it was read, for the log."""
        method = self.method if self._target else ""
        peer, scheme = self._connection.peer, self._connection.scheme
        request = self._refused or Request(method, self._target, self._headers, peer, scheme)
        request.id = sound_request_id(request.headers)
        return request

    def meets_upload(self, status: int, waiting: bytes) -> bool:
        """Whether a client that gets a refusal may be in the middle of an upload: its head has an end.

        ``waiting``: bytes of it that are still to be parsed.
        """
        return status in TOO_LARGE and (not self._tail or END_OF_HEAD in waiting)

    @property
    def method(self) -> str:
        """The method read last."""
        return self._method or (self._replaced or self._parser.get_method()).decode()

    def close(self) -> None:
        """Let go of httptools' parser and of the connection, which know this object: reference counts then free all."""
        del self._parser, self._connection

    # httptools' side.

    def on_message_begin(self) -> None:
        if self._connection.phase is IDLE or self._connection.phase is NEW:
            self._connection.phase = HEAD
            self._method = ""

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        lowered = name.lower()
        if lowered != name:
            self._spelling[lowered] = name
        # httptools leaves the white space behind a value.
        self._headers.append((lowered, value.rstrip()))

    def on_headers_complete(self) -> None:
        connection = self._connection
        if connection.phase is not HEAD or self.refusal:
            return
        parser = self._parser
        version = parser.get_http_version()
        target, headers = self._target, self._headers
        method = parser.get_method()
        if self._replaced:
            method, self._replaced = self._replaced, b""
        self._target, self._headers, self._method = b"", [], method.decode()
        try:
            request, closes = check(method, target, headers, version, self.head_bytes, self._limits)
            request.client, request.scheme = connection.peer, connection.scheme
            request.spelling, self._spelling = self._spelling, {}
            exchange = connection.add_exchange(request, version, closes)
        except Refusal as refusal:
            self.refusal = refusal
            self._refused = Request(self._method, target, headers, connection.peer, connection.scheme)
            return
        if not request.body:
            self._complete(exchange)
            return
        self._parser = httptools.HttpRequestParser(self)  # The old one expects the body.
        connection.phase = AWAIT_CONTINUE if request.expects else BODY
        self.exchange = exchange
        if request.chunked:
            self._chunks = ChunkedReader()
        else:
            self.left = content_length(request.headers)
