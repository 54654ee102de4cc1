"""The simulation agrees with the balancer over real sockets: the same arrivals, members of the same known speeds.

Members do what those of the simulation do: so many workers, one queue, a fixed time for each request. Each answer is
due at a reading of the clock, so that delays do not add up, and latency counts from a request's arrival at its member
to that reading: what a busy machine adds to an answer says nothing of who was chosen, nor of how long the queues were.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from heapq import heapreplace
from random import Random

import pytest

from bench.simulation.members import DELAY
from bench.simulation.scenarios import nothing
from bench.simulation.world import WARM_UP, Figures, Setup, poisson, run
from tests.support.messages import LAST_GET as GET
from tests.support.wire import OK, Connection, Member, Running, balance

SETUP = Setup("wire", speeds=(1.0, 1.0, 1.0, 0.5), balancers=1, requests=1000, workers=8, service=0.1, load=0.4)


class Queue:
    """A member's workers, each busy until a reading of the clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._free = [0.0] * SETUP.workers
        # When each request came, and how long it had to stay.
        self.stays: list[tuple[float, float]] = []

    async def answer(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await connection.head()
            came = now()
            done = max(came, self._free[0]) + self._seconds
            heapreplace(self._free, done)
            self.stays.append((came, done - came))
            await asyncio.sleep(done - now())
            await connection.send(OK)


def arrivals() -> list[float]:
    times = poisson(Random("arrivals"), SETUP.rate)
    return [next(times) for _ in range(SETUP.requests)]


async def over_sockets(policy: str) -> tuple[list[float], float]:
    """Each member's share of the requests and their mean latency, after the warm-up."""
    queues = [Queue(SETUP.service / speed) for speed in SETUP.speeds]
    one, two, three, four = (Member(it.answer) for it in queues)
    async with one, two, three, four, balance(one, two, three, four, policy=policy) as running:
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as clients:
            for due in arrivals():
                clients.create_task(_ask(running, began + due))
    stays = sorted((came, stay, number) for number, it in enumerate(queues) for came, stay in it.stays)
    assert len(stays) == SETUP.requests
    counted = stays[int(WARM_UP * SETUP.requests) :]
    took = Counter(number for _, _, number in counted)
    shares = [took[number] / len(counted) for number in range(len(queues))]
    return shares, sum(stay for _, stay, _ in counted) / len(counted)


async def _ask(running: Running, due: float) -> None:
    await asyncio.sleep(due - asyncio.get_running_loop().time())
    assert (await running.exchange(GET)).startswith(b"HTTP/1.1 200 ")


def simulated(policy: str) -> Figures:
    setup = Setup(**{**vars(SETUP), "settings": {"policy": policy}})
    return run(setup, nothing, iter(arrivals()), lambda: SETUP.service)


def moved(shares: list[float], others: list[float]) -> float:
    """The share of requests that went to another member in the one than in the other."""
    return sum(abs(one - other) for one, other in zip(shares, others, strict=True)) / 2


@pytest.mark.long
async def test_shares_and_latency_agree() -> None:
    policies = "round_robin", "least_requests"
    real = await asyncio.gather(*map(over_sockets, policies))
    expected = [await asyncio.to_thread(simulated, it) for it in policies]
    for policy, (shares, mean), figures in zip(policies, real, expected, strict=True):
        assert moved(shares, list(figures.shares)) < 0.05, policy
        assert mean == pytest.approx(figures.mean - 2 * DELAY, rel=0.05), policy
    # Five per cent tells them apart.
    assert moved(list(expected[0].shares), list(expected[1].shares)) > 0.05
