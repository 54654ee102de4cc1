"""What bytes of a client cost at most, for each parser that they reach: CPU time grows with them, and no faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.chunked import ChunkedReader, MalformedChunk
from balancer.http.proxy_protocol import Malformed, parse
from balancer.http.request import Request
from balancer.http.request_headers import RequestHeaders
from balancer.http.simple_heads import read_request
from balancer.http.validation import check
from balancer.policies import make_policy
from balancer.routing.path_safety import most_permissive, resolve_harmless
from tests.support.nought import Nought
from tests.support.policies import members, one
from tests.support.routes import request as routed
from tests.support.routes import table

# Bytes of one call: what a client may send in a head by default. The CPU time that each byte may take, in turns of an
# empty loop, which a slow or busy machine slows down as well: the slowest parser here takes 12 of them. Those that an
# audit found took 30 to 60.
SIZE = 16 * 1024
LIMIT = 24

LIMITS = Settings(max_uri_bytes=2 * SIZE, max_header_bytes=4 * SIZE, max_headers=SIZE)
trusting = RequestHeaders((ip_network("10.0.0.0/8"),))
routes = table("/api", "/")
sticky = make_policy(Settings(sticky_cookie="member"), Nought(), lambda: 0.0)
sticky.build(members(1, 1))


def cookie(value: bytes) -> None:
    """All that a request costs with this cookie: it is read for the choice, and again for the response."""
    request = Request("GET", b"/", [(b"cookie", value)], "10.0.0.1", "http")
    sticky.response_headers(request, one(sticky, request))


def headers(name: bytes) -> Callable[[bytes], object]:
    return lambda value: trusting([(name, value)], "10.0.0.1", "http", b"a")


def simple(lines: bytes) -> None:
    """Read a head in the lane for simple ones, without its limits, and write its lines for a member."""
    request = read_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n\r\n", None, "10.0.0.1", "http", LIMITS)
    if request:
        trusting.lines(request)


def chunked(data: bytes) -> None:
    ChunkedReader().feed(data)


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "slashes": (most_permissive, b"/"),
    "segments": (most_permissive, b"/a"),
    "segments with a parameter": (most_permissive, b"/abcdefghijkl;m"),
    "a segment": (most_permissive, b"a"),
    "escapes": (resolve_harmless, b"%41"),
    "escapes of separators": (resolve_harmless, b"%2f"),
    "percent signs": (resolve_harmless, b"%"),
    "escapes, each behind a letter": (resolve_harmless, b"a%41"),
    "escapes in every reading": (most_permissive, b"a%41"),
    "escapes of slashes in every reading": (most_permissive, b"a%2f"),
    "percent signs in every reading": (most_permissive, b"%"),
    "escapes in segments": (most_permissive, b"/%41"),
    "a path to be routed": (lambda path: routes.find(routed("a", "/api" + path.decode())), b"/"),
    "semicolons of a cookie": (lambda value: cookie(b"member2" + value), b";"),
    "spaces of a cookie": (lambda value: cookie(b"member2;" + value), b" "),
    "names in a cookie": (cookie, b"member2;"),
    "elements of Forwarded": (headers(b"forwarded"), b"for=a,"),
    "elements of X-Forwarded-For": (headers(b"x-forwarded-for"), b"1.2.3.4,"),
    "marks of CDN-Loop": (headers(b"cdn-loop"), b"a,"),
    "a host": (lambda host: check(b"GET", b"/", [(b"host", host)], "1.1", SIZE, LIMITS), b"a.%41"),
    "a URI": (lambda uri: check(b"GET", b"/" + uri, [(b"host", b"a")], "1.1", SIZE, LIMITS), b"/a"),
    "commas of Connection": (
        lambda value: check(b"GET", b"/", [(b"host", b"a"), (b"connection", value)], "1.1", SIZE, LIMITS),
        b",",
    ),
    "lines of a simple head": (simple, b"a: b\r\n"),
    "lines of a simple head, the last of them not": (lambda lines: simple(lines + b"a\r\n"), b"a: b\r\n"),
    "a name in a simple head": (simple, b"a"),
    "a value in a simple head": (lambda value: simple(b"a: " + value), b": "),
    "forwarding in a simple head": (simple, b"X-Forwarded-For: 1.2.3.4\r\n"),
    "options in a simple head": (simple, b"Connection: keep-alive\r\n"),
    "a PROXY header": (lambda data: parse(b"PROXY TCP4 " + data), b"1"),
    "chunks of ten bytes": (chunked, b"a\r\n0123456789\r\n"),
    "an extension of a chunk": (lambda data: chunked(b"1;" + data + b"\r\n"), b"a"),
    "extensions of a chunk": (lambda data: chunked(b"1" + data + b"\r\n"), b";a=b"),
    "quotes in an extension": (lambda data: chunked(b'1;a="' + data), b'\\"'),
}


@pytest.mark.parametrize("name", PARSERS)
def test_cpu_time_of_a_parser_grows_with_the_bytes_and_no_faster(name: str) -> None:
    parser, piece = PARSERS[name]
    data = (piece * SIZE)[:SIZE]

    def parse_all() -> None:
        try:
            parser(data)
        except (Refusal, Malformed, MalformedChunk):
            pass

    def loop() -> None:
        for _ in data:
            pass

    assert min(seconds(parse_all) / seconds(loop) for _ in range(5)) < LIMIT


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    for _ in range(5):
        work()
    return (time.process_time() - began) / 5
