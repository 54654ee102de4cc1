"""A connection to a member without a socket: its phases, how it shows itself, and what ends with an exchange."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from balancer.errors import ConnectionDied
from balancer.http.headers import NO_FIELDS
from balancer.loop_time import loop_time
from balancer.outbox import outbox
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.connection import READ_SIZE, SLOW_SECONDS, SMALL_READ_SIZE, MemberConnection, PoolCallbacks
from balancer.upstream.exchange import MemberExchange
from balancer.upstream.phase import (
    ACTIVE,
    CLOSED,
    IDLE,
    TUNNEL,
    Phase,
)
from balancer.upstream.response import start_upload

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rot13\r\n\r\n"


class Socket:
    def setsockopt(self, *_: object) -> None: ...

    def getsockopt(self, *_: object) -> bytes:
        raise OSError("not a socket")


class Transport(asyncio.Transport):
    """Takes what is written, and notes how it is closed and whether it reads."""

    def __init__(self) -> None:
        super().__init__({"socket": Socket()})
        self.written = b""
        self.ended = ""
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.ended = "close"

    def abort(self) -> None:
        self.ended = "abort"

    def is_closing(self) -> bool:
        return bool(self.ended)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Callbacks(PoolCallbacks):
    def __init__(self) -> None:
        self.clock = loop_time()
        self.outbox = outbox()
        self.last_byte_at = 0.0
        self.calls: list[str] = []

    def ended(self, connection: MemberConnection) -> None:
        self.calls.append("ended")

    def lost(self, connection: MemberConnection) -> None:
        self.calls.append("lost")


class Connected:
    """A connection with its surroundings."""

    def __init__(self) -> None:
        self.callbacks = Callbacks()
        self.transport = Transport()
        self.connection = MemberConnection(Address("10.0.0.9", 80), Timeouts(1, 2, 3), self.callbacks)
        self.connection.connection_made(self.transport)

    def begin(self, *, is_head: bool = False, may_switch: bool = False, turn_ends: bool = True) -> MemberExchange:
        response = MemberExchange(self.connection, is_head, True, may_switch, None)
        self.connection.begin(response, GET)
        if turn_ends:
            self.callbacks.outbox.flush()
        return response

    @property
    def next_read(self) -> int:
        """Bytes that the next read brings at most."""
        return len(self.connection.get_buffer(-1))

    def feed(self, data: bytes) -> None:
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))

    @property
    def phase(self) -> Phase:
        return self.connection.phase


class Body:
    """A request's body whose next piece never comes."""

    ended = False
    trailers = NO_FIELDS

    async def read(self) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


async def test_exchange_with_keep_alive_returns_the_connection_to_idle() -> None:
    it = Connected()
    for count in (1, 2, 3):  # The third response is answered from the heads that have come before.
        response = it.begin()
        assert it.phase is ACTIVE
        it.feed(OK)
        assert (it.phase, response.complete, response.take()) == (IDLE, True, b"ok")
        assert it.callbacks.calls == ["ended"] * count
    assert it.transport.written == 3 * GET


async def test_request_is_written_at_the_end_of_the_turn() -> None:
    it = Connected()
    it.begin(turn_ends=False)
    assert it.transport.written == b""
    await asyncio.sleep(0)
    assert it.transport.written == GET


async def test_connection_that_ends_before_the_request_is_written_has_had_no_byte_of_it() -> None:
    it = Connected()
    response = it.begin(turn_ends=False)
    it.connection.connection_lost(None)
    with pytest.raises(ConnectionDied) as caught:
        await response.wait_for_head()
    assert not caught.value.sent
    await asyncio.sleep(0)
    assert (it.transport.written, it.phase) == (b"", CLOSED)


async def test_bytes_that_come_before_the_request_is_written_answer_no_request() -> None:
    it = Connected()
    response = it.begin(turn_ends=False)
    it.feed(OK)
    with pytest.raises(ConnectionDied) as caught:
        await response.wait_for_head()
    assert not caught.value.sent
    await asyncio.sleep(0)
    assert (it.transport.written, it.transport.ended, it.phase) == (b"", "abort", CLOSED)


async def test_request_that_is_given_up_in_the_turn_is_not_written() -> None:
    it = Connected()
    it.begin(turn_ends=False)
    it.connection.abort()
    await asyncio.sleep(0)
    assert it.transport.written == b""


async def test_response_with_connection_close_closes_the_connection() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    assert response.complete and response.closes
    assert (it.phase, it.transport.ended, it.callbacks.calls) == (CLOSED, "abort", ["lost"])


async def test_switch_of_protocols_makes_a_tunnel_that_closes_in_order() -> None:
    it = Connected()
    response = it.begin(may_switch=True)
    it.feed(SWITCH + b"one")
    assert (it.phase, response.upgrade, response.take()) == (TUNNEL, b"rot13", b"one")
    await response.write(b"two")
    await response.close()
    assert (it.phase, it.transport.ended, it.transport.written) == (CLOSED, "close", GET + b"two")


async def test_switch_that_no_request_asks_for_closes_the_connection() -> None:
    it = Connected()
    it.begin()
    it.feed(SWITCH)
    assert (it.phase, it.transport.ended) == (CLOSED, "abort")


async def test_exchange_leaves_nothing_for_the_next() -> None:
    it = Connected()
    it.begin()
    it.feed(
        b"HTTP/1.1 103 Early Hints\r\nUpgrade: h2\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    assert it.phase is IDLE
    response = it.begin(may_switch=True)
    it.feed(b"HTTP/1.1 103 Early Hints\r\nUpgrade: h2\r\n\r\n")
    it.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n")
    assert (response.upgrade, response.interim_count, response.trailers) == (b"", 2, NO_FIELDS)


async def test_upload_ends_with_its_connection() -> None:
    it = Connected()
    response = MemberExchange(it.connection, False, False, False, None)
    response.uploaded = False
    it.connection.begin(response, GET)
    start_upload(response, Body(), chunked=True, awaits_continue=False)
    await asyncio.sleep(0)
    task = response.upload_task
    assert task and not task.done()
    it.feed(OK)
    assert (it.phase, response.complete) == (CLOSED, True)
    await asyncio.wait([task])
    assert task.cancelled()


async def test_repr_shows_the_phase_and_the_exchange() -> None:
    it = Connected()
    shown = "<MemberConnection 10.0.0.9:80 "
    assert repr(it.connection) == f"{shown}idle, new>"
    response = it.begin()
    assert repr(it.connection) == f"{shown}active, <MemberExchange head>>"
    it.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
    assert repr(it.connection) == f"{shown}active, <MemberExchange body 200 paused>>"
    assert await response.read() == (b"part", True)
    assert repr(it.connection) == f"{shown}active, <MemberExchange body 200>>"
    it.feed(b"whole")
    assert repr(it.connection) == f"{shown}idle, reused>"
    assert repr(response) == "<MemberExchange complete 200>"
    response = it.begin(may_switch=True)
    response.uploaded = False
    assert repr(response) == "<MemberExchange head uploading>"
    response.uploaded = True
    it.feed(SWITCH)
    assert repr(it.connection) == f"{shown}tunnel, <MemberExchange switched 101 paused>>"
    it.connection.connection_lost(ConnectionResetError("reset"))
    assert repr(it.connection) == f"{shown}closed, reused>"
    assert repr(response) == "<MemberExchange failed 101 paused>"


async def test_read_of_many_pieces_is_the_last_of_its_turn_even_where_a_reader_waits() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert await response.read() == (b"a", True)
    for chunks, reads in ((1000, True), (1001, False)):
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        it.feed(b"1\r\na\r\n" * chunks)
        assert it.transport.reading is reads
        assert await reading == (b"a" * chunks, True)
        assert it.transport.reading


async def test_head_and_body_of_64_kib_take_one_read() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + bytes(65536))
    assert response.complete
    assert (len(response.take()), it.transport.reading) == (65536, True)


async def test_read_that_fills_the_buffer_is_the_last_of_its_turn_even_where_a_reader_waits() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0)
    it.feed(bytes(READ_SIZE))
    assert not it.transport.reading
    assert await reading == (bytes(READ_SIZE), True)
    await asyncio.sleep(0)
    assert it.transport.reading


async def test_read_that_fills_the_buffer_does_not_make_a_paused_connection_read_on() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".ljust(READ_SIZE, b"x"))
    await asyncio.sleep(0.01)
    assert (response.paused, it.transport.reading) == (True, False)
    await response.read()
    assert it.transport.reading


async def test_reader_that_lets_bytes_wait_gets_small_reads_until_it_keeps_up() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n1")
    assert it.next_read == READ_SIZE
    await asyncio.sleep(3 * SLOW_SECONDS)
    await response.read()
    assert it.next_read == SMALL_READ_SIZE
    it.feed(b"2")
    await response.read()
    assert it.next_read == READ_SIZE


async def test_response_in_many_pieces_gets_small_reads() -> None:
    it = Connected()
    response = it.begin()
    it.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1001)
    await response.read()
    assert it.next_read == SMALL_READ_SIZE
