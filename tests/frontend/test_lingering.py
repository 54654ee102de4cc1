"""A client that goes on sending behind its last answer is gone a second after it has taken that, at every door."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from balancer.frontend import client_connection, client_registry, http2_connection
from tests.support.doors import HTTP1, OWN, Door, OpenDoor, at_once
from tests.support.hostile import CHUNKED, POST
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.stubborn import StubbornConnection, stubborn
from tests.support.wire import LIMIT, Connection, Member, answer_all

PIECE = bytes(100_000)
# Loopback lets through some 200 MB at each door in the time of these tests. Buffers of two kernels hold 4 MB.
MOST = 40_000_000
DOOR_OF_HTTP2 = OWN["HTTP/2"]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 0.5)


async def last(send: Callable[[], Awaitable[None]]) -> tuple[float, int]:
    """Send until the connection is cut off: seconds and pieces."""
    clock, pieces = asyncio.get_running_loop().time, 0
    began = clock()
    with suppress(ConnectionError, ssl.SSLError, TimeoutError):
        async with asyncio.timeout(LIMIT):
            while True:
                await send()
                pieces += 1
                await asyncio.sleep(0)
    return clock() - began, pieces


async def is_cut_off(client: Connection | StubbornConnection, here: OpenDoor, limit: str = "lingering") -> None:
    seconds, pieces = await last(lambda: client.send(PIECE))
    assert seconds < LIMIT / 2
    assert pieces * len(PIECE) < MOST
    assert here.reached[limit] == 1
    places = here.clients.places
    assert places.held + places.refused == len(here.clients.connections)


async def answered(client: Connection | StubbornConnection) -> bytes:
    """The next answer, with its body."""
    head = await client.head()
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return head + await client.exactly(int(length))


ENDS = {
    "malformed": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b" 400 "),
    "bad chunk": (CHUNKED + b"nonsense\r\n", b" 400 "),
    "head without end": (GET[:-2] + b"X: " + b"a" * 40_000, b" 431 "),
    "last answer": (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b" 200 "),
    "HTTP/1.0": (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), b" 200 "),
}


@at_once(HTTP1)
@pytest.mark.parametrize(("sent", "status"), ENDS.values(), ids=ENDS.keys())
async def test_client_with_its_last_answer_is_cut_off(sent: bytes, status: bytes, door: Door, tmp_path: Path) -> None:
    async with (
        Member(answer_all) as member,
        door.open(member, tmp_path) as here,
        stubborn(here) as client,
    ):
        await client.send(sent)
        assert status in await answered(client)
        await is_cut_off(client, here)


@at_once(HTTP1)
async def test_client_that_was_too_slow_is_cut_off(door: Door, tmp_path: Path) -> None:
    async with (
        Member() as member,
        door.open(member, tmp_path, header_timeout=0.3) as here,
        stubborn(here) as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\n")
        assert b" 408 " in await answered(client)
        await is_cut_off(client, here)


@at_once(HTTP1)
async def test_client_that_was_one_too_many_is_cut_off(door: Door, tmp_path: Path) -> None:
    async with (
        Member() as member,
        door.open(member, tmp_path, max_connections=1) as here,
        here.client(),
        stubborn(here) as client,
    ):
        assert b" 503 " in await answered(client)
        await is_cut_off(client, here)


@at_once(HTTP1)
async def test_little_is_read_from_a_client_that_waits_for_its_last_answer(door: Door, tmp_path: Path) -> None:
    """Such as one that has asked for events: the answer may take hours."""
    goes_on = asyncio.Event()

    async def wait(connection: Connection) -> None:
        await connection.head()
        await goes_on.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with Member(wait) as member, door.open(member, tmp_path) as here, stubborn(here) as client:
        await client.send(ENDS["last answer"][0])
        sending = asyncio.create_task(last(lambda: client.send(PIECE)))
        done, _ = await asyncio.wait([sending], timeout=1.0)
        assert not done
        (connection,) = here.clients.connections
        assert connection.dropped < MOST
        goes_on.set()
        assert b" 200 " in await answered(client)
        seconds, _ = await sending
        assert seconds < LIMIT


@at_once(HTTP1)
async def test_upload_that_is_refused_is_read_on(door: Door, tmp_path: Path) -> None:
    """urllib and requests read nothing before they have sent all."""
    size = 20_000_000
    async with (
        Member() as member,
        door.open(member, tmp_path, max_body_bytes=10) as here,
        stubborn(here) as client,
    ):
        await client.send(POST + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(PIECE)):
            await client.send(PIECE)
            await asyncio.sleep(0.01)
        assert b" 413 " in await answered(client)


@at_once(HTTP1)
async def test_upload_that_is_refused_and_has_no_end_is_cut_off(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "DISCARD_BYTES", 1_000_000)
    async with (
        Member() as member,
        door.open(member, tmp_path, max_body_bytes=10) as here,
        stubborn(here) as client,
    ):
        await client.send(CHUNKED + b"fffffff\r\n" + PIECE)
        assert b" 413 " in await answered(client)
        await is_cut_off(client, here, "discarding")


async def test_client_that_ends_its_side_is_not_counted(tmp_path: Path) -> None:
    for door in HTTP1.values():
        async with Member() as member, door.open(member, tmp_path) as here, here.client() as client:
            await client.send(ENDS["last answer"][0])
            await client.to_end()
            client.close()
            assert "lingering" not in here.reached


# HTTP/2.


async def test_http_2_client_that_ignores_the_end_of_its_connection_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "STREAMS_MAX", 1)
    async with Member() as member, DOOR_OF_HTTP2.open(member, tmp_path) as here, stubborn(here) as connection:
        client = Http2Client(cast(Connection, connection))
        await client.begin()
        assert (await client.get("/")).status == 200
        await client.until(client.told_to_go)
        frames = (b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)) * 5000
        seconds, pieces = await last(lambda: connection.send(frames))
        assert seconds < LIMIT / 2
        assert pieces * len(frames) < MOST


@pytest.mark.parametrize("sent", [b"nonsense" * 10, b"\0\0\x05\x06\0\0\0\0\0" + bytes(5)], ids=["preface", "frame"])
async def test_http_2_client_that_is_malformed_is_cut_off(sent: bytes, tmp_path: Path) -> None:
    async with Member() as member, DOOR_OF_HTTP2.open(member, tmp_path) as here, stubborn(here) as connection:
        if b"nonsense" not in sent:
            await Http2Client(cast(Connection, connection)).begin()
        await connection.send(sent)
        seconds, pieces = await last(lambda: connection.send(PIECE))
        assert seconds < LIMIT / 2
        assert pieces * len(PIECE) < MOST


async def test_http_2_client_that_ignores_goaway_gets_no_more_requests_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "STREAMS_MAX", 100)
    monkeypatch.setattr(http2_connection, "STREAMS_LAST", 2)
    async with Member() as member, DOOR_OF_HTTP2.open(member, tmp_path) as here, stubborn(here) as connection:
        client = Http2Client(cast(Connection, connection))
        await client.begin()
        clock = asyncio.get_running_loop().time
        began = clock()
        with suppress(ConnectionError):
            while not client.ended and clock() < began + LIMIT:
                await client.get("/")
                await asyncio.sleep(0.05)
        assert clock() - began < LIMIT / 2
        assert client.goaway
