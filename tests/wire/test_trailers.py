"""Trailers: the fields after a body pass both ways, except those that would change what the message is."""

from __future__ import annotations

import asyncio

import pytest

from balancer.config.settings import Settings
from tests.support.wire import OK, Connection, Member, balance

GET = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
FORBIDDEN = b"Host: b\r\nContent-Type: a/b\r\nIf-Match: c\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: a\r\n"


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in pieces"])
async def test_requests_trailers_reach_the_member(at_once: bool) -> None:
    async def script(connection: Connection) -> None:
        await connection.until(b"x-sum: 1\r\n\r\n")
        await connection.send(OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        parts = [CHUNKED, b"3\r\nabc\r\n0\r\n", FORBIDDEN, b"X-Sum: 1\r\n\r\n"]
        for part in [b"".join(parts)] if at_once else parts:
            await client.send(part)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert b"\r\nTrailer: X-Sum\r\n" in member.received[0]
        assert member.received[0].endswith(b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in pieces"])
async def test_responses_trailers_reach_the_client(at_once: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            parts = [head, b"3\r\nabc\r\n", b"0\r\n", FORBIDDEN, b"X-Sum: 1\r\n\r\n"]
            for part in [b"".join(parts)] if at_once else parts:
                await connection.send(part)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await client.send(GET)
            assert b"\r\ntrailer: X-Sum\r\n" in await client.head()
            assert await client.until(b"\r\n\r\n") == b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"
        assert b"connection: te\r\nte: trailers\r\n" in member.received[0]


@pytest.mark.usefixtures("through_asgi")
@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(
            True, marks=pytest.mark.xfail(reason="uvicorn puts them among the fields of the head", strict=True)
        ),
        False,
    ],
    ids=["at once", "in pieces"],
)
async def test_requests_trailers_that_cannot_be_passed_on_are_dropped(at_once: bool) -> None:
    """ASGI has no message for them."""
    begun = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.until(b"abc\r\n")
        begun.set()
        await connection.until(b"0\r\n")
        await connection.until(b"\r\n")
        await connection.send(OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        parts = [CHUNKED + b"3\r\nabc\r\n", b"0\r\n" + FORBIDDEN + b"X-Sum: 1\r\n\r\n"]
        if at_once:
            await client.send(b"".join(parts))
        else:
            await client.send(parts[0])
            await begun.wait()
            await client.send(parts[1])
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        (received,) = member.received
        assert received.endswith(b"3\r\nabc\r\n0\r\n\r\n")
        assert received.count(b"host: ") == 1 + 1  # and X-Forwarded-Host
        assert not any(
            it in received for it in (b"x-sum: 1", b"content-type: ", b"if-match: ", b"cookie: ", b"6.6.6.6")
        )


@pytest.mark.usefixtures("through_asgi")
async def test_responses_trailers_that_cannot_be_passed_on_are_dropped() -> None:
    """And nobody is asked for any."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
            )

    async with Member(script) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await client.send(GET)
            assert b"x-sum" not in await client.head()
            assert await client.until(b"0\r\n\r\n") == b"3\r\nabc\r\n0\r\n\r\n"
        assert b"\r\nte: " not in member.received[0]


@pytest.mark.usefixtures("each_way")
async def test_trailers_of_a_member_have_a_limit() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
        while True:
            await connection.send(b"X: y\r\n" * 10_000)

    async with Member(script) as member, balance(member) as running:
        answer = await running.exchange(GET)
        assert answer.endswith(b"3\r\nabc\r\n")
        assert running.records[0].error == "truncated"


async def test_trailers_of_a_client_have_a_limit() -> None:
    async with Member() as member, balance(member) as running:
        async with running.client() as client:
            await client.send(CHUNKED + b"0\r\n" + b"X: y\r\n" * (Settings().max_headers + 1) + b"\r\n")
            assert (await client.to_end()).startswith(b"HTTP/1.1 400 ")
        async with running.client() as client:
            await client.send(CHUNKED + b"0\r\nX: ")
            await client.send(b"y" * 400_000)
            assert (await client.to_end()).startswith(b"HTTP/1.1 400 ")
