"""The bench's generator of requests at a fixed rate measures what a client would have waited."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from bench import traffic
from bench.pacer import Connection as Incoming
from bench.pacer import Pacer, repeated
from bench.upstreams import ANSWER
from tests.support.wire import Connection, Member

REPLY = f"HTTP/1.1 200 OK\r\nContent-Length: {len(ANSWER)}\r\n\r\n{ANSWER}".encode()


async def pace(member: Member, rate: float, seconds: float, connections: int, *, fresh: bool = False) -> dict[str, Any]:
    host, port = member.address
    pacer = Pacer(host, port, repeated(f"{host}:{port}", "/", fresh), rate, connections, fresh)
    return await asyncio.to_thread(pacer.run, seconds)


async def test_every_request_that_was_due_while_the_server_stalled_has_waited() -> None:
    asked = 0

    async def stall_once(connection: Connection) -> None:
        nonlocal asked
        while True:
            await connection.head()
            asked += 1
            if asked == 20:
                await asyncio.sleep(0.6)
            await connection.send(REPLY)

    async with Member(stall_once) as member:
        began = time.monotonic()
        figures = await pace(member, 100, 0.8, 1)
    assert figures["errors"] == {"connect": 0, "broken": 0, "status": 0, "timeout": 0}
    # One at a time and measured from when it was sent, a single request would have waited.
    assert figures["p50_ms"] > 100
    assert figures["max_ms"] > 500
    assert figures["requests"] == asked - 1  # less the one that warms the connection up
    assert figures["seconds"] < time.monotonic() - began


@pytest.mark.parametrize(("fresh", "expected"), [(False, 2), (True, None)])
async def test_connections_are_kept_or_fresh(fresh: bool, expected: int | None) -> None:
    async def answer(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(REPLY)

    async with Member(answer) as member:
        figures = await pace(member, 200, 0.3, 2, fresh=fresh)
        assert len(member.connections) == (expected or figures["requests"])
    assert figures["requests"] > 10
    assert not any(figures["errors"].values())


async def test_pacer_counts_what_is_no_answer_as_an_error() -> None:
    number = 0

    async def fail_in_turn(connection: Connection) -> None:
        nonlocal number
        await connection.head()
        number += 1
        await connection.send(REPLY.replace(b"200", b"503") if number % 2 else b"HTTP/1.1 200 OK\r\n")

    async with Member(fail_in_turn) as member:
        figures = await pace(member, 100, 0.3, 50, fresh=True)
    assert figures["requests"] == 0
    assert figures["errors"]["status"] + figures["errors"]["broken"] == number
    assert figures["errors"]["status"] > 0 < figures["errors"]["broken"]


BODY = b"x" * 100
RESPONSES = {
    "length": b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 100\r\nDate: y\r\n\r\n" + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + BODY + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("response", list(RESPONSES.values()), ids=list(RESPONSES))
def test_a_response_is_complete_with_its_last_byte_wherever_it_is_cut(response: bytes) -> None:
    for cut in range(1, len(response)):
        incoming = Incoming()
        assert not incoming.take(response[:cut])
        assert not (cut < len(response) - 1 and incoming.take(response[cut:-1]))
        assert incoming.take(response[max(cut, len(response) - 1) :])
        assert incoming.size == len(response)


async def test_pacer_sends_the_requests_that_it_is_given_one_after_the_other() -> None:
    received: list[bytes] = []

    async def answer(connection: Connection) -> None:
        while True:
            received.append(await connection.head())
            await connection.send(REPLY)

    async with Member(answer) as member:
        host, port = member.address
        requests = traffic.requests("browser", f"{host}:{port}", traffic.FIRST)
        await asyncio.to_thread(Pacer(host, port, requests, 200, 1, False).run, 0.2)
    expected = itertools.islice(traffic.requests("browser", f"{host}:{port}", traffic.FIRST), len(received))
    assert len(received) > 10
    assert [head.partition(b"\r\n")[0] for head in received] == [it.partition(b"\r\n")[0] for it in expected]
