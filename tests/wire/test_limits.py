"""A limit of each member that finds itself, on sockets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.support.messages import GET
from tests.support.wire import OK, Connection, Member, Running, balance, eventually

pytestmark = pytest.mark.usefixtures("each_way")

# Requests at a time of all clients.
CLIENTS = 24
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"


class Worker:
    """A worker of so many threads: the rest wait in its backlog. ``service``: seconds for a request."""

    def __init__(self, threads: int, service: float) -> None:
        self._threads = asyncio.Semaphore(threads)
        self._service = service

    async def __call__(self, connection: Connection) -> None:
        while True:
            await connection.head()
            async with self._threads:
                await asyncio.sleep(self._service)
            await connection.send(OK)


async def visit(running: Running, seconds: float) -> int:
    """Send requests one after the other for so long; return how many were answered."""
    loop, answers = asyncio.get_running_loop(), 0
    until = loop.time() + seconds
    async with running.client() as client:
        while loop.time() < until:
            await client.send(GET)
            await client.until(b"ok")
            answers += 1
    return answers


async def limit_found(worker: Worker, seconds: float) -> tuple[float, int]:
    """Return the limit that is found for a worker, and the number of answers."""
    async with Member(worker) as member, balance(member, max_requests_per_member="auto") as running:
        answers = await asyncio.gather(*[visit(running, seconds) for _ in range(CLIENTS)])
        (found,) = running.balancer.members.values()
        return found.limit, sum(answers)


async def test_worker_that_does_one_thing_at_a_time_gets_few_requests() -> None:
    limit, answers = await limit_found(Worker(1, 0.01), 4.0)
    assert limit <= CLIENTS / 2
    assert answers > 50


async def test_worker_with_many_threads_gets_many_requests() -> None:
    limit, _ = await limit_found(Worker(CLIENTS, 0.2), 5.0)
    assert limit >= 8


async def test_event_streams_take_no_slots() -> None:
    async def stream(connection: Connection) -> None:
        await connection.head()
        await connection.send(EVENTS)
        await connection.to_end()

    async with Member(stream) as member, balance(member, max_requests_per_member="auto") as running:
        async with AsyncExitStack() as clients:
            for _ in range(CLIENTS):
                client = await clients.enter_async_context(running.client())
                await client.send(GET)
                await client.until(b"data: 1")
            (found,) = running.balancer.members.values()
            assert found.in_flight == CLIENTS
            assert found.limit > CLIENTS
        await eventually(lambda: found.in_flight == 0 and found.limit < CLIENTS)
