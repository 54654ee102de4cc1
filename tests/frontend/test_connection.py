"""Our own front end: what it refuses, what it lets pass, what it bounds. Each case is bytes on a socket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import pytest
import pytest_asyncio

from tests.support.hostile import CASES, NEXT, OPEN, POST, Case
from tests.support.messages import GET
from tests.support.wire import OK, Connection, Member, Running, answer_all, balance, eventually


def each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """A test for each case, named after it."""
    open_ = pytest.mark.xfail(reason="still open")
    params = [pytest.param(it, id=it.name, marks=[open_] if it.name in OPEN else []) for it in cases]
    return pytest.mark.parametrize("case", params)


def pieces(data: bytes, cut: bool) -> list[bytes]:
    """All of it, or byte by byte (large ones: in 500 pieces)."""
    step = max(1, len(data) // 500) if cut else len(data)
    return [data[at : at + step] for at in range(0, len(data), step)]


def joined(received: bytes) -> bytes:
    """The body ``abc`` in one chunk, however it came."""
    return received.replace(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n", b"3\r\nabc\r\n")


async def send(client: Connection, data: bytes, cut: bool) -> None:
    """The end may not be taken any more."""
    with suppress(ConnectionError):
        for piece in pieces(data, cut):
            await client.send(piece)
            await asyncio.sleep(0)


in_pieces = pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def untouched() -> AsyncIterator[tuple[Running, Member]]:
    """A balancer for all those requests of which its member must see nothing."""
    async with Member() as member, balance(member) as running:
        yield running, member


@pytest.mark.asyncio(loop_scope="module")
@each(it for it in CASES if it.status and not it.in_body)
@in_pieces
async def test_ambiguous_request_is_refused_and_reaches_no_member(
    case: Case, cut: bool, untouched: tuple[Running, Member]
) -> None:
    running, member = untouched
    async with running.client() as client:
        await send(client, case.request + (b"" if case.unfinished else NEXT), cut)
        answer = await client.to_end()
    seen = len(member.received)
    member.connections.clear()
    assert answer.startswith(b"HTTP/1.1 %d " % case.status)
    assert b"\r\nx-balancer-error: " in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert seen == 0


@each(it for it in CASES if it.status and it.in_body)
@in_pieces
async def test_body_that_cannot_be_framed_ends_in_400_and_no_second_request(case: Case, cut: bool) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await send(client, case.request + (b"" if case.unfinished else NEXT), cut)
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 %d " % case.status)
        assert b"x-balancer-error: malformed_request\r\n" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not any(b"GET" in it or b"0\r\n\r\n" in it for it in member.received)


@each(it for it in CASES if not it.status)
@in_pieces
async def test_sound_request_passes(case: Case, cut: bool) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await send(client, case.request, cut)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(2) == b"ok"
        # Each request has an id of its own, behind its fields.
        received = re.sub(rb"x-request-id: \S+\r\n", b"", joined(member.received[0]))
        assert received.count(case.arrives) == 2


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


async def test_body_may_follow_while_the_request_before_it_is_answered() -> None:
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
async def test_client_that_asks_is_told_to_go_on(asks: bytes) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await client.send(POST + asks + b"Content-Length: 3\r\n\r\n")
        if asks:
            assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_requests_before_a_malformed_one_are_answered_first() -> None:
    async with Member() as member, balance(member) as running:
        answer = await running.exchange(GET + GET + b"GET / HTTP/1.1\r\n\r\n" + GET)
        statuses = [part.split(b" ")[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"200", b"200", b"400"]


async def test_request_behind_connection_close_is_not_served() -> None:
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


async def test_client_that_has_closed_its_side_gets_its_answer() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        client.writer.write_eof()
        assert (await client.to_end()).endswith(b"ok")


async def test_refusal_in_the_middle_of_an_upload_is_read_by_the_client() -> None:
    async def refuse(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(1)

    async with Member(refuse) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
        assert (await client.to_end()).endswith(b"\r\n\r\nno")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
async def test_head_has_to_come_in_time(begun: bytes) -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(begun)
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"x-balancer-error: request_timeout\r\n" in answer


@pytest.mark.usefixtures("impatient")
async def test_head_that_trickles_in_has_no_more_time() -> None:
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
async def test_idle_connection_is_closed_without_a_word() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        assert await client.to_end() == b""
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        assert (await client.to_end()).endswith(b"ok")


@pytest.mark.usefixtures("impatient")
async def test_body_has_to_go_on() -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 408 ")
        await running.idle()


@pytest.mark.usefixtures("impatient")
async def test_client_that_does_not_read_is_cut_off() -> None:
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
async def test_answer_that_takes_long_is_waited_for() -> None:
    async def slow(connection: Connection) -> None:
        await connection.head()
        await asyncio.sleep(1)
        await connection.send(OK)

    async with Member(slow) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await client.head()
        assert await client.exactly(2) == b"ok"


async def test_refused_request_is_in_the_log() -> None:
    async with Member() as member, balance(member) as running:
        await running.exchange(b"GET /x HTTP/1.1\r\nHost: a b\r\n\r\n")
        await running.exchange(b"\x16\x03\x01")
        known, unknown = running.records
        assert (known.request.method, known.request.target, known.status) == ("GET", b"/x", 400)
        assert (unknown.request.target, unknown.status, unknown.error) == (b"", 400, "malformed_request")


async def test_refused_request_with_an_unknown_method_is_in_the_log() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(b"LI")
        await client.send(b"ST /x HTTP/1.1\r\nHost: a b\r\n\r\n")
        await client.to_end()
        (record,) = running.records
        assert (record.request.method, record.request.target, record.status) == ("LIST", b"/x", 400)


async def test_connection_goes_on_behind_an_unknown_method() -> None:
    async with Member(answer_all) as member, balance(member) as running:
        other = GET.replace(b"GET", b"LIST")
        body = b"SEND / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        answer = await running.exchange(other + GET + body + other + b"\r\n" + other + POST + b"\r\n" + last)
        assert answer.count(b"HTTP/1.1 200 ") == 7
        lines = [line for line in b"".join(member.received).split(b"\r\n") if line.endswith(b" HTTP/1.1")]
        methods = [line.split(b" ")[0] for line in lines]
        assert methods == [b"LIST", b"GET", b"SEND", b"LIST", b"LIST", b"POST", b"GET"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [b"L", b"GET", b"LIST"])
async def test_method_has_to_come_in_time(begun: bytes) -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(begun)
        assert (await client.to_end()).startswith(b"HTTP/1.1 408 ")


async def test_rest_of_a_head_is_no_request_of_its_own() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        for _ in range(3):
            await client.send(GET)  # It is remembered.
            await client.head()
            await client.exactly(2)
        await client.send(b"X")
        await asyncio.sleep(0.05)
        await client.send(GET)
        await client.head()
        await client.exactly(2)
        assert member.received[0].count(b"XGET / HTTP/1.1\r\n") == 1


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/2"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY"),
        (b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY"),
    ],
)
async def test_another_protocol_on_the_plain_port_is_named(begun: bytes, words: bytes) -> None:
    async with Member() as member, balance(member) as running:
        answer = await running.exchange(begun)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert words in answer.partition(b"\r\n\r\n")[2]
        assert member.received == []


async def test_request_that_is_refused_has_an_id_too() -> None:
    async with balance() as running:
        await running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        (record,) = running.records
        assert (record.error, bool(record.id)) == ("malformed_request", True)
