"""What ``simple_heads`` returns of a head is nothing, or what httptools and the checks behind it make of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from balancer.config.settings import Settings
from balancer.http.simple_heads import read_request
from tests.support.corpus import MALFORMED, REQUESTS, RESPONSES
from tests.support.lanes import END, LIMITS, compare_request, compare_response, read, told

NAMES = [
    b"Host", b"host", b"Connection", b"Content-Length", b"content-length", b"Keep-Alive", b"Transfer-Encoding", b"TE",
    b"Upgrade", b"Upgrade-Insecure-Requests", b"Expect", b"Trailer", b"Proxy-Authorization", b"Proxy-Connection",
    b"CDN-Loop", b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Proto", b"x-forwarded-host", b"X-Forwarded-Prefix",
    b"X_Forwarded_For", b"X-Request-ID", b"X-Balancer-Error", b"Cookie", b"Set-Cookie", b"Date", b"ETag", b"Accept",
    b"User-Agent", b"Te-x", b"Hosts", b"C", b"Content-Length-X", b"", b"X Y", b"X:", b"traceparent",
]  # fmt: skip
VALUES = [
    b"", b"a", b"a.example:81", b"keep-alive", b"Keep-Alive", b"close", b"keep-alive, x-gone", b"0", b"5", b"05", b"+5",
    b"5, 5", b"1234567890123456", b"chunked", b"trailers", b"100-continue", b"websocket", b"192.0.2.1, 192.0.2.2",
    b"for=192.0.2.1;proto=https", b"https", b"/shop", b"an id", b"a;b=\"c\"", b" a ", b"\ta", b"a\x00", b"a\x7f",
    b"a\xe9", b"a\rb", b"a\nb", b"a\r\n b", b"a" * 600, b"*/*;q=0.8",
]  # fmt: skip
SEPARATORS = st.sampled_from([b": ", b": ", b": ", b": ", b": ", b":", b":  ", b" : ", b":\t", b""])
LINE_ENDS = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b" \r\n", b"\t\r\n", b"\r\r\n"])
LINES = st.builds(
    lambda name, separator, value, end: name + separator + value + end,
    st.sampled_from(NAMES), SEPARATORS, st.sampled_from(VALUES) | st.binary(max_size=8), LINE_ENDS,
)  # fmt: skip
HOSTED = st.just(b"Host: a.example\r\n") | LINES
BLOCKS = st.lists(LINES, max_size=6).map(b"".join)
REQUEST_LINES = st.sampled_from(
    [b"GET / HTTP/1.1\r\n"] * 4
    + [
        b"POST /p?x=%20y HTTP/1.1\r\n", b"HEAD /h HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"LIST / HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n", b"GET /a#b HTTP/1.1\r\n", b'GET /"<>\\^`{|} HTTP/1.1\r\n', b"GET http://a/ HTTP/1.1\r\n",
        b"GET /" + b"a" * 600 + b" HTTP/1.1\r\n", b"GET /\xe9 HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n",
        b"TRACE / HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"PUT //a//b HTTP/1.1\r\n", b"GET / HTTP/1.1\n",
    ]
)  # fmt: skip
STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n"] * 4
    + [
        b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.1 200 Fine\r\n", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200\r\n",
        b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 304 Not Modified\r\n",
        b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 599 X\r\n", b"HTTP/1.1 101 Switching Protocols\r\n",
    ]
)  # fmt: skip


@given(REQUEST_LINES, st.lists(LINES, max_size=2).map(b"".join), HOSTED, BLOCKS)
@example(b"GET / HTTP/1.1\r\n", b"", b"Host: a\r\n", b"X: a\x00\r\n")
@example(b"GET / HTTP/1.1\r\n", b"", b"Host: a\r\n", b"X-Forwarded-: \r\n")
@example(b"GET / HTTP/1.1\r\n", b"X-Request-ID: \r\n", b"Host: a\r\n", b"X-Request-ID: 5\r\n")
@example(b"GET / HTTP/1.1\r\n", b"X-Forwarded-For: 192.0.2.1\r\n", b"Host: a\r\n", b"Forwarded: for=192.0.2.2\r\n")
def test_simple_request_is_what_the_checks_make_of_it(line: bytes, before: bytes, host: bytes, after: bytes) -> None:
    compare_request(line + before + host + after + b"\r\n")


@given(STATUS_LINES, BLOCKS, st.just(b"Content-Length: 5\r\n") | LINES, BLOCKS)
def test_simple_response_is_what_the_parser_makes_of_it(start: bytes, one: bytes, two: bytes, three: bytes) -> None:
    compare_response(start + one + two + three + b"\r\n")


HEADS = [message.partition(END)[0] + END for message in (*REQUESTS.values(), *MALFORMED.values())]


@given(st.sampled_from(HEADS), st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3))
def test_simple_request_with_a_few_other_bytes_is_what_the_checks_make_of_it(
    head: bytes, place: int, piece: bytes, cut: int
) -> None:
    place = min(place, len(head))
    changed = head[:place] + piece + head[place + cut :]
    compare_request(changed.partition(END)[0] + END)


@given(
    st.sampled_from([response.partition(END)[0] + END for response, _ in RESPONSES.values()]),
    st.integers(0, 200),
    st.binary(max_size=3),
    st.integers(0, 3),
)
def test_simple_response_with_a_few_other_bytes_is_what_the_parser_makes_of_it(
    head: bytes, place: int, piece: bytes, cut: int
) -> None:
    place = min(place, len(head))
    changed = head[:place] + piece + head[place + cut :]
    compare_response(changed.partition(END)[0] + END)


@given(REQUEST_LINES, HOSTED, BLOCKS, st.sampled_from([b"", b"X: y\r\n", b"\r\n", END]) | LINES, st.integers(0, 400))
def test_request_behind_another_is_what_it_is_alone(
    line: bytes, host: bytes, rest: bytes, more: bytes, cut: int
) -> None:
    known = read(b"GET /before HTTP/1.1\r\n" + host + rest + b"\r\n")
    for block in (host + rest, host + rest + more, host + more + rest, more + host + rest, host):
        whole = line + block + b"\r\n" + more
        for data in (whole, whole[:cut], whole[: -len(rest) or None]):
            assert told(read(data, known.block if known else None)) == told(read(data))


BROWSER = (
    b"GET /items/7?n=1 HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0.0.0\r\nAccept: text/html,*/*;q=0.8\r\n"
    b"Sec-Fetch-Mode: navigate\r\nReferer: http://shop.example/\r\nAccept-Encoding: br\r\nCookie: a=1\r\n\r\n"
)
POST = b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n"
PROXIED = (
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\n"
    b"X-Forwarded-Host: shop.example\r\nX-Request-ID: 0123456789abcdef\r\n\r\n"
)
NGINX = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 29 Nov 2026 21:37:31 GMT\r\nContent-Type: text/html\r\n"
    b'Content-Length: 4096\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nETag: "1"\r\nSet-Cookie: a=b\r\n\r\n'
)
UVICORN = b"HTTP/1.1 201 Created\r\ndate: Sun, 29 Nov 2026 21:37:31 GMT\r\ncontent-length: 0\r\nte-x: 1\r\n\r\n"
IN_LOWER_CASE = PROXIED.lower().replace(b"get", b"GET").replace(b"http/", b"HTTP/")


@pytest.mark.parametrize("head", [BROWSER, POST, PROXIED, IN_LOWER_CASE])
def test_requests_of_browsers_programs_and_proxies_are_simple(head: bytes) -> None:
    assert compare_request(head)


@pytest.mark.parametrize("head", [NGINX, UVICORN])
def test_responses_of_servers_are_simple(head: bytes) -> None:
    assert compare_response(head)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_is_not_simple(name: str) -> None:
    whole = MALFORMED[name]
    if whole.partition(END)[0] + END == whole:
        assert read_request(whole, None, "", "http", LIMITS) is None


@pytest.mark.parametrize(
    ("limits", "head"),
    [
        ({"max_headers": 8}, BROWSER),
        ({"max_uri_bytes": 10}, BROWSER),
        ({"max_header_bytes": len(BROWSER) - 1}, BROWSER),
    ],
    ids=["headers", "URI", "bytes"],
)
def test_request_beyond_a_limit_is_not_simple(limits: dict[str, Any], head: bytes) -> None:
    assert read_request(head, None, "", "http", Settings(alias="apps")) is not None
    assert read_request(head, None, "", "http", Settings(alias="apps", **limits)) is None
