"""What HTTP/2 costs beside payload is bounded, honest clients stay below the bound, and what is refused is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from balancer.frontend import client_connection, client_registry
from balancer.http.http2 import ENHANCE_YOUR_CALM, OVERHEAD_MAX, SECOND_WORTH, Overhead
from tests.support.doors import OWN, Reply
from tests.support.flood import MEBI, PREFACE, Flood, frame, sink
from tests.support.http2 import Http2Client
from tests.support.http2_door import CANCEL, HEAD
from tests.support.wire import OK, Connection, Member, eventually

GOAWAY = bytes((0, 0, 8, 7, 0, 0, 0, 0, 0))
# A request on stream 1 that has a body, as a client's first bytes: POST / of https://a (RFC 7541 appendix B, literals).
POST = frame(0x1, b"\x83\x87\x84\x41\x01a", stream=1, flags=0x4)


DOOR = OWN["HTTP/2"]

FLOODS = {
    "PING": (PREFACE, frame(0x6, b"12345678")),
    "PING acknowledged": (PREFACE, frame(0x6, b"12345678", flags=1)),
    "SETTINGS": (PREFACE, frame(0x4)),
    "table size": (PREFACE, frame(0x4, b"\0\x01\0\0\x10\0")),
    "WINDOW_UPDATE": (PREFACE, frame(0x8, b"\0\0\0\x01")),
    "PRIORITY": (PREFACE, frame(0x2, b"\0\0\0\0\x01", stream=3)),
    "an unknown type": (PREFACE, frame(0x77, b"")),
    "empty DATA": (PREFACE + POST, frame(0x0, stream=1)),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_of_frames_that_carry_nothing_ends_the_connection(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    async with (
        Member(sink) as member,
        DOOR.open(member, tmp_path) as here,
        here.asking() as ask,
        Flood(here, FLOODS[kind], 24 * MEBI) as flood,
    ):
        await eventually(lambda: flood.has_ended)
        assert flood.goaway == ENHANCE_YOUR_CALM
        assert flood.sent < 24 * MEBI
        assert await ask() == Reply(200)
        assert sum(here.reached.values()) == 1
        (line,) = [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]
        assert line.startswith("a client at 127.0.0.1 ")


async def test_stream_of_1_byte_messages_with_an_answer_to_each_is_no_flood(tmp_path: Path) -> None:
    count = 30_000
    each = frame(0x0, b"a", stream=1) + frame(0x6, b"12345678") + 2 * frame(0x8, b"\0\0\0\x01")
    assert count * len(each) > 1.5 * OVERHEAD_MAX

    async def all_of_it(connection: Connection) -> None:
        await connection.head()
        while not connection.received.endswith(b"0\r\n\r\n"):
            connection.received += await connection.reader.read(65536)
        await connection.send(OK)

    async with Member(all_of_it) as member, DOOR.open(member, tmp_path) as here, here.client() as connection:
        client = Http2Client(connection)
        await client.begin()
        stream = await client.ask_raw([(b":method", b"POST"), *HEAD[1:]], end=False)
        reading = asyncio.create_task(client.answer(stream))
        await connection.send(count * each + frame(0x0, stream=1, flags=1))
        answer = await reading
        assert (answer.status, client.goaway, here.reached) == (200, None, {})


# The count, by the second.


def play(seconds: int, second: Callable[[Overhead], None]) -> bool:
    """Whether a connection that does this in every second is ended."""
    overhead = Overhead()
    for now in range(seconds):
        overhead.renew(float(now))
        second(overhead)
        if overhead.is_too_much:
            return True
    return False


def one_byte_calls(overhead: Overhead) -> None:
    for _ in range(5000):
        overhead.receive(10 + 17 + 2 * 13)
        overhead.carry(1)


def small_downloads(overhead: Overhead) -> None:
    for _ in range(5000):
        overhead.receive(9 + 20 + 2 * 13 + 13)
        overhead.carry_head(100)
        overhead.carry(1)


def large_heads(overhead: Overhead) -> None:
    for _ in range(100):
        overhead.receive(9 + 30_000)
        overhead.carry_head(30_000)


def one_large_download(overhead: Overhead) -> None:
    for _ in range(50_000):
        overhead.receive(2 * 13)
        overhead.carry(16_384)


def silent_download(overhead: Overhead) -> None:
    overhead.receive(2 * 17 + 13)


def steady_control(overhead: Overhead) -> None:
    overhead.receive(SECOND_WORTH)


@pytest.mark.parametrize(
    "second", [one_byte_calls, small_downloads, large_heads, one_large_download, silent_download, steady_control]
)
def test_honest_client_is_not_ended(second: Callable[[Overhead], None]) -> None:
    assert not play(100, second)


def test_control_frames_beyond_what_time_makes_up_for_are_too_much() -> None:
    assert play(60, lambda overhead: overhead.receive(2 * SECOND_WORTH))


def test_payload_before_a_flood_does_not_make_up_for_it() -> None:
    overhead = Overhead()
    overhead.carry(10**9)
    overhead.receive(OVERHEAD_MAX + 1)
    assert overhead.is_too_much


# What zttp refuses.


async def test_rapid_reset_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Member() as member, DOOR.open(member, tmp_path) as here, here.client() as connection:
        client = Http2Client(connection)
        await client.begin()
        for _ in range(300):
            stream = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream, HEAD, end_stream=True)
            client.h2.reset_stream(stream, CANCEL)
        await client.flush()
        await client.until(client.told_to_go)
        assert client.goaway
        assert client.goaway.error_code == ENHANCE_YOUR_CALM
        assert here.reached == {"http2_error": 1}
        assert "breaks the rules of HTTP/2" in caplog.text


async def test_malformed_frame_is_counted_and_ends_the_requests_of_its_connection(tmp_path: Path) -> None:
    async with Member(sink) as member, DOOR.open(member, tmp_path) as here, here.client() as connection:
        client = Http2Client(connection)
        await client.begin()
        await client.ask_raw([(b":method", b"POST"), *HEAD[1:]], end=False)
        await eventually(lambda: here.clients.proxy.active == 1)
        await connection.send(frame(0x3, b"\0\0\0\x08", stream=99))
        await client.until(client.told_to_go)
        assert here.reached == {"http2_error": 1}
        await eventually(lambda: here.clients.proxy.active == 0)
        await client.until(lambda: False)
        await eventually(lambda: not here.clients.connections)


async def test_malformed_request_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Member() as member, DOOR.open(member, tmp_path) as here, here.client() as connection:
        client = Http2Client(connection)
        await client.begin()
        answer = await client.answer(await client.ask_raw(HEAD[1:]))
        assert (answer.reset, here.reached) == (1, {"http2_stream": 1})
        assert "PROTOCOL_ERROR" in caplog.text


async def test_reset_by_a_client_that_has_left_is_no_fault(tmp_path: Path) -> None:
    async with Member(sink) as member, DOOR.open(member, tmp_path) as here, here.client() as connection:
        client = Http2Client(connection)
        await client.begin()
        stream = await client.ask_raw([(b":method", b"POST"), *HEAD[1:]], end=False)
        await eventually(lambda: here.clients.proxy.active == 1)
        client.h2.reset_stream(stream, CANCEL)
        await client.flush()
        await eventually(lambda: here.clients.proxy.active == 0)
        assert here.reached == {}
