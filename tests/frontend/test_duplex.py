"""A response that begins before the request's body has ended: limits of the body, and what the log says of the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from balancer.frontend import client_registry, progress
from balancer.upstream.native import NativeUpstream
from tests.support import wire
from tests.support.hostile import CHUNKED
from tests.support.wire import LIMIT, Connection, Member, Running, balance

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TICK = b"4\r\ntick\r\n"
PIECE = b"1\r\na\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate and silence of a body count from tenths of seconds on."""
    monkeypatch.setattr(progress, "RATE_SECONDS", 0.1)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    monkeypatch.setitem(wire.defaults, "stream_idle_timeout", 0.5)
    monkeypatch.setitem(wire.defaults, "min_body_rate", 1_000_000)


async def echo(connection: Connection) -> None:
    """Begin the response at once, and answer each piece of the body by one of the response."""
    await connection.head()
    await connection.send(STREAM)
    while await connection.until(b"\r\n") != b"0\r\n":
        await connection.until(b"\r\n")
        await connection.send(TICK)
    await connection.send(END)


async def tell(connection: Connection) -> None:
    """Answer by a piece every twentieth of a second, for four times the silence that a body may have, then read on."""
    await connection.head()
    await connection.send(STREAM)
    for _ in range(40):
        await connection.send(TICK)
        await asyncio.sleep(0.05)
    await connection.send(b"4\r\nlast\r\n")
    await connection.until(END)
    await connection.send(END)


async def begin(connection: Connection) -> None:
    """Begin the response, and say no more."""
    await connection.head()
    await connection.send(STREAM + TICK)
    await connection.to_end()


async def record(running: Running) -> tuple[int, str, bool]:
    """Status and token of the one record, and whether it has a reason."""
    await running.idle()
    (found,) = running.records
    return found.status, found.error, bool(found.reason)


async def test_body_beside_its_response_may_come_as_slowly_as_it_likes() -> None:
    async with Member(echo) as member, balance(member) as running, running.client() as client:
        await client.send(CHUNKED + PIECE)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        for _ in range(20):
            assert await client.exactly(len(TICK)) == TICK
            await client.send(PIECE)
            await asyncio.sleep(0.05)
        assert await client.exactly(len(TICK)) == TICK
        await client.send(END)
        assert await client.exactly(len(END)) == END
        assert await record(running) == (200, "", False)


async def test_silence_of_a_body_does_not_count_while_its_response_goes_on() -> None:
    async with Member(tell) as member, balance(member) as running, running.client() as client:
        await client.send(CHUNKED + PIECE)
        await client.until(b"last\r\n")
        await client.send(END)
        assert await client.exactly(len(END)) == END
        assert await record(running) == (200, "", False)


async def test_silence_of_both_sides_ends_a_response_and_the_log_has_its_status_and_the_reason() -> None:
    async with Member(begin) as member, balance(member) as running, running.client() as client:
        await client.send(CHUNKED + PIECE)
        received = await client.to_end()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert not received.endswith(END)
        assert await record(running) == (200, "request_timeout", True)
        assert running.records[0].body_bytes == 4


@pytest.mark.usefixtures("each_way")
async def test_body_that_grows_too_large_in_mid_response_is_logged_with_the_status_that_left() -> None:
    async with Member(echo) as member, balance(member, max_body_bytes=3) as running, running.client() as client:
        if wire.upstream_class is not NativeUpstream:
            pytest.skip("httpcore reads no response before it has sent the request")
        await client.send(CHUNKED + PIECE)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        for _ in range(3):
            await client.send(PIECE)
        assert not (await client.to_end()).endswith(END)
        assert await record(running) == (200, "body_too_large", True)


async def test_http_2_counts_silence_of_both_sides_alone(tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    from tests.support.http2_door import spoken

    fields: Any = ((b"te", b"trailers"),)
    async with Member(tell) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask(*fields, method=b"POST", end=False)
        await client.send(stream, b"a")
        async with asyncio.timeout(LIMIT):
            await client.until(lambda: client.answers[stream].body.endswith(b"last"))
        await client.send(stream, b"b", end=True)
        assert (await client.answer(stream)).ended
        assert await record(here.running) == (200, "", False)


async def test_http_2_logs_the_status_that_left_where_both_sides_are_silent(tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    from tests.support.http2_door import spoken

    async with Member(begin) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask(method=b"POST", end=False)
        await client.send(stream, b"a")
        answer = await client.answer(stream)
        assert (answer.status, answer.reset is None, answer.ended) == (200, False, False)
        assert await record(here.running) == (200, "request_timeout", True)
