"""The blocks of the README that need a Docker Engine, as a reader runs them one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.support.blocks import readme_block, shape
from tests.support.compose import Compose

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

UP = readme_block("docker compose up --build --scale worker=3")
ROTATE = readme_block("$ for i in $(seq 6); do curl -s http://localhost/; done")
SCALE = readme_block("docker compose up -d --no-recreate --scale worker=5")
SERVICE = readme_block("services:")

# Seconds for a build and a start, and for a change to be seen.
STARTED = 300.0
NOTICED = 10.0


async def answers(compose: Compose) -> bool:
    try:
        return (await compose.get()).status_code == 200
    except httpx.TransportError:
        return False


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def quickstart(engine: None) -> AsyncIterator[Compose]:
    """The system as the quickstart brings it up, in the foreground; on free ports, as the README offers."""
    compose = Compose("balancerreadme")
    await compose.down()
    foreground = asyncio.create_task(compose.run("sh", "-c", UP.commands))
    try:
        async with asyncio.timeout(STARTED):
            while not await answers(compose):
                assert not foreground.done(), foreground
                await asyncio.sleep(0.5)
        yield compose
    finally:
        await compose.down()
        await asyncio.wait([foreground])


async def test_quickstart_three_workers_rotate_as_shown(quickstart: Compose) -> None:
    assert len(await quickstart.hostnames(3, NOTICED)) == 3
    said = await quickstart.run("sh", "-c", ROTATE.command(quickstart.url))
    assert shape(said) == shape(ROTATE.output)
    names = [line.split()[4] for line in said.splitlines()]
    assert names == names[:3] * 2
    assert len(set(names)) == 3
    numbers = [int(line.split()[5]) for line in said.splitlines()]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


async def test_scale_commands_of_the_readme_change_who_answers(quickstart: Compose) -> None:
    up, down = SCALE.commands.splitlines()
    async with quickstart.load() as tally:
        await quickstart.run("sh", "-c", up)
        assert len(await quickstart.hostnames(5, NOTICED)) == 5
        await quickstart.run("sh", "-c", down)
        assert len(await quickstart.hostnames(1, NOTICED)) == 1
    assert not tally.failures


async def test_service_of_the_readme_takes_requests_by_its_alias(quickstart: Compose, tmp_path: Path) -> None:
    override = tmp_path / "compose.override.yaml"
    override.write_text(SERVICE.text)
    # The worker of the example counts in Redis, which the reader's service knows nothing of.
    counting = tmp_path / "counting.yaml"
    counting.write_text("services: {shop: {networks: {redis: {}}}}")
    compose = Compose("balancershop", files=("compose.yaml", str(override), str(counting)))
    # The image of the example stands for the one of a reader, so that no registry is asked.
    await compose.run("docker", "image", "tag", "balancer-worker", "registry.example/shop")
    try:
        await compose("up", "--build", "--detach", "--wait", "--scale", "worker=0", "--scale", "shop=2")
        shops = {it[:12] for it in await compose.containers("shop")}
        assert await compose.hostnames(2, NOTICED) == shops
    finally:
        await compose.down()
        await compose.run("docker", "image", "rm", "registry.example/shop")
