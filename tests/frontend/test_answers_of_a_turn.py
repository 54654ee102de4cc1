"""Answers that wait for the end of the turn are sent before whatever else a connection sends, and before it closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from balancer.frontend.client_connection import CLOSED
from balancer.frontend.http1_connection import Http1Connection
from balancer.outbox import MAX_WAITING, outbox
from tests.frontend.test_turns import Bare, Recorded
from tests.support.wire import Member, balance

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Strict(Recorded):
    """A transport that refuses bytes once it closes, as that of uvloop does."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ends
        super().write(data)


@pytest.fixture
async def bare() -> AsyncIterator[Bare]:
    async with Member() as member, balance(member) as running:
        it = Bare(running, Strict())
        yield it
        if it.connection.phase is not CLOSED:
            it.connection.connection_lost(None)


async def test_answers_of_a_turn_are_sent_in_order_at_its_end(bare: Bare) -> None:
    bare.connection.send_soon(ANSWER)
    bare.connection.send_soon(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert bare.transport.written == b""
    await asyncio.sleep(0)
    assert bare.transport.written == ANSWER + b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_answer_that_fills_the_outbox_is_sent(bare: Bare) -> None:
    for _ in range(MAX_WAITING - 1):
        outbox().add(lambda: None)
    bare.connection.send_soon(ANSWER)
    await asyncio.sleep(0)
    assert bare.transport.written == ANSWER


def half_close(connection: Http1Connection) -> None:
    """Do what the event loop does at the end of the client's side."""
    if not connection.eof_received():
        connection.transport.close()


ENDS: dict[str, Callable[[Http1Connection], object]] = {
    "closed": lambda connection: connection.close(),
    "shut down": lambda connection: connection._close_if_idle(),
    "timed out": lambda connection: connection.time_out(1.0),
    "half closed by the client": half_close,
    "refused": lambda connection: connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_answer_is_sent_before_the_connection_ends_in_the_same_turn(
    end: Callable[[Http1Connection], object], bare: Bare
) -> None:
    bare.connection.send_soon(ANSWER)
    end(bare.connection)
    assert bare.transport.written.startswith(ANSWER)
    await asyncio.sleep(0)
    assert bare.transport.written.count(ANSWER) == 1


async def test_answer_to_a_client_that_has_left_is_dropped(bare: Bare) -> None:
    bare.connection.send_soon(ANSWER)
    bare.transport.ends = True
    bare.connection.connection_lost(None)
    await asyncio.sleep(0)
    assert bare.transport.written == b""
