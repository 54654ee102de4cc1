"""Interim responses and ``Expect: 100-continue``: the member decides, and the client is told what it said."""

from __future__ import annotations

import asyncio

import pytest

from balancer.frontend import client_registry
from balancer.upstream import response
from tests.support import wire
from tests.support.messages import GET
from tests.support.wire import LIMIT, OK, Connection, Member, balance

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


async def take_body(connection: Connection) -> None:
    """A member that knows nothing of expectations: it reads a whole request before it says anything."""
    while True:
        await connection.head()
        await connection.exactly(3)
        await connection.send(OK)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member is silent for a tenth of a second before the balancer says 100 itself."""
    monkeypatch.setattr(response, "CONTINUE_SECONDS", 0.1)


@pytest.mark.usefixtures("each_way", "soon")
async def test_client_that_waits_for_a_member_that_never_says_go_on_hears_it_from_the_balancer() -> None:
    async with Member(take_body) as member, balance(member, response_timeout=LIMIT) as running:
        async with running.client() as client:
            for _ in range(2):
                await client.send(ASKS)
                assert (await client.head()).startswith(b"HTTP/1.1 100 ")
                await client.send(b"abc")
                assert (await client.head()).startswith(b"HTTP/1.1 200 ")
                assert await client.exactly(2) == b"ok"
        assert member.received[0].endswith(b"abc")


@pytest.mark.usefixtures("soon")
async def test_client_hears_go_on_once_if_the_member_says_so_later() -> None:
    async def late(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        await connection.send(CONTINUE + OK)

    async with Member(late) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        assert await client.head() == CONTINUE
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("soon")
async def test_client_that_sends_its_body_without_waiting_hears_nothing_of_a_silent_member() -> None:
    async def slow(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        await asyncio.sleep(0.3)
        await connection.send(OK)

    async with Member(slow) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS + b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("soon")
async def test_hints_of_a_member_do_not_stand_for_go_on() -> None:
    async def hints(connection: Connection) -> None:
        await connection.head()
        await connection.send(HINTS)
        await connection.exactly(3)
        await connection.send(OK)

    async with Member(hints) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        assert (await client.head()).startswith(b"HTTP/1.1 103 ")
        assert await client.head() == CONTINUE
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("speaker", ["member", "balancer"])
async def test_time_of_a_client_that_may_go_on_is_not_the_members(
    speaker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member's time-out does not run while the client makes its body ready."""
    monkeypatch.setattr(response, "CONTINUE_SECONDS", 0.05 if speaker == "balancer" else LIMIT)

    async def script(connection: Connection) -> None:
        await connection.head()
        if speaker == "member":
            await connection.send(CONTINUE)
        await connection.exactly(3)
        await connection.send(OK)

    async with Member(script) as member, balance(member, response_timeout=0.4) as running, running.client() as client:
        await client.send(ASKS)
        assert await client.head() == CONTINUE
        await asyncio.sleep(1.2)
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("method", [b"POST", b"PUT"])
async def test_body_that_the_balancer_asked_for_is_repeated_by_the_usual_rule(method: bytes) -> None:
    async def die(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        connection.close()

    async with Member(die) as one, Member(die) as two, balance(one, two) as running, running.client() as client:
        await client.send(ASKS.replace(b"POST", method))
        assert await client.head() == CONTINUE
        await client.send(b"abc")
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")
        bodies = [it for member in (one, two) for it in member.received if it.endswith(b"abc")]
        # Twice more, of which the last is for either member (RETRIES).
        assert len(bodies) == (1 if method == b"POST" else 3)


@pytest.mark.usefixtures("soon")
async def test_client_that_does_not_go_on_is_refused_as_any_whose_body_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    async with (
        Member(take_body) as member,
        balance(member, stream_idle_timeout=0.3) as running,
        running.client() as client,
    ):
        await client.send(ASKS)
        assert await client.head() == CONTINUE
        assert (await client.head()).startswith(b"HTTP/1.1 408 ")


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
