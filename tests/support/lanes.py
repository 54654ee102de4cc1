"""Both lanes of heads beside each other: what ``simple_heads`` returns is nothing, or what the other lane says."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import httptools

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.headers import Headers, content_length, read_lines
from balancer.http.request import HeaderBlock, Request
from balancer.http.request_headers import RequestHeaders
from balancer.http.serialize import status_line
from balancer.http.simple_heads import read_request, read_response
from balancer.http.validation import check
from balancer.upstream.response_parser import read_headers

LIMITS = Settings(alias="apps", max_header_bytes=4096, max_uri_bytes=512, max_headers=20)
END = b"\r\n\r\n"
# Of a HeaderBlock.
PARTS = ("forwarding", "host", "id", "length", "lines", "passed")


class Slow:
    """What httptools makes of a head, and the checks of requests."""

    def __init__(self, parser: type[Any], head: bytes) -> None:
        self.target = self.reason = b""
        self.headers: Headers = []
        self.complete = False
        self.parser = parser(self)
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self.complete = False

    def on_url(self, piece: bytes) -> None:
        self.target += piece

    def on_status(self, piece: bytes) -> None:
        self.reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        assert not self.complete, "there are two heads"
        self.complete = True
        self.keeps_alive = self.parser.should_keep_alive()


def slow_request(head: bytes) -> tuple[Request, bool] | None:
    slow = Slow(httptools.HttpRequestParser, head)
    if not slow.complete:
        return None
    version, method = slow.parser.get_http_version(), slow.parser.get_method()
    try:
        return check(method, slow.target, slow.headers, version, len(head), LIMITS)
    except Refusal:
        return None


def read(data: bytes, known: HeaderBlock | None = None) -> Request | None:
    return read_request(data, known, "192.0.2.7", "http", LIMITS)


def told(request: Request | None) -> object:
    """All that is read of a simple head, to be compared."""
    if request is None:
        return None
    block = request.block
    assert block
    line = (request.method, request.target, request.client, request.scheme, request.head_bytes, request.body is None)
    return (*line, request.host, request.id, *(getattr(block, name) for name in PARTS))


def compare_request(head: bytes) -> bool:
    """Whether the head is simple. It is so behind the same head, and before other bytes, as well."""
    head = head[: head.find(END) + len(END)]  # A line break before what the caller has added makes an end of its own.
    simple = read(head)
    again = read(head + head, simple.block if simple else None)
    assert told(again) == told(simple)
    assert simple is None or (again and again.block is simple.block)
    if simple is None:
        return False
    slow = slow_request(head)
    assert slow, "simple, and refused"
    request, closes = slow
    request.client = "192.0.2.7"
    assert not (closes or request.chunked or request.upgrade or request.expects)
    for trusted in ((ip_network("192.0.2.0/24"),), ()):
        for drops in (False, True):
            rules = RequestHeaders(trusted, drop_underscores=drops)
            rules.mark(b"balancer-mark")
            assert read_lines(rules.lines(simple))[0] == rules.pairs(request)
    assert simple.headers == request.headers
    for name in ("method", "target", "client", "scheme", "chunked", "upgrade", "expects", "host", "id"):
        assert getattr(simple, name) == getattr(request, name), name
    assert (simple.body is None) == (request.body is None)
    assert simple.head_bytes == len(head)
    assert simple.block
    assert simple.block.length == (content_length(request.headers) if request.body else 0)
    return True


def compare_response(head: bytes) -> bool:
    """Whether the head is simple."""
    simple = read_response(head)
    if simple is None:
        return False
    slow = Slow(httptools.HttpResponseParser, head)
    assert slow.complete, "simple, and refused"
    headers, has_length, chunked, error = read_headers(slow.headers)
    assert has_length and not chunked and not error and slow.keeps_alive
    assert slow.parser.get_http_version() == "1.1"
    assert (simple.status, simple.length) == (slow.parser.get_status_code(), content_length(headers))
    assert simple.head == head
    assert simple.lines.startswith(status_line(simple.status) + b"\r\n")
    assert status_line(simple.status).endswith(b" " + slow.reason)
    assert read_lines(simple.lines)[0] == headers
    return True
