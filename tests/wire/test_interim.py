"""Interim responses and ``Expect: 100-continue``: the member decides, and the client is told what it said."""

from __future__ import annotations

import asyncio

import pytest

from tests.support import wire
from tests.support.messages import GET
from tests.support.wire import OK, Connection, Member, balance

ASKS = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


async def hint(connection: Connection) -> None:
    while True:
        await connection.head()
        await connection.send(HINTS + HINTS)
        await connection.send(OK)


async def test_early_hints_reach_the_client() -> None:
    async with Member(hint) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await client.send(GET)
            for _ in range(2):
                assert await client.head() == b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(2) == b"ok"
        assert len(member.connections) == 1 + 1  # the probe's, and one that was kept


@pytest.mark.usefixtures("through_asgi")
async def test_early_hints_that_cannot_be_passed_on_are_dropped() -> None:
    async with Member(hint) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(2) == b"ok"
        assert len(member.connections) == 1 + 1


@pytest.mark.usefixtures("each_way")
async def test_client_of_http_1_0_gets_no_interim_response() -> None:
    async with Member(hint) as member, balance(member) as running:
        answer = await running.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("each_front")
async def test_interim_responses_without_end_are_a_members_failure() -> None:
    async def babble(connection: Connection) -> None:
        await connection.head()
        while True:
            await connection.send(HINTS * 10)

    async with Member(babble) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        head = await client.head()
        while head.startswith(b"HTTP/1.1 103 "):
            head = await client.head()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"x-balancer-error: bad_response\r\n" in head


@pytest.mark.usefixtures("each_way")
async def test_body_is_sent_once_the_member_says_so() -> None:
    async def script(connection: Connection) -> None:
        head = await connection.head()
        assert b"expect: 100-continue\r\n" in head
        await connection.send(CONTINUE)
        await connection.exactly(3)
        await connection.send(OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        assert await client.head() == CONTINUE
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert member.received[0].endswith(b"abc")


async def test_member_refuses_before_the_body_is_sent() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await connection.to_end()

    async with Member(script) as member, balance(member) as running:
        answer = await running.exchange(ASKS)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\nno")
        await running.idle()
        assert len(member.received) == 1
        assert member.received[0].endswith(b"\r\n\r\n")


@pytest.mark.usefixtures("each_front")
async def test_client_may_send_the_body_without_waiting() -> None:
    """RFC 9110 section 10.1.1: it does not have to wait for ever; then nobody needs to tell it to go on.

    An ASGI server does so itself, as soon as the application reads the body.
    """

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        await connection.send(CONTINUE + OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        await asyncio.sleep(0.05)
        await client.send(b"abc")
        head = await client.head()
        if head == CONTINUE and not wire.edge:
            head = await client.head()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert member.received[0].endswith(b"abc")


async def test_member_that_never_says_go_on_is_not_waited_for_for_ever() -> None:
    async def silent(connection: Connection) -> None:
        await connection.to_end()

    async with Member(silent) as member, balance(member, response_timeout=0.2) as running:
        answer = await running.exchange(ASKS)
        assert answer.startswith(b"HTTP/1.1 504 ")


@pytest.mark.usefixtures("each_way")
async def test_request_whose_body_was_not_sent_goes_to_another_member_if_the_first_cannot_be_reached() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(CONTINUE)
        await connection.exactly(3)
        await connection.send(OK)

    async with Member() as gone, Member(script) as member, balance(gone, member, health_interval=60) as running:
        await gone.stop()
        for _ in range(2):
            async with running.client() as client:
                await client.send(ASKS)
                assert await client.head() == CONTINUE
                await client.send(b"abc")
                assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("status", [b"100 Continue", b"103 Early Hints", b"199 Odd"])
async def test_body_of_an_interim_response_is_not_taken_for_one_of_the_final_response(
    status: bytes, framing: bytes
) -> None:
    body = b"2\r\nno\r\n0\r\n\r\n" if b"chunked" in framing else b"no"

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, framing, body) + OK)

    async with Member(script) as member, balance(member) as running:
        answer = await running.exchange(GET.replace(b"Host: a", b"Host: a\r\nConnection: close"))
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"x-balancer-error: bad_response\r\n" in answer


async def test_interim_response_passes_without_the_length_that_it_should_not_have() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\nLink: </a>\r\n\r\n" + OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        assert await client.head() == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
