"""ClientRegistry that leave whenever they like, by the thousand; afterwards nothing is left of them."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Any

import pytest

from balancer.upstream import sending
from balancer.upstream.native import NativeUpstream
from tests.support.leaks import Leaks, at_rest, nothing_left
from tests.support.messages import GET, LAST_GET
from tests.support.wire import OK, Connection, Member, Running, balance, eventually

# More by hand: SOAK_REQUESTS=100000 pytest tests/wire/test_soak.py
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "2000"))
CLIENTS = 40
LARGE = bytes(200_000)


async def various(connection: Connection) -> None:
    """Small and large, quick and slow answers, by the path that is asked for."""
    while True:
        head = await connection.head()
        if head.startswith(b"POST"):
            await connection.exactly(1000)
        if b" /slow " in head:
            await asyncio.sleep(0.01)
        body = LARGE if b" /large " in head else b"ok"
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def warmed_up(running: Running) -> Leaks:
    """Have the balancer remember the head of LAST_GET, and that of its answer."""
    for _ in range(4):
        await running.exchange(LAST_GET)
    running.records.clear()
    return await at_rest()


@pytest.mark.long
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(1)
    left = 0

    async def client(address: tuple[str, int]) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            reader, writer = await asyncio.open_connection(*address)
            path = rng.choice([b"/", b"/slow", b"/large"])
            if rng.random() < 0.3:
                writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" % path)
                writer.write(bytes(rng.choice([1000, 1000, 10])))  # Some never send all of it.
            else:
                writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            try:
                async with asyncio.timeout(rng.choice([0.0, 0.001, 0.005, 0.02, 0.1])):
                    await reader.read(rng.choice([1, 1000, 1_000_000]))
            except (TimeoutError, ConnectionError):
                pass
            writer.transport.abort()

    async def crowd(running: Running, requests: int) -> None:
        nonlocal left
        left = requests
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client(running.address))
        await running.idle()

    with caplog.at_level(logging.WARNING):
        async with Member(various) as one, Member(various) as two, balance(one, two) as running:
            upstream = running.balancer.upstream
            assert isinstance(upstream, NativeUpstream)
            await crowd(running, 400)  # Now the balancer remembers what it will.
            await eventually(lambda: upstream.idle == 0)
            running.records.clear()
            leaks = await at_rest()
            await crowd(running, REQUESTS)
            await eventually(lambda: upstream.active == 0)
            assert len(running.records) > REQUESTS / 4
            assert all(it.in_flight == 0 for it in running.balancer.membership.members.values())
            assert len(running.balancer.dispatcher.queue) == 0
            await eventually(lambda: upstream.idle == 0)  # They expire.
            running.records.clear()  # The record of a request that was cut off names its response.
            await nothing_left(leaks)
    assert [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("each_front")
async def test_leak_check_finds_a_task_and_the_objects_of_a_request_that_stays() -> None:
    answer, arrived = asyncio.Event(), asyncio.Event()
    answer.set()

    async def late(connection: Connection) -> None:
        await connection.head()
        arrived.set()
        await answer.wait()
        await connection.send(OK)

    async with Member(late) as member, balance(member) as running:
        leaks = await warmed_up(running)
        answer.clear()
        arrived.clear()
        exchange = asyncio.create_task(running.exchange(LAST_GET))
        await arrived.wait()
        found = leaks.found()
        assert {"Running.exchange", "socket"} < set(found)
        answer.set()
        assert (await exchange).endswith(b"ok")
        del exchange
        await running.idle()
        running.records.clear()
        await nothing_left(leaks)


@pytest.mark.usefixtures("each_front")
async def test_leak_check_finds_a_connection_that_stays_without_a_request() -> None:
    async with Member() as member, balance(member) as running:
        leaks = await warmed_up(running)
        async with running.client() as client:
            await client.send(GET)
            await client.exactly(len(OK))
            await running.idle()
            running.records.clear()
            found = leaks.found()
            assert set(found) > {"socket"}, "and what serves it"
        await nothing_left(leaks)


@pytest.mark.usefixtures("each_front")
async def test_leak_check_finds_a_task_that_outlives_its_request() -> None:
    async with Member() as member, balance(member) as running:
        leaks = await warmed_up(running)
        forgotten = asyncio.Event()
        left = asyncio.create_task(forgotten.wait())
        await running.exchange(LAST_GET)
        await running.idle()
        running.records.clear()
        await eventually(lambda: leaks.found() == ["Event.wait"])
        forgotten.set()
        assert await left
        await nothing_left(leaks)


@pytest.mark.usefixtures("each_front")
async def test_leak_check_finds_an_exchange_that_something_still_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leak is deliberate: a list keeps each response, as a cache without a bound would."""
    kept: list[Any] = []

    async def answer_once(connection: Connection) -> None:
        await connection.head()
        await connection.send(OK)

    async with Member(answer_once) as member, balance(member) as running:
        leaks = await warmed_up(running)
        send = sending.send

        async def keep(*arguments: Any, **options: Any) -> Any:
            kept.append(await send(*arguments, **options))
            return kept[-1]

        monkeypatch.setattr(sending, "send", keep)
        await running.exchange(LAST_GET)
        await running.idle()
        running.records.clear()
        await eventually(lambda: "socket" not in (found := leaks.found()) and type(kept[0]).__name__ in found)
        kept.clear()
        await nothing_left(leaks)
