"""Fair turns: of a client that sends as fast as it can, each turn of the event loop takes a bounded piece."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from balancer.config.settings import Settings
from balancer.frontend import http1_streaming
from balancer.frontend.client_connection import CLOSED, LINGERING
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.http1_connection import Http1Connection
from balancer.frontend.http1_exchange import Http1Exchange
from balancer.frontend.turns import TURN_BYTES
from tests.support.builds import COMPILED
from tests.support.doors import HTTP1 as DOORS_OF_HTTP1
from tests.support.doors import OWN, Door, Reply
from tests.support.flood import HTTP1, HTTP2, MEBI, Flood, Turns, sink
from tests.support.messages import GET
from tests.support.wire import LIMIT, OK, Connection, Member, Running, balance, eventually

# A piece of a flood (of HTTP/2, the first has 64 KiB), what is left of another in the same turn, and requests.
TURN_MAX = 96 * 1024
FLOOD = 24 * MEBI


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, door in OWN.items() for kind in (HTTP2 if door.speaks_http2 else HTTP1)]
)
async def test_flood_takes_a_bounded_piece_of_each_turn_and_requests_go_on(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if COMPILED and kind in HTTP1:
        pytest.skip("what a compiled parser takes in each turn cannot be counted from outside")
    turns = Turns(monkeypatch)
    async with Member(sink) as member, OWN[name].open(member, tmp_path) as here, here.asking() as ask:
        assert await ask() == Reply(200)
        async with turns.counted(), Flood(here, (HTTP1 | HTTP2)[kind], FLOOD) as flood:
            await eventually(lambda: turns.total > MEBI // 2)
            for _ in range(5):
                assert await ask() == Reply(200)
            assert flood.sent < FLOOD
            assert turns.total < FLOOD
        assert turns.most <= TURN_MAX


class Recorded(asyncio.Transport):
    """A transport that notes whether it may read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.ends = False
        self.written = b""

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.ends

    def close(self) -> None:
        self.ends = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


class Bare:
    """A connection of HTTP/1.1 without a socket, to which a test gives bytes."""

    def __init__(self, running: Running, transport: Recorded | None = None) -> None:
        self.transport = transport or Recorded()
        registry = ClientRegistry(running.balancer.proxy, Settings())
        place = registry.places.take("", 0.0)
        assert place
        self.connection = Http1Connection(registry, place)
        self.connection.connection_made(self.transport)

    async def body_by_turns(self) -> list[int]:
        """The bytes of the body that each turn takes, until the transport may read again."""
        by_turn = []
        while not self.transport.reads:
            before = self.connection.body.received
            await asyncio.sleep(0)
            by_turn.append(self.connection.body.received - before)
        return by_turn


@pytest.fixture
async def bare() -> AsyncIterator[Bare]:
    async with Member(sink) as member, balance(member) as running:
        it = Bare(running)
        yield it
        if it.connection.phase is not CLOSED:
            it.connection.connection_lost(None)


CHUNKS = 40_000 * b"1\r\na\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_large_read_is_parsed_16_kib_a_turn_and_nothing_is_read_meanwhile(bare: Bare) -> None:
    bare.connection.data_received(CHUNKED)
    bare.connection.data_received(CHUNKS)
    assert bare.connection.body.received == TURN_BYTES // 6 + 1
    by_turn = await bare.body_by_turns()
    assert sum(by_turn) == 40_000 - TURN_BYTES // 6 - 1
    assert max(by_turn) <= TURN_BYTES // 6 + 1
    assert len(by_turn) >= len(CHUNKS) // TURN_BYTES


async def test_body_of_known_length_is_taken_at_once(bare: Bare) -> None:
    bare.connection.data_received(POST + b"Content-Length: 1000000\r\n\r\n")
    bare.connection.data_received(bytes(250_000))
    assert bare.connection.body.received == 250_000


async def test_end_of_a_body_is_taken_at_once_and_what_follows_in_turns(bare: Bare) -> None:
    bare.connection.data_received(POST + b"Content-Length: 100000\r\n\r\n")
    bare.connection.data_received(bytes(100_000) + CHUNKED + CHUNKS)
    assert bare.connection.body.received == 100_000
    assert not bare.transport.reads


async def test_dropped_bytes_take_turns(bare: Bare) -> None:
    """They are read on behind an upload that is too large: its client reads its answer late."""
    bare.connection.data_received(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % bytes(b"a" * 16385))
    await eventually(lambda: bare.transport.reads)
    assert bare.transport.written.startswith(b"HTTP/1.1 414 ")
    for _ in range(3):
        bare.connection.data_received(bytes(250_000))
        assert not bare.transport.reads
        while not bare.transport.reads:
            await asyncio.sleep(0)


async def test_bytes_wait_while_the_connection_is_paused_and_the_time_is_not_the_clients() -> None:
    answers = asyncio.Event()

    async def waiting(connection: Connection) -> None:
        await connection.head()
        await answers.wait()
        await connection.send(OK)
        await sink(connection)

    async with Member(waiting) as member, balance(member) as running:
        it = Bare(running)
        connection = it.connection
        connection.data_received(GET)
        connection.data_received(CHUNKED)
        connection.data_received(CHUNKS)
        for _ in range(20):
            await asyncio.sleep(0)
        # The request before it is not answered.
        assert (connection.body.received, it.transport.reads) == (TURN_BYTES // 6 + 1, False)
        assert not connection.is_waiting
        answers.set()
        await eventually(lambda: it.transport.reads)
        assert connection.body.received == 40_000
        await eventually(lambda: connection.is_waiting)
        connection.connection_lost(None)


@pytest.mark.parametrize("end", ["close", "lost"])
async def test_bytes_that_wait_are_dropped_at_the_end_of_the_connection(end: str, bare: Bare) -> None:
    bare.connection.data_received(CHUNKED)
    bare.connection.data_received(CHUNKS)
    received = bare.connection.body.received
    if end == "close":
        bare.transport.close()
    else:
        bare.connection.connection_lost(None)
    for _ in range(20):
        await asyncio.sleep(0)
    assert bare.connection.body.received == received


async def test_refusal_among_bytes_that_wait_ends_parsing(bare: Bare) -> None:
    bare.connection.data_received(CHUNKED)
    bare.connection.data_received(CHUNKS + b"nonsense\r\n" + CHUNKS)
    await eventually(lambda: bare.transport.written.startswith(b"HTTP/1.1 400 "))
    assert bare.connection.phase is LINGERING


# Whole exchanges, whose bytes come in one large read.


async def measuring(connection: Connection) -> None:
    """A member that answers with a digest of the body in chunks."""
    await connection.head()
    body = b""
    while size := int(await connection.until(b"\r\n"), 16):
        body += await connection.exactly(size)
        await connection.exactly(2)
    await connection.exactly(2)
    digest = hashlib.sha256(body).hexdigest().encode()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest)


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("door", DOORS_OF_HTTP1.values(), ids=DOORS_OF_HTTP1)
async def test_chunks_in_one_piece_arrive_whole(door: Door, half_closed: bool, tmp_path: Path) -> None:
    rng = Random(1)
    pieces = [rng.randbytes(rng.choice([1, 2, 3, 10, 5000, 40_000])) for _ in range(100)]
    data = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(it), it) for it in pieces) + b"0\r\n\r\n"
    async with (
        Member(measuring) as member,
        door.open(member, tmp_path) as here,
        here.client() as client,
    ):
        await client.send(data)
        if half_closed and client.writer.can_write_eof():
            client.writer.write_eof()
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await client.exactly(64) == hashlib.sha256(b"".join(pieces)).hexdigest().encode()


async def test_requests_in_one_large_piece_are_answered_in_order() -> None:
    async def naming(connection: Connection) -> None:
        while True:
            head = await connection.head()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + head[5:8])

    def get(number: int) -> bytes:
        return b"GET /%03d HTTP/1.1\r\nHost: a\r\nX-Pad: %b\r\n\r\n" % (number, b"a" * (number * 37 % 5000))

    async with Member(naming) as member, balance(member) as running, running.client() as client:
        await client.send(b"".join(map(get, range(90))))
        for number in range(90):
            await client.head()
            assert await client.exactly(3) == b"%03d" % number


ASK_TO_SWITCH = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"


async def test_bytes_behind_a_switch_arrive_whole_and_in_order() -> None:
    behind = Random(2).randbytes(600_000)

    async def switching(connection: Connection) -> None:
        await connection.head()
        await asyncio.sleep(0.05)
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        await connection.send(hashlib.sha256(await connection.exactly(len(behind))).digest())

    async with Member(switching) as member, balance(member) as running, running.client() as client:
        await client.send(ASK_TO_SWITCH + behind)
        assert b" 101 " in await client.head()
        assert await client.exactly(32) == hashlib.sha256(behind).digest()


async def test_requests_behind_a_switch_that_is_declined_are_answered() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        get = b"GET / HTTP/1.1\r\nHost: a\r\nX-Pad: %b\r\n\r\n" % (b"a" * 5000)
        await client.send(ASK_TO_SWITCH + 50 * get)
        for _ in range(51):
            await client.head()
            assert await client.exactly(2) == b"ok"


class Closed(Recorded):
    """A transport that has closed takes nothing more, as uvloop's."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.ends:
            raise RuntimeError("the handler is closed")
        super().write(data)


async def test_client_that_leaves_in_the_turn_of_its_answer_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    start = http1_streaming.start

    async def observed(exchange: Http1Exchange, *head: Any) -> None:
        await start(exchange, *head)
        it.connection.transport.close()
        it.connection.connection_lost(None)
        begun.set()

    async def slow(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await connection.to_end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http1_streaming, "start", observed)
        async with Member(slow) as member, balance(member) as running:
            it = Bare(running, Closed())
            it.connection.data_received(GET)
            async with asyncio.timeout(LIMIT):
                await begun.wait()
            await running.idle()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
