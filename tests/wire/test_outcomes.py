"""What comes of each attempt at a member is passed to what learns from it, once, whatever way the attempt has gone."""

from __future__ import annotations

import asyncio

import pytest

from balancer.members.outcome import Outcome
from tests.support.messages import LAST_GET as GET
from tests.support.wire import OK, Connection, Member, balance

pytestmark = pytest.mark.usefixtures("each_way")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


async def answer(connection: Connection) -> None:
    await connection.head()
    await connection.send(OK)


async def answer_in_pieces(connection: Connection) -> None:
    await connection.head()
    await connection.send(HEAD)
    await asyncio.sleep(0.1)
    await connection.send(b"ok")


async def fail(connection: Connection) -> None:
    await connection.head()
    await connection.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")


async def break_off(connection: Connection) -> None:
    await connection.head()
    await connection.send(HEAD)
    await asyncio.sleep(0.1)
    connection.reset()


async def hang_up(connection: Connection) -> None:
    await connection.head()
    connection.reset()


async def talk_nonsense(connection: Connection) -> None:
    await connection.head()
    await connection.send(b"nonsense\r\n\r\n")


@pytest.mark.parametrize(
    ("script", "status", "failure"),
    [
        (answer, 200, ""),
        (answer_in_pieces, 200, ""),
        (fail, 500, ""),
        (break_off, 200, "truncated"),
        (hang_up, 0, "died"),
        (talk_nonsense, 0, "not_http"),
    ],
)
async def test_attempt_has_one_outcome(script: object, status: int, failure: str) -> None:
    outcomes: list[Outcome] = []
    async with Member(script) as member, balance(member, retries=0) as running:  # type: ignore[arg-type]
        running.balancer.dispatcher.report_to(lambda member, outcome: outcomes.append(outcome))
        await running.exchange(GET)
        await running.exchange(GET)
    assert [(outcome.status, outcome.failure) for outcome in outcomes] == 2 * [(status, failure)]
    for outcome in outcomes:
        assert 0 < outcome.first_byte <= outcome.duration
        if script in (answer_in_pieces, break_off):
            assert outcome.first_byte + 0.05 < outcome.duration


async def test_attempt_whose_client_left_before_the_response_has_none() -> None:
    outcomes: list[Outcome] = []

    async def wait(connection: Connection) -> None:
        await connection.head()
        await connection.to_end()

    async with Member(wait) as member, balance(member) as running:
        running.balancer.dispatcher.report_to(lambda member, outcome: outcomes.append(outcome))
        async with running.client() as client:
            await client.send(GET)
            await asyncio.sleep(0.1)
        await running.idle()
        assert [record.error for record in running.records] == ["client_gone"]
    assert outcomes == []
