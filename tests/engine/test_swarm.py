"""The stack of ``deploy/swarm`` on a real swarm of one node: whatever is done to it under load, nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bench.drill.load import Load
from bench.drill.rolling import judge
from tests.support.swarm import NoSwarm, Stack, answering, docker, swarm

# Seconds that a request may wait. Somebody is always there, so it is a matter of how busy the machine is.
PATIENCE = 3.0


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    """Up with two balancers and three workers of the first release; the second one is built."""
    stack = Stack()
    try:
        async with swarm():
            try:
                await stack.remove()  # What another run may have left behind.
                for release in ("1", "2"):
                    await stack.build(release)
                await stack.deploy(balancer="1", worker="1")
                for service, count in (("redis", 1), ("worker", 3), ("balancer", 2), ("mesh", 1)):
                    await stack.replicas(service, count)
                await stack.choose_way()
                yield stack
            finally:
                await stack.remove()
    except NoSwarm as problem:
        if os.environ.get("CI"):
            pytest.fail(f"CI has to run the swarm's test, but {problem}")
        pytest.skip(str(problem))


# Prints those of its arguments (host:port) where a balancer's admin port, or Redis, answers. To connect is not enough:
# addresses of other networks may lead out of the machine, and something there may accept.
PROBE = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 2) as sock:
            sock.sendall(b"PING\\r\\n" if port == "6379" else b"GET /metrics HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b"")) if port == "9000" else sock.recv(100)
        if b"balancer_build_info" in answer or answer == b"+PONG\\r\\n":
            print(place)
    except OSError:
        pass
"""


async def reached(container: str, *places: str) -> set[str]:
    return set((await docker("exec", container, "python", "-c", PROBE, *places)).split())


async def is_isolated(stack: Stack) -> None:
    """Workers do not reach the balancers' admin ports, nor balancers Redis."""
    balancer, worker = [min(await stack.containers(name)) for name in ("balancer", "worker")]
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}:9000 {{end}}"
    places = [*(await docker("inspect", "--format", form, balancer)).split(), "balancer:9000", "tasks.balancer:9000"]
    assert await reached(worker, *places, "redis:6379") == {"redis:6379"}
    assert await reached(balancer, "127.0.0.1:9000", "redis:6379") == {"127.0.0.1:9000"}


@pytest.mark.engine
async def test_scaling_and_updates_of_workers_and_balancers_lose_nothing(stack: Stack) -> None:
    load, began = Load(stack.url), time.monotonic()
    async with load.running():
        await answering(load, await stack.settled("worker", 3))
        await is_isolated(stack)
        for count in (6, 2):
            await stack.scale("worker", count)
            await answering(load, await stack.settled("worker", count))

        old, balancers = await stack.containers("worker"), await stack.containers("balancer")
        await stack.deploy(balancer="1", worker="2", workers=2)
        workers = await stack.replaced("worker", old)
        await answering(load, workers)
        assert await stack.containers("balancer") == balancers

        await stack.deploy(balancer="2", worker="2", workers=2)
        await stack.replaced("balancer", balancers)
        await answering(load, workers)
        assert await stack.containers("worker") == workers
    found = judge(load.outcomes, await stack.records(), 4, time.monotonic() - began)
    way = "the stand-in" if stack.stand_in else "the routing mesh"
    print(f"through {way}", *found.lines(), sep="\n")
    assert not found.lost, "\n".join(found.lines())
    assert found.longest < PATIENCE
    assert found.requests > 1000
