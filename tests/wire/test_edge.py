"""Our own front end: what it refuses, what it lets pass, what it bounds. Each case is bytes on a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from balancer import edge
from balancer.settings import Settings
from tests.support import wire
from tests.support.wire import OK, Connection, Member, balance, eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def answer_all(connection: Connection) -> None:
    """A member that reads whole requests, bodies too, and answers each."""
    while True:
        head = await connection.head()
        if b"expect: 100-continue" in head:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            await connection.until(b"0\r\n\r\n")
        elif b"content-length: " in head:
            await connection.exactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await connection.send(OK)


LIMIT = Settings()

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"

MALFORMED = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a host with a wrong port": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "an absolute target with a user": b"GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "an absolute target of another scheme": b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a target without a slash": b"GET index HTTP/1.1\r\nHost: h\r\n\r\n",
    "an asterisk for GET": b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
    "a folded field": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "a folded field at the beginning": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "a bare CR in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "a bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "a bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "a NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "a control character in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
    "a DEL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "a space in a name": b"GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n",
    "an empty name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "a field without a colon": b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "a name with a parenthesis": b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\nx",
    "a signed length": POST + b"Content-Length: +1\r\n\r\nx",
    "a negative length": POST + b"Content-Length: -1\r\n\r\nx",
    "a length in hexadecimal": POST + b"Content-Length: 0x1\r\n\r\nx",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\nx",
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunks and a length of 0": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks in two fields": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "another coding before the chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "a vertical tab in the coding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "HTTP/2.0 in a request line": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
async def test_what_is_ambiguous_is_refused_and_nobody_sees_it(request_bytes: bytes, cut: bool) -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        if cut:
            for index in range(len(request_bytes)):
                await client.send(request_bytes[index : index + 1])
                await asyncio.sleep(0)
        else:
            await client.send(request_bytes + GET)
        answer = await client.to_end()
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
        assert b"\r\nx-balancer-error: " in answer
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert member.received == []


BAD_BODIES = {
    "a size that is none": b"x\r\nabc\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "a signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "a size with a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "an empty size": b"\r\nabc\r\n0\r\n\r\n",
    "more than the size": b"2\r\nabc\r\n0\r\n\r\n",
    "a bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "a bare LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "a space after the size": b"3 \r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_cannot_be_framed_ends_in_400_and_no_second_request(body: bytes) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body + GET)
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-balancer-error: malformed_request\r\n" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not any(b"GET" in it or b"0\r\n\r\n" in it for it in member.received)


LIMITS = {
    "a long target": (b"GET /" + b"x" * LIMIT.max_target + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
    "many fields": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * LIMIT.max_fields + b"\r\n", b"431"),
    "a large head": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"y" * 1000) * 40 + b"\r\n", b"431"),
    "a field without end": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 2 * LIMIT.max_head, b"431"),
    "a target without end": (b"GET /" + b"y" * 2 * LIMIT.max_head, b"431"),
}


@pytest.mark.parametrize(("request_bytes", "status"), LIMITS.values(), ids=LIMITS.keys())
async def test_a_head_is_bounded(request_bytes: bytes, status: bytes) -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(request_bytes)
        assert (await client.to_end()).startswith(b"HTTP/1.1 " + status)
        assert member.received == []


PASSED = {
    "an asterisk for OPTIONS": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n"),
    "a URL, whose host counts": (
        b"GET http://b:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x?y HTTP/1.1\r\nhost: b:81\r\n",
    ),
    "a URL without a path": (b"GET http://b?y HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /?y HTTP/1.1\r\nhost: b\r\n"),
    "an IPv6 host": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"GET / HTTP/1.1\r\nhost: [::1]:80\r\n"),
    "an uncommon method": (b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROPFIND / HTTP/1.1\r\nhost: a\r\n"),
    "obs-text": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\tb\r\n\r\n", b"host: a\r\nx: \xff\tb\r\n"),
    "two spaces in the request line": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n"),
    "an empty line first": (b"\r\n" + GET, b"GET / HTTP/1.1\r\nhost: a\r\n"),
    "an upgrade that nobody offers": (
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        b"Content-Length: 3\r\n\r\nabc",
        b"content-length: 3\r\n",
    ),
}


@pytest.mark.parametrize(("request_bytes", "arrived"), PASSED.values(), ids=PASSED.keys())
async def test_what_is_sound_passes(request_bytes: bytes, arrived: bytes) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await client.send(request_bytes)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(2) == b"ok"
        assert member.received[0].count(arrived) == 2


async def test_requests_in_one_packet_are_answered_in_order() -> None:
    async def slow_first(connection: Connection) -> None:
        while True:
            head = await connection.head()
            path = head.split(b" ")[1]
            await asyncio.sleep(0.1 if path == b"/0" else 0)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + path)

    async with Member(slow_first) as member, balance(member) as running, running.client() as client:
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(9)))
        for number in range(9):
            await client.head()
            assert await client.exactly(2) == b"/%d" % number


async def test_a_body_may_follow_while_the_request_before_it_is_answered() -> None:
    async def slow(connection: Connection) -> None:
        while True:
            head = await connection.head()
            if head.startswith(b"GET"):
                await asyncio.sleep(0.2)
            else:
                await connection.exactly(3)
            await connection.send(OK)

    async with Member(slow) as member, balance(member) as running, running.client() as client:
        await client.send(GET + POST + b"Content-Length: 3\r\n\r\na")
        await asyncio.sleep(0.05)
        await client.send(b"bc")
        for _ in range(2):
            await client.head()
            assert await client.exactly(2) == b"ok"


@pytest.mark.parametrize("asks", [b"", b"Expect: 100-continue\r\n"])
async def test_a_client_that_asks_is_told_to_go_on(asks: bytes) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await client.send(POST + asks + b"Content-Length: 3\r\n\r\n")
        if asks:
            assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_what_came_before_a_malformed_request_is_answered_first() -> None:
    async with Member() as member, balance(member) as running:
        answer = await running.exchange(GET + GET + b"GET / HTTP/1.1\r\n\r\n" + GET)
        statuses = [part.split(b" ")[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"200", b"200", b"400"]


async def test_nothing_that_follows_connection_close_is_served() -> None:
    async with Member() as member, balance(member) as running:
        answer = await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GET)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert member.received[0].count(b"GET") == 1


@pytest.mark.parametrize(
    ("extra", "kept", "said"),
    [(b"", False, b"connection: close"), (b"Connection: keep-alive\r\n", True, b"connection: keep-alive")],
)
async def test_http_1_0_is_kept_alive_only_if_it_asks(extra: bytes, kept: bool, said: bytes) -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(b"GET / HTTP/1.0\r\n" + extra + b"\r\n")
        assert said in await client.head()
        await client.exactly(2)
        if kept:
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            await client.head()
        assert (await client.to_end()).endswith(b"ok")


async def test_http_1_0_gets_a_body_of_unknown_length_until_close() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async with Member(script) as member, balance(member) as running:
        answer = await running.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.endswith(b"\r\n\r\nabc")
        assert b"chunked" not in answer


async def test_a_client_that_has_closed_its_side_gets_its_answer() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        client.writer.write_eof()
        assert (await client.to_end()).endswith(b"ok")


async def test_a_refusal_in_the_middle_of_an_upload_is_read_by_the_client() -> None:
    async def refuse(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(1)

    async with Member(refuse) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
        assert (await client.to_end()).endswith(b"\r\n\r\nno")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits of tenths of seconds."""
    for name in ("head_timeout", "keepalive_timeout", "idle_timeout"):
        monkeypatch.setitem(wire.defaults, name, 0.3)
    monkeypatch.setattr(edge, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(edge, "SWEEP_SECONDS", 0.05)
    yield


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
async def test_a_head_has_to_come_in_time(begun: bytes) -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(begun)
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"x-balancer-error: request_timeout\r\n" in answer


@pytest.mark.usefixtures("impatient")
async def test_a_head_that_trickles_in_has_no_more_time() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(b"GET /")
        answering = asyncio.create_task(client.to_end())
        for _ in range(25):
            if answering.done():
                break
            client.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert (await answering).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")
async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        assert await client.to_end() == b""
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        assert (await client.to_end()).endswith(b"ok")


@pytest.mark.usefixtures("impatient")
async def test_a_body_has_to_go_on() -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 408 ")
        await running.idle()


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def flood(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(100):
            await connection.send(bytes(1_000_000))

    async with Member(flood) as member, balance(member) as running, running.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        await eventually(lambda: len(running.records) == 1)
        assert running.records[0].error == "client_gone"


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_takes_long_is_waited_for() -> None:
    async def slow(connection: Connection) -> None:
        await connection.head()
        await asyncio.sleep(1)
        await connection.send(OK)

    async with Member(slow) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await client.head()
        assert await client.exactly(2) == b"ok"
