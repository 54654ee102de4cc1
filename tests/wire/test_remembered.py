"""What clients and members send is not remembered where it is long, and ``Connection`` has a bound at every door."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import httpx
import pytest

from balancer.frontend.http1_connection import Http1Connection
from balancer.frontend.http1_exchange import Http1Exchange
from balancer.http.request import Request
from balancer.telemetry.access_log import AccessLog
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.admin import administer
from tests.support.calls import calling
from tests.support.doors import ALL, Door
from tests.support.hostile import CHUNKED, HEAD_MAX, TARGET_MAX
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.proxy_header import LOOPBACK
from tests.support.tls import issue, trusting
from tests.support.wire import OK, Connection, Member, Running, balance, eventually

# One rule at every door.

# Sends a request with these values of ``Connection``, one a field; the status of the answer.
Ask = Callable[[list[bytes]], Awaitable[int]]
Way = Callable[[Member, Path], AbstractAsyncContextManager[Ask]]

HANDSHAKE = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


async def ask_raw(client: Connection, values: list[bytes], more: bytes = b"") -> int:
    fields = more + b"".join(b"Connection: %b\r\n" % it for it in values)
    await client.send(GET.replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n"))
    return int((await client.head()).split(b" ")[1])


def plain(door: Door) -> Way:
    @asynccontextmanager
    async def opened(member: Member, folder: Path) -> AsyncIterator[Ask]:
        async with door.open(member, folder) as here:

            async def ask(values: list[bytes]) -> int:
                return (await here.ask(fields=[(b"Connection", it) for it in values])).status

            yield ask

    return opened


@asynccontextmanager
async def admin(member: Member, folder: Path) -> AsyncIterator[Ask]:
    async with (
        balance(member, stats=Stats()) as running,
        administer(running, admin_bind=Address("0.0.0.0", 9000)) as port,
    ):
        reader, writer = await asyncio.open_connection(*port.address)
        yield lambda values: ask_raw(Connection(reader, writer), values)
        writer.close()


def websocket(door: Door) -> Way:
    @asynccontextmanager
    async def opened(member: Member, folder: Path) -> AsyncIterator[Ask]:
        async with door.open(member, folder) as here, here.client() as client:
            yield lambda values: ask_raw(client, [b"upgrade", *values], HANDSHAKE)

    return opened


@asynccontextmanager
async def own_call(member: Member, folder: Path) -> AsyncIterator[Ask]:
    async def ask(values: list[bytes]) -> int:
        try:
            return (await here.client.get("/", headers=[(b"Connection", it) for it in values])).status_code
        except httpx.LocalProtocolError as error:
            assert "and may have 32" in str(error)
            return 400

    async with calling(member) as here:
        del here.client.headers["connection"]
        yield ask


def names(first: int, count: int) -> bytes:
    return b", ".join(b"x-%d" % number for number in range(first, first + count))


# HTTP/2 has no such field.
PLAIN: dict[str, Way] = {
    **{name: plain(door) for name, door in ALL.items() if not door.speaks_http2},
    "own call": own_call,
    "admin": admin,
}
# Whose handshake is for another test.
WAYS: dict[str, Way] = {
    **PLAIN,
    "WebSocket": websocket(ALL["HTTP/1.1"]),
    "WebSocket through ASGI": websocket(ALL["ASGI"]),
}

WITHIN = [[names(0, 32)], [names(0, 30), names(30, 2)], [names(0, 1)] * 32]
BEYOND = [[names(0, 33)], [names(0, 30), names(30, 3)], [names(0, 1)] * 33, [b"," * 32], [names(0, 3000)]]


@pytest.mark.parametrize("values", WITHIN, ids=lambda it: f"{len(it)} fields")
@pytest.mark.parametrize("way", PLAIN.values(), ids=PLAIN)
async def test_options_of_connection_up_to_the_bound_pass(way: Way, values: list[bytes], tmp_path: Path) -> None:
    async with Member() as member, way(member, tmp_path) as ask:
        assert await ask(values) == 200


@pytest.mark.parametrize("values", BEYOND, ids=lambda it: f"{len(b','.join(it))} bytes in {len(it)} fields")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_options_of_connection_beyond_the_bound_are_refused_at_every_door(
    way: Way, values: list[bytes], tmp_path: Path
) -> None:
    async with Member() as member, way(member, tmp_path) as ask:
        assert await ask(values) == 400
        assert member.received == []


@pytest.mark.usefixtures("each_front")
async def test_websocket_with_two_hosts_is_refused() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        assert await ask_raw(client, [b"upgrade"], HANDSHAKE + b"Host: b\r\n") == 400
        assert member.received == []


# Memory. Each request is another one, and as long as may be.

REQUESTS = 40
LONG = HEAD_MAX - 1024
# What may stay of all of them, in bytes: no more than of sixteen.
KEPT = 512 * 1024


def filled(number: int, size: int = LONG) -> bytes:
    """A text of that size which only this number has."""
    return (b"%05d" % number * (size // 5 + 1))[:size]


def with_field(name: bytes, value: Callable[[int], bytes] = filled) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        return GET.replace(b"\r\n\r\n", b"\r\n%b: %b\r\n\r\n" % (name, value(number)))

    return make


def options(number: int) -> bytes:
    return b",".join(filled(100 * number + it, 1000) for it in range(30))


def many_options(number: int) -> bytes:
    return filled(number).replace(b"0", b",")


KINDS: dict[str, Callable[[int], bytes]] = {
    "Connection": with_field(b"Connection", options),
    "too many options": with_field(b"Connection", many_options),
    "Host": lambda number: GET.replace(b"Host: a", b"Host: " + filled(number)),
    "a host of labels": lambda number: GET.replace(b"Host: a", b"Host: " + filled(number).replace(b"0", b".")),
    "a URL": lambda number: GET.replace(b"GET /", b"GET http://%b/" % filled(number, TARGET_MAX - 100)).replace(
        b"Host: a", b"Host: " + filled(number, TARGET_MAX - 100)
    ),
    "path": lambda number: GET.replace(b"GET /", b"GET /" + filled(number, TARGET_MAX - 1)),
    "method": lambda number: filled(number) + GET,
    "name": lambda number: with_field(b"x" + filled(number), lambda _: b"")(0),
    "many names": lambda number: GET.replace(
        b"\r\n\r\n", b"\r\n" + b"".join(b"x%b: 1\r\n" % filled(100 * number + it, 300) for it in range(90)) + b"\r\n"
    ),
    **{
        name: with_field(name.encode())
        for name in (
            "Cookie", "X-Request-ID", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Prefix", "Forwarded", "TE",
            "Upgrade", "Expect", "Content-Length", "Transfer-Encoding", "Authorization",
        )
    },
    "two hops": with_field(b"X-Forwarded-For", lambda number: b"192.0.2.1, " + filled(number)),
    "many hops": with_field(b"X-Forwarded-For", lambda number: filled(number).replace(b"0", b",")),
}  # fmt: skip


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def traced_bytes() -> int:
    """Bytes in use, but for CPython's table of interned strings, which doubles where pathlib enters one too many."""
    others = tracemalloc.Filter(False, pathlib.__file__)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([others]).traces)


@pytest.fixture
def nowhere() -> Iterator[TextIO]:
    with Path(os.devnull).open("w") as stream:
        yield stream


async def skip_head(connection: Connection) -> bool:
    """Read to the end of a head and keep nothing of it; False at the end of the connection."""
    last = b""
    while last != b"\r\n\r\n":
        piece = await connection.reader.read(65536)
        if not piece:
            return False
        last = (last + piece)[-4:]
    return True


async def forget_all(connection: Connection) -> None:
    while await skip_head(connection):
        await connection.send(OK)


async def send_all(running: Running, make: Callable[[int], bytes], numbers: range) -> None:
    client: Connection | None = None
    for number in numbers:
        if client is None:
            client = Connection(*await asyncio.open_connection(*running.address, limit=4 * HEAD_MAX))
        await client.send(make(number))
        head = await client.reader.readuntil(b"\r\n\r\n")
        if b" 200 OK\r\n" in head:
            await client.reader.readexactly(2)
        else:
            client.close()
            client = None
    if client:
        client.close()
    await running.idle()
    running.records.clear()
    gc.collect()


@pytest.mark.usefixtures("each_front", "traced")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
async def test_long_parts_of_requests_are_not_remembered(make: Callable[[int], bytes], nowhere: TextIO) -> None:
    settings: dict[str, Any] = {"trusted_proxies": LOOPBACK, "policy": "hash", "sticky_cookie": "place"}
    async with (
        Member(forget_all) as member,
        balance(member, observers=[AccessLog(nowhere)], **settings) as running,
    ):
        await send_all(running, make, range(REQUESTS, REQUESTS + 10))
        before = traced_bytes()
        await send_all(running, make, range(REQUESTS))
        assert traced_bytes() - before < KEPT


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("field", [b":method", b":authority", b"x-"])
async def test_long_parts_of_http2_requests_are_not_remembered(field: bytes, tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    plain = {b":method": b"GET", b":scheme": b"https", b":authority": b"a", b":path": b"/"}

    async def send(client: Http2Client, numbers: range) -> None:
        for number in numbers:
            # A method is in upper case.
            text = bytes(b + 17 for b in filled(number, 20_000))
            fields = {b"x-" + text.lower(): b""} if field == b"x-" else {field: text}
            answer = await client.answer(await client.ask_raw(list((plain | fields).items())))
            assert answer.status == 200
            client.answers.clear()

    async with (
        Member(forget_all) as member,
        balance(member, http2=True, **issue(tmp_path)) as running,
        running.client(trusting("h2")) as connection,
    ):
        client = Http2Client(connection)
        client.h2.encoder.encode = partial(client.h2.encoder.encode, huffman=False)  # type: ignore[method-assign]
        await client.begin()
        await send(client, range(100, 105))
        running.records.clear()
        gc.collect()
        before = traced_bytes()
        await send(client, range(40))
        running.records.clear()
        gc.collect()
        assert traced_bytes() - before < KEPT / 2


@pytest.mark.usefixtures("each_way", "traced")
async def test_options_of_members_count_and_are_not_remembered() -> None:
    async def nominate(connection: Connection) -> None:
        number = 0
        while await skip_head(connection):
            number += 1
            named = b"Connection: %b\r\nConnection: %b" % (many_options(number), b"x," * 10_000 + b"x-last")
            fields = named + b"\r\nX-Last: 1\r\nX-End: 2"
            await connection.send(OK.replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n\r\n"))

    async with Member(nominate) as member, balance(member) as running:
        async with running.client() as client:
            await client.send(GET)
            head = await client.head()
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"x-end: 2\r\n" in head
            assert b"x-last" not in head
        await send_all(running, lambda _: GET, range(10))
        before = traced_bytes()
        await send_all(running, lambda _: GET, range(REQUESTS))
        assert traced_bytes() - before < KEPT


REFUSED: dict[str, tuple[bytes, int]] = {
    "a head": (with_field(b"Connection", many_options)(1), 400),
    "no HTTP": (b"\0", 400),
    "a large head": (with_field(b"X", lambda number: filled(number, 2 * HEAD_MAX))(1), 431),
    "a chunk": (CHUNKED + b"x\r\n", 400),
    "a trailer": (CHUNKED + b"0\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
    "a body": (GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 101\r\n\r\n"), 413),
    "a second request": (GET + GET.replace(b"Host: a", b"Host: a b"), 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), REFUSED.values(), ids=REFUSED)
async def test_connection_whose_request_was_refused_is_freed_by_counting_references(
    request_bytes: bytes, status: int
) -> None:
    """The garbage collector comes rarely, and each would wait for it with its head."""

    def left() -> int:
        return sum(issubclass(type(it), Http1Connection | Http1Exchange | Request) for it in gc.get_objects())

    async with Member(forget_all) as member, balance(member, max_body_bytes=100) as running:
        gc.collect()
        gc.disable()
        try:
            before = left()
            for _ in range(3):
                answer = await running.exchange(request_bytes)
                assert b"HTTP/1.1 %d " % status in answer
            running.records.clear()
            await eventually(lambda: left() == before)
        finally:
            gc.enable()
