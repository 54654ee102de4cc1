"""The limits that a setting makes: exactly at the limit all is well, beyond it nobody else has to suffer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from balancer.frontend import client_connection, client_registry, http1_connection, progress
from tests.support.hostile import CHUNKED, POST
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.proxy_header import announced as behind_proxy
from tests.support.tls import issue, trusting
from tests.support.wire import LIMIT, OK, Connection, Member, Running, answer_all, balance

ENOUGH = 10
# More than a request may have to be sent again.
LARGE = 100_000


def announced(size: int, more: bytes = b"") -> bytes:
    """The head of a request with a body of so many bytes."""
    return POST + more + b"Content-Length: %d\r\n\r\n" % size


def chunks(*sizes: int) -> list[bytes]:
    """A chunked body, without its end."""
    return [b"%x\r\n%b\r\n" % (size, b"a" * size) for size in sizes]


END = b"0\r\n\r\n"


async def take(connection: Connection) -> None:
    """A member that reads whole requests, bodies too, and answers each."""
    while True:
        head = await connection.head()
        if b"transfer-encoding: chunked" in head:
            while (size := int(await connection.until(b"\r\n"), 16)) > 0:
                await connection.exactly(size + 2)
            await connection.until(b"\r\n")
        elif b"content-length: " in head:
            await connection.exactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await connection.send(OK)


async def answer(client: Connection) -> bytes:
    """Head and body of the next response."""
    head = await client.head()
    return head + await client.exactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))


def refused(received: bytes, status: int, token: bytes) -> bool:
    return received.startswith(b"HTTP/1.1 %d " % status) and b"\r\nx-balancer-error: %b\r\n" % token in received


# Bodies.


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("asks", [b"", b"Expect: 100-continue\r\n"], ids=["", "Expect"])
async def test_body_that_is_announced_too_large_is_refused_before_it_comes(asks: bytes) -> None:
    async with Member(take) as member, balance(member, max_body_bytes=ENOUGH) as running, running.client() as client:
        await client.send(announced(ENOUGH + 1, asks))
        assert refused(await answer(client), 413, b"body_too_large")
        await running.idle()
        assert member.received == []
        assert [it.error for it in running.records] == ["body_too_large"]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
async def test_body_that_is_announced_too_large_and_comes_at_once_is_refused(warm: bool) -> None:
    async with Member(take) as member, balance(member, max_body_bytes=ENOUGH) as running:
        if warm:  # There is a connection to the member, so that nothing has to be waited for.
            await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        async with running.client() as client:
            await client.send(announced(ENOUGH + 1) + b"a" * (ENOUGH + 1))
            assert refused(await answer(client), 413, b"body_too_large")
        assert not any(b"POST" in it for it in member.received)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("limit", [ENOUGH, LARGE])
async def test_body_that_grows_too_large_is_cut_off(limit: int) -> None:
    async with Member(take) as member, balance(member, max_body_bytes=limit) as running:
        async with running.client() as client:
            await client.send(CHUNKED)
            for piece in chunks(*[limit // 10] * 10, 1):
                await client.send(piece)
                await asyncio.sleep(0)
            assert refused(await answer(client), 413, b"body_too_large")
        await running.idle()
        assert not any(it.endswith(END) for it in member.received)
        assert sum(it.count(b"a") for it in member.received) <= limit + 1000
        # The member is none the worse for it.
        async with running.client() as client:
            await client.send(GET)
            assert (await answer(client)).endswith(b"ok")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("limit", [ENOUGH, 30_000])
async def test_body_that_is_too_large_and_comes_at_once_is_refused(limit: int, warm: bool) -> None:
    async with Member(take) as member, balance(member, max_body_bytes=limit) as running:
        if warm:
            await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        async with running.client() as client:
            await client.send(CHUNKED + b"".join(chunks(limit, 1)) + END)
            assert refused(await answer(client), 413, b"body_too_large")
        await running.idle()
        assert not any(it.endswith(END) for it in member.received)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("limit", [ENOUGH, LARGE])
async def test_body_that_is_just_not_too_large_passes(limit: int) -> None:
    async with Member(take) as member, balance(member, max_body_bytes=limit) as running, running.client() as client:
        for request in (announced(limit) + b"a" * limit, CHUNKED + b"".join(chunks(limit // 2, limit // 2)) + END):
            for _ in range(2):
                await client.send(request)
                assert (await answer(client)).endswith(b"ok")


async def test_body_larger_than_any_buffer_passes_where_there_is_no_limit() -> None:
    async with Member(take) as member, balance(member) as running, running.client() as client:
        await client.send(announced(5_000_000) + b"a" * 5_000_000)
        assert (await answer(client)).endswith(b"ok")


# Connections.


async def is_served(client: Connection) -> bool:
    """Whether a request is answered; otherwise the connection has to be refused, and closed."""
    await client.send(GET)
    received = await answer(client)
    if received.startswith(b"HTTP/1.1 200 "):
        return True
    assert refused(received, 503, b"too_many_connections")
    assert b"\r\nretry-after: 1\r\n" in received
    assert b"\r\nconnection: close\r\n" in received
    assert await client.to_end() == received
    return False


async def is_served_in_the_end(running: Running, host: str) -> None:
    async with asyncio.timeout(LIMIT):
        while True:
            async with running.client(host=host) as client:
                if await is_served(client):
                    return
            await asyncio.sleep(0.01)


async def test_connections_beyond_the_limit_are_refused_until_one_leaves() -> None:
    async with Member() as member, balance(member, max_connections=2) as running:
        async with running.client(host="127.0.0.1") as one, running.client(host="127.0.0.2") as two:
            assert await is_served(one)
            assert await is_served(two)
            for host in ("127.0.0.1", "127.0.0.3"):
                async with running.client(host=host) as beyond:
                    assert not await is_served(beyond)
            # Those who are there go on.
            assert await is_served(one)
            two.close()
            await is_served_in_the_end(running, "127.0.0.3")
        assert b"".join(member.received).count(b"GET") == len([it for it in running.records if it.status == 200])


async def test_connections_of_one_client_beyond_its_limit_are_refused_until_one_leaves() -> None:
    async with (
        Member() as member,
        balance(member, max_connections_per_client=2) as running,
        running.client(host="127.0.0.1") as one,
        running.client(host="127.0.0.1") as two,
    ):
        assert await is_served(one)
        assert await is_served(two)
        async with running.client(host="127.0.0.1") as beyond:
            assert not await is_served(beyond)
        async with running.client(host="127.0.0.2") as another:
            assert await is_served(another)
        one.reset()
        await is_served_in_the_end(running, "127.0.0.1")
        assert await is_served(two)


@pytest.mark.parametrize("name", ["max_connections", "max_connections_per_client"])
async def test_connection_that_was_refused_takes_no_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or those who are refused, and try again, would keep everybody out."""
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", LIMIT)
    limit: dict[str, Any] = {name: 1}
    async with Member() as member, balance(member, **limit) as running, running.client() as one:
        assert await is_served(one)
        async with running.client() as beyond:
            assert not await is_served(beyond)
            one.close()
            async with asyncio.timeout(3):
                await is_served_in_the_end(running, "127.0.0.1")


async def test_client_is_told_that_there_are_too_many_connections_before_it_asks() -> None:
    async with Member() as member, balance(member, max_connections=1) as running, running.client() as one:
        assert await is_served(one)
        async with running.client() as beyond:
            assert refused(await beyond.to_end(), 503, b"too_many_connections")


async def test_clients_behind_a_trusted_proxy_are_told_apart() -> None:
    trusting: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": (ip_network("127.0.0.0/8"),)}
    async with (
        Member() as member,
        balance(member, max_connections_per_client=1, **trusting) as running,
        running.client() as one,
        running.client() as same,
        running.client() as another,
    ):
        for client, source in ((one, b"10.0.0.1"), (same, b"10.0.0.1"), (another, b"10.0.0.2")):
            await client.send(b"PROXY TCP4 %b 10.0.0.9 4711 80\r\n" % source)
            assert await is_served(client) is (client is not same)


@pytest.mark.parametrize("door", ["HTTP/1.1", "TLS", "HTTP/2"])
async def test_addresses_of_one_ipv6_prefix_are_one_client_at_every_door(door: str, tmp_path: Path) -> None:
    if door == "HTTP/2":
        pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    tls = trusting("h2" if door == "HTTP/2" else "http/1.1") if door != "HTTP/1.1" else None
    settings: dict[str, Any] = {"max_connections_per_client": 1, "http2": door == "HTTP/2"}
    if tls:
        settings |= issue(tmp_path)
    async with Member() as member, behind_proxy(member, **settings) as running, AsyncExitStack() as clients:
        for source, is_there in (
            ("TCP6 2001:db8:0:1::7 ::1", True),
            ("TCP6 2001:db8:0:1:ffff::8 ::1", False),
            ("TCP6 2001:db8:0:2::7 ::1", True),
            ("TCP4 192.0.2.7 192.0.2.1", True),
            ("TCP6 ::ffff:192.0.2.7 ::1", False),
            ("TCP6 ::ffff:192.0.2.8 ::1", True),
        ):
            first = f"PROXY {source} 4711 80\r\n".encode()
            client = await clients.enter_async_context(running.client(tls, first))
            if door == "HTTP/2":
                speaker = Http2Client(client)
                await speaker.begin()
                assert speaker.ended is not is_there, source
                if is_there:
                    assert (await speaker.get("/")).status == 200
            else:
                assert await is_served(client) is is_there, source
        # What is passed on and logged is the whole address.
        assert "2001:db8:0:1::7" in [it.request.client for it in running.records]


async def test_prefix_of_one_client_is_a_setting() -> None:
    async with (
        Member() as member,
        behind_proxy(member, max_connections_per_client=1, client_prefix_v6=128) as running,
        running.client(first=b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n") as one,
        running.client(first=b"PROXY TCP6 2001:db8::8 ::1 4711 80\r\n") as other,
    ):
        assert await is_served(one)
        assert await is_served(other)


# What a head may have.


def with_head(size: int) -> bytes:
    """A request whose target, and the bytes of whose fields, are so many."""
    return b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"a" * (size - len(b"/Host: a\r\nX: \r\n")))


def with_fields(count: int) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * (count - 1) + b"\r\n"


def with_target(size: int) -> bytes:
    return b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * (size - 1))


@pytest.mark.parametrize("limit", ["smaller", "larger"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    ("name", "request_of", "limits", "status", "token"),
    [
        ("max_header_bytes", with_head, (2000, 40_000), 431, b"headers_too_large"),
        ("max_headers", with_fields, (20, 400), 431, b"headers_too_large"),
        ("max_uri_bytes", with_target, (300, 20_000), 414, b"uri_too_long"),
    ],
    ids=["max_header_bytes", "max_headers", "max_uri_bytes"],
)
async def test_limits_of_a_head_are_the_settings(
    name: str,
    request_of: Callable[[int], bytes],
    limits: tuple[int, int],
    status: int,
    token: bytes,
    cut: bool,
    limit: str,
) -> None:
    most = limits[limit == "larger"]
    settings: dict[str, Any] = {name: most}
    async with Member() as member, balance(member, **settings) as running, running.client() as client:
        for size in (most, most, most + 100):
            request = request_of(size)
            step = max(1, len(request) // 100) if cut else len(request)
            for at in range(0, len(request), step):
                client.writer.write(request[at : at + step])
                await asyncio.sleep(0)
            received = await answer(client)
            if size == most:
                assert received.endswith(b"\r\n\r\nok")
        assert refused(received, status, token)
        assert str(most).encode() in received.split(b"\r\n\r\n")[1]
        assert len(member.received) == 1
        assert member.received[0].count(b"GET /") == 2


# Time.


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of a body counts from tenths of seconds on."""
    monkeypatch.setattr(progress, "RATE_SECONDS", 0.2)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)


async def trickle(client: Connection, piece: bytes, answered: asyncio.Event) -> None:
    """Send it again and again."""
    with suppress(ConnectionError):
        while not answered.is_set():
            await client.send(piece)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def trickling(client: Connection, piece: bytes) -> AsyncIterator[None]:
    answered = asyncio.Event()
    task = asyncio.create_task(trickle(client, piece, answered))
    try:
        yield
    finally:
        answered.set()
        await task


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("head", "piece"), [(announced(100_000_000), b"a"), (CHUNKED, b"1\r\na\r\n")], ids=["length", "chunks"]
)
async def test_body_that_trickles_in_is_cut_off(head: bytes, piece: bytes) -> None:
    async with Member(take) as member, balance(member, min_body_rate=1_000_000) as running, running.client() as client:
        await client.send(head)
        async with trickling(client, piece):
            received = await client.to_end()
        assert refused(received, 408, b"request_timeout")
        assert b"1000000 bytes/s" in received
        await running.idle()
        assert not any(it.endswith(END) for it in member.received)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("rate", [0, 1000])
async def test_body_that_comes_fast_enough_is_not_cut_off(rate: int) -> None:
    # No rate at all is asked for, or a hundredth of what comes, however slow the machine.
    piece = b"a" if rate == 0 else b"a" * 10_000
    async with Member(take) as member, balance(member, min_body_rate=rate) as running, running.client() as client:
        await client.send(announced(100 * len(piece)))
        for _ in range(100):
            await client.send(piece)
            await asyncio.sleep(0.01)
        assert (await answer(client)).endswith(b"ok")


@pytest.mark.usefixtures("hurried")
async def test_body_that_the_member_does_not_take_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    taking = asyncio.Event()
    size = 30_000_000

    async def hesitate(connection: Connection) -> None:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await taking.wait()
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
        head = await connection.head()
        assert b"content-length: %d\r\n" % size in head
        left = size
        while left:
            left -= len(await connection.reader.read(left))
        await connection.send(OK)

    # So much cannot have come when the member has taken nothing: only that it is not the client's fault saves it.
    async with Member(hesitate) as member, balance(member, min_body_rate=size) as running, running.client() as client:
        sending = asyncio.create_task(client.send(announced(size) + bytes(size)))
        receiving = asyncio.create_task(client.head())
        done, _ = await asyncio.wait([sending, receiving], timeout=2)
        assert not done
        monkeypatch.setattr(progress, "RATE_SECONDS", LIMIT)
        taking.set()
        await sending
        assert (await receiving).startswith(b"HTTP/1.1 200 ")


# Requests ahead of their answers.


def numbered(count: int) -> bytes:
    return b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(count))


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
async def test_requests_ahead_of_their_answers_are_bounded(cut: bool) -> None:
    """Those within the bound are answered in order, the last one says that it is the last, and the others are lost."""
    begun = asyncio.Event()

    async def in_order(connection: Connection) -> None:
        while True:
            path = (await connection.head()).split(b" ")[1]
            await begun.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path) + path)

    async with Member(in_order) as member, balance(member) as running, running.client() as client:
        requests = numbered(3 * http1_connection.PIPELINE_MAX)
        if cut:
            await client.send(requests[:20])
        await client.send(requests[20:] if cut else requests)
        begun.set()
        received = await client.to_end()
    answers = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    # The one that is answered just now does not wait.
    assert http1_connection.PIPELINE_MAX <= len(answers) <= http1_connection.PIPELINE_MAX + 2
    assert [it.split(b"\r\n\r\n")[1] for it in answers] == [b"/%d" % number for number in range(len(answers))]
    assert [b"connection: close" in it for it in answers] == [False] * (len(answers) - 1) + [True]
    assert b"".join(member.received).count(b"GET /") == len(answers)


async def test_requests_ahead_up_to_the_bound_do_not_end_the_connection() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        for _ in range(3):
            await client.send(numbered(http1_connection.PIPELINE_MAX))
            for _ in range(http1_connection.PIPELINE_MAX):
                assert b"connection: close" not in await answer(client)


@pytest.mark.parametrize("together", [1, 90], ids=["apart", "ahead"])
async def test_answers_that_the_client_does_not_read_do_not_pile_up(together: int) -> None:
    """Its requests wait meanwhile. Once it reads, it gets all answers in order."""
    size, count = 60_000, 90

    async def in_order(connection: Connection) -> None:
        while True:
            path = (await connection.head()).split(b" ")[1]
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + path.ljust(size))

    async with Member(in_order) as member, balance(member) as running:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        sock.connect(running.address)
        client = Connection(*await asyncio.open_connection(sock=sock))
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        requests = numbered(count)
        each = len(requests) // count + 1
        for at in range(0, len(requests), together * each):
            await client.send(requests[at : at + together * each])
            await asyncio.sleep(0.005)
        before = -1
        while len(running.records) != before:
            before = len(running.records)
            await asyncio.sleep(0.2)
        (connection,) = running.balancer.proxy.connections or ()
        held = connection.transport.get_write_buffer_size()  # type: ignore[attr-defined]
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for number in range(count):
            assert (await answer(client)).endswith(b"\r\n\r\n" + (b"/%d" % number).ljust(size))
        client.close()
        assert held < 4 * size


# HEAD.


HEADS = {
    "no host": (b"HEAD / HTTP/1.1\r\n\r\n", 400),
    "malformed": (b"HEAD / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "too many fields": (b"HEAD / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    "head without end": (b"HEAD / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000, 431),
    "target too long": (b"HEAD /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "body too large": (b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413),
    "nobody there": (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 503),
}


@pytest.mark.parametrize(("request_", "status"), HEADS.values(), ids=HEADS.keys())
async def test_refusal_of_head_has_no_body(request_: bytes, status: int) -> None:
    async with balance(wait=False, queue_timeout=0, max_body_bytes=ENOUGH) as running, running.client() as client:
        await client.send(request_)
        client.writer.write_eof()
        received = await client.to_end()
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nx-balancer-error: " in received
        assert received.endswith(b"\r\n\r\n")
        assert received.count(b"\r\n\r\n") == 1


@pytest.mark.usefixtures("each_front")
@pytest.mark.parametrize(
    "length",
    [b"18446744073709551611", b"1" + b"0" * 18, b"0" * 5000 + b"1" * 19],
    ids=["-5 in 64 bits", "19 digits", "zeros"],
)
async def test_length_that_no_body_has_is_refused_at_once(length: bytes) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\nabc" % length)
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        assert member.received == []


@pytest.mark.usefixtures("each_front")
async def test_length_with_thousands_of_zeros_is_read() -> None:
    async def answer(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        await connection.send(OK)

    async with Member(answer) as member, balance(member) as running, running.client() as client:
        length = b"0" * 5000 + b"3"
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\nabc" % length)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
