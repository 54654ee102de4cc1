"""Who reaches whom on the networks of ``compose.yaml``, and what a container may take of the machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.compose import Compose

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

ADMIN, REDIS = 9000, 6379
# Prints those of its arguments (host:port) that accept a connection. A drop by the engine's firewall is a time-out.
PROBE = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        print(place)
    except OSError:
        pass
"""


async def addresses(compose: Compose, service: str) -> dict[str, dict[str, str]]:
    """Address and gateway of the service's only container, by the name of the network in ``compose.yaml``."""
    (container,) = await compose.containers(service)
    text = await compose.run("docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", container)
    return {
        name.removeprefix(f"{compose.project}_"): {"own": it["IPAddress"], "gateway": it["Gateway"]}
        for name, it in json.loads(text).items()
    }


async def reached_from(compose: Compose, service: str, *places: str) -> set[str]:
    return set((await compose("exec", "--no-TTY", service, "python", "-c", PROBE, *places)).split())


async def reached_on(compose: Compose, network: str, *places: str) -> set[str]:
    """What a container that has joined this network alone reaches."""
    command = "docker", "run", "--rm", "--network", f"{compose.project}_{network}", "python:3.13-slim"
    return set((await compose.run(*command, "python", "-c", PROBE, *places)).split())


def every(networks: dict[str, dict[str, str]], *ports: int) -> Iterator[str]:
    for it in networks.values():
        yield from (f"{host}:{port}" for host in it.values() for port in ports)


async def test_admin_port_is_reached_from_the_host_and_its_network_and_from_no_worker(compose: Compose) -> None:
    await compose.scale(1)
    balancer = await addresses(compose, "balancer")
    assert set(balancer) == {"backend", "admin"}
    published = int(compose.admin.rpartition(":")[2])
    names = [f"{name}:{ADMIN}" for name in ("balancer", "balancer-admin", f"{compose.project}-balancer-1")]
    places = [*names, *every(balancer, ADMIN, published), *every(await addresses(compose, "worker"), ADMIN, published)]
    assert await reached_from(compose, "worker", "balancer:80", *places) == {"balancer:80"}
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(compose.admin + "/healthz")).status_code == 200
    assert f"balancer-admin:{ADMIN}" in await reached_on(compose, "admin", f"balancer-admin:{ADMIN}")
    assert await reached_on(compose, "backend", "balancer:80", *names) == {"balancer:80"}


async def test_redis_is_reached_from_workers_alone(compose: Compose) -> None:
    await compose.scale(1)
    redis = await addresses(compose, "redis")
    assert set(redis) == {"redis"}
    places = f"redis:{REDIS}", f"{redis['redis']['own']}:{REDIS}"
    assert await reached_from(compose, "worker", *places) == set(places)
    assert await reached_from(compose, "balancer", *places) == set()
    for network in ("backend", "admin"):
        assert await reached_on(compose, network, *places) == set()


async def test_commands_in_the_container_find_the_admin_port(compose: Compose) -> None:
    await compose.scale(1)
    command = "exec", "--no-TTY", "balancer", "balancer"
    await compose(*command, "wait", "--up=1")
    assert "reloaded: " in await compose(*command, "reload")
    assert "accepts connections" in await compose(*command, "check")
    assert "accepts connections" in await compose("run", "--rm", "--no-deps", "balancer", "check")


async def test_published_ports_outlive_restart_and_recreation(compose: Compose) -> None:
    await compose.scale(1)
    for change in (["restart", "balancer"], ["up", "--detach", "--force-recreate", "--no-deps", "balancer"]):
        await compose(*change)
        await compose("up", "--detach", "--wait", "--no-recreate", "--scale", "worker=1")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(compose.admin + "/healthz")).status_code == 200
        assert (await compose.get()).status_code == 200


@pytest.mark.parametrize("service", ["balancer", "worker", "redis"])
async def test_container_has_no_privileges_and_bounds(compose: Compose, service: str) -> None:
    await compose.scale(1)
    (container,) = await compose.containers(service)
    config = json.loads(await compose.run("docker", "inspect", "--format", "{{json .HostConfig}}", container))
    assert (config["ReadonlyRootfs"], config["CapDrop"], config["CapAdd"]) == (True, ["ALL"], None)
    assert config["SecurityOpt"] == ["no-new-privileges:true"]
    assert config["Memory"] >= 256 << 20
    assert config["PidsLimit"] >= 128
    # Fields of proc(5): user ids, and capabilities that the first process may ever have.
    status = await compose("exec", "--no-TTY", service, "cat", "/proc/1/status")
    found = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in found["Uid"].split()
    assert {int(found[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}


async def test_redis_volume_of_a_root_process_takes_one_command(compose: Compose) -> None:
    """docs/reference/example-system.md has it. The official image has always run Redis as its own user."""
    await compose.scale(1)
    before = (await compose.greetings(1))[0][1]
    await compose("stop", "redis")
    volume = f"{compose.project}_redis:/data"
    for owner in ("root:root", "redis:redis"):
        await compose.run(
            "docker",
            "run",
            "--rm",
            "--user",
            "root",
            "--volume",
            volume,
            "redis:8-alpine",
            "chown",
            "-R",
            owner,
            "/data",
        )
    await compose("up", "--detach", "--wait", "--scale", "worker=1")
    assert (await compose.greetings(1))[0][1] == before + 1
