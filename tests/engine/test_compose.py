"""The promises of the README, on a real engine."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.support.compose import Compose

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

# Seconds after which a change must have been seen. The promise is 2; the machine may be busy.
NOTICED = 6.0


async def test_one_worker_counts_in_steps_of_one(compose: Compose) -> None:
    await compose.scale(1)
    greetings = await compose.greetings(5)
    assert len({name for name, _ in greetings}) == 1
    first = greetings[0][1]
    assert [count for _, count in greetings] == list(range(first, first + 5))


async def test_three_workers_share_evenly_and_no_count_is_given_twice(compose: Compose) -> None:
    await compose.scale(3)
    assert len(await compose.hostnames(3, NOTICED)) == 3
    greetings = await compose.greetings(300)
    shares = [sum(name == who for who, _ in greetings) for name in {name for name, _ in greetings}]
    assert shares == [100, 100, 100]
    first = greetings[0][1]
    assert [count for _, count in greetings] == list(range(first, first + 300))


async def test_scaling_down_under_load_loses_nothing(compose: Compose) -> None:
    await compose.scale(3)
    assert len(await compose.hostnames(3, NOTICED)) == 3
    async with compose.load() as tally:
        await compose.scale(1)
        assert len(await compose.hostnames(1, NOTICED)) == 1
    assert tally.requests > 0
    assert not tally.failures


async def test_recreating_every_worker_under_load_loses_nothing(compose: Compose) -> None:
    await compose.scale(2)
    assert len(await compose.hostnames(2, NOTICED)) == 2
    async with compose.load() as tally:
        await compose("up", "--detach", "--force-recreate", "--no-deps", "--scale", "worker=2", "worker")
        assert len(await compose.hostnames(2, NOTICED)) == 2
    assert not tally.failures


async def test_container_started_by_hand_joins_and_leaves_unnoticed(compose: Compose) -> None:
    await compose.scale(1)
    assert len(await compose.hostnames(1, NOTICED)) == 1
    async with compose.load() as tally:
        container = (
            await compose.run(
                "docker", "run", "--detach", "--rm", "--network", compose.network, "--network-alias", "apps",
                "--hostname", "by-hand", "balancer-worker",
            )
        ).strip()  # fmt: skip
        try:
            await compose.run("docker", "network", "connect", f"{compose.project}_redis", container)
            assert "by-hand" in await compose.hostnames(2, NOTICED)
        finally:
            await compose.run("docker", "stop", container)
        assert "by-hand" not in await compose.hostnames(1, NOTICED)
    assert not tally.failures


@pytest.mark.parametrize("service", ["worker", "balancer"])
async def test_request_in_flight_survives_the_stop_of(compose: Compose, service: str) -> None:
    await compose.scale(1)
    await compose.hostnames(1, NOTICED)
    request = asyncio.create_task(compose.get("/work?seconds=3"))
    await _in_flight(compose)
    await compose("stop", service)
    response = await request
    assert (response.status_code, response.text.endswith("worked for 3 s.\n")) == (200, True)
    await compose("up", "--detach", "--wait")


async def test_idle_stop_is_quick_and_clean(compose: Compose) -> None:
    await compose.scale(2)
    await compose.hostnames(2, NOTICED)
    began = time.monotonic()
    await compose("stop")
    assert time.monotonic() - began < 9, "somebody waited for SIGKILL, which comes after ten seconds"
    codes = await compose.exit_codes()
    assert len(codes) == 4
    assert set(codes.values()) == {0}
    await compose("up", "--detach", "--wait")


@pytest.mark.parametrize("service", ["balancer", "worker", "redis"])
async def test_stop_in_the_first_moment_of_a_slow_container_is_quick(compose: Compose, service: str) -> None:
    await compose.scale(1)
    (container,) = await compose.containers(service)
    await compose("stop", service)
    await compose.run("docker", "update", "--cpus", "0.1", container)
    await compose.run("docker", "start", container)
    began = time.monotonic()
    await compose.run("docker", "stop", container)
    assert time.monotonic() - began < 8, "it waited for SIGKILL, which comes after ten seconds"
    await compose("up", "--detach", "--wait", "--force-recreate", "--no-deps", service)


async def test_count_outlives_the_containers_and_a_killed_redis(compose: Compose) -> None:
    await compose.scale(1)
    before = (await compose.greetings(1))[0][1]
    await compose("down")
    await compose("up", "--detach", "--wait")
    assert (await compose.greetings(1))[0][1] == before + 1
    await compose("kill", "--signal", "SIGKILL", "redis")
    await compose("up", "--detach", "--wait")
    assert (await _recovered(compose)) == before + 2


async def test_worker_without_redis_says_so_and_recovers_by_itself(compose: Compose) -> None:
    await compose.scale(1)
    before = (await compose.greetings(1))[0][1]
    await compose("stop", "redis")
    response = await compose.get()
    assert response.status_code == 503
    assert response.text.endswith("cannot count: Redis is away\n")
    assert "X-Balancer-Error" not in response.headers
    await compose("start", "redis")
    assert await _recovered(compose) == before + 1
    assert "Traceback" not in await compose("logs", "worker")


async def test_requests_without_workers_wait_and_then_learn_why(compose: Compose) -> None:
    await compose.scale(1)
    await compose("stop", "worker")
    held = asyncio.create_task(compose.get())
    async with asyncio.timeout(NOTICED):
        while not (await _members(compose))["queued"]:
            await asyncio.sleep(0.05)
    await compose("start", "worker")
    assert (await held).status_code == 200

    await compose("stop", "worker")
    refused = await compose.get()
    assert refused.status_code == 503
    assert refused.headers["X-Balancer-Error"] == "no_member"
    assert refused.headers["Retry-After"] == "1"
    await compose("start", "worker")


async def test_images_run_as_an_unprivileged_user(compose: Compose) -> None:
    for service in ("balancer", "worker"):
        uid = await compose("exec", "--no-TTY", service, "python", "-c", "import os; print(os.getuid())")
        assert uid.strip() == "10001"


async def _members(compose: Compose) -> dict[str, object]:
    async with httpx.AsyncClient(trust_env=False) as client:
        status: dict[str, object] = (await client.get(compose.admin + "/members")).json()
        return status


async def _in_flight(compose: Compose) -> None:
    """Wait until a member has a request in flight."""
    async with asyncio.timeout(NOTICED):
        while True:
            members = (await _members(compose))["members"]
            assert isinstance(members, list)
            if any(it["in_flight"] for it in members):
                return
            await asyncio.sleep(0.02)


async def _recovered(compose: Compose) -> int:
    """The first count that is given again."""
    async with asyncio.timeout(4 * NOTICED):
        while (response := await compose.get()).status_code == 503:
            await asyncio.sleep(0.1)
    return int(response.text.split()[-2])
