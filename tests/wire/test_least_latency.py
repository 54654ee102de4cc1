"""The policy ``least_latency`` over real sockets: shares of equal members, of a slow one, and of one that recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.support.hooked import ask
from tests.support.wire import OK, Connection, Member, Running, balance

pytestmark = pytest.mark.long

# Seconds that a member takes for a request: much beside what a busy machine adds.
SERVICE = 0.05


class Worker:
    """A member that works on any number of requests at a time. ``got``: requests so far."""

    def __init__(self) -> None:
        self.seconds = SERVICE
        self.got = 0

    async def answer(self, connection: Connection) -> None:
        while True:
            await connection.head()
            self.got += 1
            await asyncio.sleep(self.seconds)
            await connection.send(OK)


@asynccontextmanager
async def five_workers() -> AsyncIterator[tuple[list[Worker], Running]]:
    workers = [Worker() for _ in range(5)]
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(Member(worker.answer)) for worker in workers]
        yield workers, await stack.enter_async_context(balance(*members, policy="least_latency"))


async def shares(running: Running, workers: list[Worker], requests: int) -> list[float]:
    """Have 10 clients send requests, each its next one after a response; return the share of each worker."""
    before = {worker: worker.got for worker in workers}
    left = iter(range(requests))

    async def visit() -> None:
        async with running.client() as client:
            for _ in left:
                assert (await ask(client)).startswith(b"HTTP/1.1 200 ")

    async with asyncio.TaskGroup() as clients:
        for _ in range(10):
            clients.create_task(visit())
    return [(worker.got - before[worker]) / requests for worker in workers]


async def test_five_equal_members_share_1500_requests() -> None:
    async with five_workers() as (workers, running):
        found = await shares(running, workers, 1500)
    assert all(0.85 / 5 < share < 1.15 / 5 for share in found), found


async def test_slow_member_gets_little_and_its_share_again_within_10_s_of_recovering() -> None:
    now = asyncio.get_running_loop().time
    async with five_workers() as (workers, running):
        await shares(running, workers, 100)
        workers[0].seconds = 10 * SERVICE
        slow = await shares(running, workers, 1000)
        workers[0].seconds = SERVICE
        recovered = now()
        while now() < recovered + 8.0:
            await shares(running, workers, 50)
        again = await shares(running, workers, 200)
    assert slow[0] < 0.05, slow
    # By chance alone, a member has 20 % of 200 requests give or take 6 % (two standard deviations).
    assert again[0] > 0.1, again
