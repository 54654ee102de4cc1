"""Responses in all their forms, and what a connection to a member may and may not be used for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from balancer.errors import (
    ConnectFailed,
    ConnectionDied,
    ProtocolViolation,
    Refusal,
    ResponseTimeout,
    TruncatedResponse,
    UpstreamError,
)
from balancer.http.headers import NO_FIELDS
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.connection import READ_SIZE
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.native import NativeUpstream
from tests.support.http2 import serve_http2
from tests.support.wire import OK, Connection, Member, balance, eventually

GET = UpstreamRequest("GET", b"/", [(b"host", b"a")])
HEAD = UpstreamRequest("HEAD", b"/", [(b"host", b"a")])


class Pieces:
    """A request body in pieces, each of which may have to be waited for."""

    trailers = NO_FIELDS

    def __init__(self, *pieces: bytes, forever: bool = False) -> None:
        self._pieces = list(pieces)
        self._forever = forever

    @property
    def ended(self) -> bool:
        return not self._pieces and not self._forever

    async def read(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._forever:
            await asyncio.Event().wait()
        return b""


@asynccontextmanager
async def upstream(connect: float = 5, response: float = 5, idle: float = 5) -> AsyncIterator[NativeUpstream]:
    upstream = NativeUpstream(Timeouts(connect, response, idle))
    try:
        yield upstream
    finally:
        await upstream.close()


def answering(*pieces: bytes, then_close: bool = False) -> Member:
    """A member that answers each request with these bytes, in as many writes."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            for piece in pieces:
                await connection.send(piece)
                await asyncio.sleep(0)
            if then_close:
                return

    return Member(script)


async def body_of(upstream: NativeUpstream, member: Member, request: UpstreamRequest = GET) -> bytes:
    response = await upstream.send(member.address, request)
    body, more = b"", True
    try:
        while more:
            piece, more = await response.read()
            body += piece
    finally:
        await response.close()
    return body


FRAMINGS = {
    "content-length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    "1xx": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "1.0 keep-alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
}
CLOSING = {
    "until close": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "1.0 until close": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "Connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("wire", FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "byte by byte"])
async def test_response_that_leaves_the_connection_open(wire: bytes, split: bool) -> None:
    pieces = [wire[at : at + 1] for at in range(len(wire))] if split else [wire]
    async with answering(*pieces) as member, upstream() as up:
        for _ in range(3):
            assert await body_of(up, member) == (b"hello" if b"llo" in wire else b"")
        assert len(member.connections) == 1
        assert (up.active, up.idle) == (0, 1)


@pytest.mark.parametrize("wire", CLOSING.values(), ids=CLOSING)
async def test_response_that_ends_with_its_connection(wire: bytes) -> None:
    async with answering(wire, then_close=True) as member, upstream() as up:
        for _ in range(2):
            assert await body_of(up, member) == b"hello"
        assert len(member.connections) == 2
        assert (up.active, up.idle) == (0, 0)


@pytest.mark.parametrize(
    "fields", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"], ids=["length", "chunked", "neither"]
)
async def test_head_response_has_no_body_whatever_it_says(fields: bytes) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n") as member, upstream() as up:
        for _ in range(2):
            assert await body_of(up, member, HEAD) == b""


async def test_informational_responses_do_not_show_in_the_final_head() -> None:
    async with answering(FRAMINGS["1xx"]) as member, upstream() as up:
        response = await up.send(member.address, GET)
        assert (response.status, response.headers) == (200, [(b"content-length", b"5")])
        await response.close()


async def test_trailers_do_not_show_in_the_head() -> None:
    async with answering(FRAMINGS["trailers"]) as member, upstream() as up:
        response = await up.send(member.address, GET)
        await body_of(up, member)
        assert response.headers == []
        await response.close()


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ],
    ids=["length", "chunked", "bad chunk"],
)
async def test_body_that_ends_early_is_told_apart(wire: bytes) -> None:
    async with answering(wire, then_close=True) as member, upstream() as up:
        with pytest.raises(TruncatedResponse):
            await body_of(up, member)
        assert (up.active, up.idle) == (0, 0)


async def test_reset_is_not_the_end_of_a_body_that_lasts_until_close() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await asyncio.sleep(0.05)
        connection.reset()

    async with Member(script) as member, upstream() as up:
        with pytest.raises(TruncatedResponse):
            await body_of(up, member)


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=["not HTTP", "CL and TE", "two CL", "gzip, chunked", "bad CL", "101 unasked"],
)
async def test_response_that_cannot_be_framed_is_a_violation_and_ends_its_connection(wire: bytes) -> None:
    async with answering(wire) as member, upstream() as up:
        with pytest.raises(ProtocolViolation) as caught:
            await up.send(member.address, GET)
        assert caught.value.sent
        assert (up.active, up.idle) == (0, 0)


async def test_bytes_after_a_complete_response_are_no_answer() -> None:
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    async with answering(OK + poison) as member, upstream() as up:
        for _ in range(2):
            assert await body_of(up, member) == b"ok"
        assert len(member.connections) == 2


async def test_bytes_on_an_idle_connection_close_it() -> None:
    later = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(OK)
        await later.wait()
        await connection.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await connection.to_end()

    async with Member(script) as member, upstream() as up:
        assert await body_of(up, member) == b"ok"
        assert up.idle == 1
        later.set()
        await eventually(lambda: up.idle == 0)


async def test_switch_that_names_no_protocol_gets_no_name_from_an_earlier_response() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nContent-Length: 2\r\n\r\nok")
        await connection.head()
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n")
        await connection.to_end()

    async with Member(script) as member, upstream() as up:
        assert await body_of(up, member) == b"ok"
        response = await up.send(member.address, UpstreamRequest("GET", b"/", [(b"host", b"a")], upgrade=b"rot13"))
        assert (response.status, response.upgrade) == (101, b"")
        assert len(member.connections) == 1
        await response.close()


async def test_connection_that_the_member_closes_while_idle_is_forgotten() -> None:
    async with answering(OK, then_close=True) as member, upstream() as up:
        for _ in range(3):
            assert await body_of(up, member) == b"ok"
            await eventually(lambda: up.idle == 0)


async def test_idle_connections_expire_before_the_members_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.upstream.connection_pool.KEEPALIVE_SECONDS", 0.1)
    async with Member() as member, upstream(idle=0.1) as up:
        await body_of(up, member)
        assert up.idle == 1
        await eventually(lambda: up.idle == 0)
        assert up._sweeper is None


async def test_connection_used_last_is_used_next() -> None:
    async with Member() as member, upstream() as up:
        await asyncio.gather(body_of(up, member), body_of(up, member))
        assert up.idle == 2
        for _ in range(3):
            await body_of(up, member)
        assert sorted(it.received.count(b"GET") for it in member.connections) == [1, 4]


async def test_repeat_asks_for_a_fresh_connection() -> None:
    async with Member() as member, upstream() as up:
        await body_of(up, member)
        await body_of(up, member, UpstreamRequest("GET", b"/", [], fresh=True))
        assert len(member.connections) == 2


async def test_forgotten_member_loses_its_idle_connections_at_once_and_the_others_with_their_exchange() -> None:
    release = asyncio.Event()

    async def script(connection: Connection) -> None:
        if b"/slow" in await connection.head():
            await release.wait()
        await connection.send(OK)
        await connection.to_end()

    async with Member(script) as member, upstream() as up:
        slow = asyncio.create_task(body_of(up, member, UpstreamRequest("GET", b"/slow", [])))
        await eventually(lambda: up.active == 1 and bool(member.received))
        await body_of(up, member)
        assert up.idle == 1
        up.forget(member.address)
        assert up.idle == 0
        release.set()
        assert await slow == b"ok"
        assert (up.active, up.idle) == (0, 0)


async def test_answer_that_comes_before_the_upload_is_complete_is_delivered() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await connection.to_end()

    async with Member(script) as member, upstream() as up:
        request = UpstreamRequest("POST", b"/", [(b"content-length", b"100")], Pieces(b"x", forever=True))
        response = await up.send(member.address, request)
        assert response.status == 413
        assert await response.read() == (b"", False)
        assert (up.active, up.idle) == (0, 0)


@pytest.mark.parametrize(
    ("pieces", "chunked", "wire"),
    [
        ([b"one", b"two"], True, b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"),
        ([b"one", b"two"], False, b"onetwo"),
        ([], True, b"0\r\n\r\n"),
    ],
)
async def test_upload_in_pieces_is_framed_as_its_head_says(pieces: list[bytes], chunked: bool, wire: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(len(wire))
        await connection.send(OK)
        await connection.to_end()

    async with Member(script) as member, upstream() as up:
        request = UpstreamRequest("POST", b"/", [], Pieces(*pieces), chunked=chunked)
        assert await body_of(up, member, request) == b"ok"
        assert member.received[0].endswith(b"\r\n\r\n" + wire)


async def test_request_is_written_to_the_letter() -> None:
    headers = [(b"host", b"a"), (b"x-b", b"1"), (b"x-a", b"caf\xe9"), (b"x-b", b"2")]
    async with Member() as member, upstream() as up:
        await body_of(up, member, UpstreamRequest("GET", b"/a%2Fb/../c?x=%20", headers))
        assert member.received == [
            b"GET /a%2Fb/../c?x=%20 HTTP/1.1\r\nhost: a\r\nx-b: 1\r\nx-a: caf\xe9\r\nx-b: 2\r\n\r\n"
        ]


@pytest.mark.parametrize(
    "request_",
    [
        UpstreamRequest("GET", b"/ HTTP/1.1\r\nX: y", []),
        UpstreamRequest("GET", b"/a b", []),
        UpstreamRequest("GET", b"/", [(b"x", b"1\r\nEvil: 1")]),
        UpstreamRequest("GET", b"/", [(b"x", b"1\nEvil: 1")]),
        UpstreamRequest("GET", b"/", [(b"x", b"\0")]),
    ],
    ids=["target", "space", "CRLF", "LF", "NUL"],
)
async def test_field_cannot_break_out_of_its_line(request_: UpstreamRequest) -> None:
    async with Member() as member, upstream() as up:
        with pytest.raises(Refusal):
            await up.send(member.address, request_)
        assert member.connections == []


async def test_faults_say_whether_a_byte_was_sent() -> None:
    async def drop(connection: Connection) -> None:
        await connection.head()

    async def mute(connection: Connection) -> None:
        await connection.to_end()

    async with Member(drop) as dropping, Member(mute) as silent, upstream(response=0.1) as up:
        gone = Member()
        async with gone:
            pass
        expected: list[tuple[Member, type[UpstreamError], bool]] = [
            (gone, ConnectFailed, False),
            (dropping, ConnectionDied, True),
            (silent, ResponseTimeout, True),
        ]
        for member, fault, sent in expected:
            with pytest.raises(fault) as caught:
                await up.send(member.address, GET)
            assert caught.value.sent is sent
        assert (up.active, up.idle) == (0, 0)


async def test_member_that_does_not_accept_is_given_up_after_the_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = Address("127.0.0.1", full.getsockname()[1])
        # Linux takes one connection more than the backlog says, then ignores whoever knocks.
        crowd = [await asyncio.open_connection(*address) for _ in range(1)]
        async with upstream(connect=0.1) as up:
            with pytest.raises(ConnectFailed, match="no connection within"):
                await up.send(address, GET)
        for _, writer in crowd:
            writer.close()


async def test_member_that_stops_reading_an_upload_is_given_up() -> None:
    async def deaf(connection: Connection) -> None:
        await connection.head()
        await asyncio.Event().wait()

    class Endless:
        ended = False
        trailers = NO_FIELDS

        async def read(self) -> bytes:
            return bytes(65536)

    async with Member(deaf) as member, upstream(response=0.2) as up:
        with pytest.raises(ResponseTimeout):
            await up.send(member.address, UpstreamRequest("POST", b"/", [], Endless(), chunked=True))
        assert up.active == 0


async def test_slow_upload_is_not_the_members_fault() -> None:
    """The response time-out does not run while it is the client that is waited for."""

    class Slow:
        trailers = NO_FIELDS

        def __init__(self) -> None:
            self.left = 4

        @property
        def ended(self) -> bool:
            return not self.left

        async def read(self) -> bytes:
            await asyncio.sleep(0.1)
            self.left -= 1
            return b"x"

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(4)
        await connection.send(OK)

    async with Member(script) as member, upstream(response=0.15) as up:
        request = UpstreamRequest("POST", b"/", [(b"content-length", b"4")], Slow())
        assert await body_of(up, member, request) == b"ok"


async def test_response_that_is_not_read_stops_coming() -> None:
    sent = 0

    async def script(connection: Connection) -> None:
        nonlocal sent
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await connection.send(bytes(65536))
            sent += 65536

    async with Member(script) as member, upstream() as up:
        response = await up.send(member.address, GET)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sum(map(len, response.pieces)) <= 2 * READ_SIZE
        while sent == before:  # The kernel's own buffers are emptied first.
            piece, more = await response.read()
            assert (len(piece) <= 2 * READ_SIZE, more) == (True, True)
        await response.close()


async def test_exchange_cancelled_anywhere_leaks_nothing() -> None:
    body = b"x" * 100_000

    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            if head.startswith(b"POST"):
                await connection.exactly(4)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            await connection.send(body)

    async with Member(script) as member, upstream() as up:
        for round_ in range(3000):
            request = GET
            if round_ % 2:
                request = UpstreamRequest("POST", b"/", [(b"content-length", b"4")], Pieces(b"on", b"ce"))
            task = asyncio.create_task(body_of(up, member, request))
            for _ in range(round_ // 2 % 25):
                await asyncio.sleep(0)
            task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
            assert results[0] == body or isinstance(results[0], asyncio.CancelledError)
            assert up.active == 0
        assert await body_of(up, member) == body
        assert len(asyncio.all_tasks()) <= 2 + len(member.connections)


async def test_http2_to_members_works_behind_the_seam() -> None:
    """httpx's own HTTP/2 with prior knowledge, over the adapter; the member here is the h2 library."""
    async with serve_http2() as address:
        http2 = HttpxUpstream(Timeouts(5, 5, 5), lambda: httpx.AsyncHTTPTransport(http1=False, http2=True))
        async with balance(address, upstream=http2) as running, running.client() as client:
            await client.send(b"GET /over?x=%20 HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
            answer = await client.to_end()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/2 GET /over?x=%20 for shop.example" in answer


@pytest.mark.parametrize("status", [b"299", b"600", b"999"])
async def test_every_status_of_three_digits_comes_over_http2_from_members(status: bytes) -> None:
    async with serve_http2() as address:
        http2 = HttpxUpstream(Timeouts(5, 5, 5), lambda: httpx.AsyncHTTPTransport(http1=False, http2=True))
        async with balance(address, upstream=http2) as running:
            answer = await running.exchange(
                b"GET /status/%b HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n" % status
            )
    assert answer.startswith(b"HTTP/1.1 %b " % status)
