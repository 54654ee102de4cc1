"""The policy ``least_latency`` in the simulation."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from bench.simulation.scenarios import equal, nothing, one_slow
from bench.simulation.world import Setup, World, run

SETTINGS = {"policy": "least_latency"}


@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_equal_members_share_1500_requests_of_three_sizes(seed: str) -> None:
    """Traefik's leasttime gave one of five equal members 5 of 1,500 requests (#12306): jobs that keep a CPU busy."""
    sizes = Random(seed)
    # A tenth more, which are not counted.
    setup = Setup(seed, equal(5), 1, 1667, SETTINGS, workers=1, service=0.07, load=0.6)
    figures = run(setup, nothing, service_time=lambda: sizes.choice((0.01, 0.04, 0.16)))
    assert figures.requests == pytest.approx(1500, abs=1)
    assert all(0.85 / 5 < share < 1.15 / 5 for share in figures.shares)


def test_member_at_a_tenth_of_the_speed_gets_little_and_has_its_share_within_10_s_of_recovering() -> None:
    slow_for, found = 20.0, []

    async def recover(world: World) -> None:
        slow = next(container for container in world.containers.values() if container.speed == 0.1)

        async def share(seconds: float) -> float:
            before = {container: container.got for container in world.containers.values()}
            await asyncio.sleep(seconds)
            got = {container: container.got - before[container] for container in before}
            return got[slow] / sum(got.values())

        found.append(await share(slow_for))
        world.set_speed(slow, 1.0)
        await asyncio.sleep(8.0)
        found.append(await share(2.0))

    setup = Setup("recovers", one_slow(5), 1, 13_000, SETTINGS, load=0.5)
    # The warm-up, after which requests are counted anew, is in the first seconds.
    assert setup.seconds > slow_for + 10
    run(setup, recover)
    assert found[0] < 0.05
    assert 0.85 / 5 < found[1] < 1.15 / 5
