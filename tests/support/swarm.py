"""Drives ``deploy/swarm/stack.yaml`` on a real swarm of one node, under a name of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import httpx

from bench.drill.load import Load
from tests.support.compose import recorded
from tests.support.paths import ROOT

# Longer than anything here takes; only a failing test waits for it.
LIMIT = 90.0
POLL_SECONDS = 0.1
# A window of answers that shows who is there: some forty requests at the drill's rate for each of ten clients.
WINDOW_SECONDS = 1.0
STACK = ROOT / "deploy" / "swarm" / "stack.yaml"
STAND_IN = ROOT / "tests" / "engine" / "mesh.yaml"


async def run(*command: str, **environ: str) -> tuple[int, str]:
    """Exit status, and standard output or, if it failed, standard error."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=os.environ | environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, (err if process.returncode else out).decode()


async def docker(*arguments: str, **environ: str) -> str:
    """The output of a command of the engine. Raises AssertionError if it fails."""
    status, text = await run("docker", *arguments, **environ)
    assert status == 0, f"docker {' '.join(arguments)}: {text}"
    return text


def low_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to outgoing connections."""
    ports = random.Random()
    while True:
        with socket.socket() as sock:
            try:
                sock.bind(("", port := ports.randrange(20_000, 32_768)))
            except OSError:
                continue
            return port


class NoSwarm(Exception):
    """The engine cannot be a manager; the message says why."""


@asynccontextmanager
async def swarm() -> AsyncIterator[None]:
    """The engine is a manager for as long as the context lasts. Raises NoSwarm.

    If it was none before, it is none afterwards, and the bridge that swarms use is gone if it was not there.
    """
    state = json.loads(await docker("info", "--format", "{{json .Swarm}}"))
    if state["LocalNodeState"] == "active":
        if not state["ControlAvailable"]:
            raise NoSwarm("this engine is a worker in somebody's swarm")
        yield
        return
    bridge = "docker_gwbridge"
    before = (await docker("network", "ls", "--format", "{{.Name}}")).split()
    status, text = await run("docker", "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
    if status:
        raise NoSwarm(f"docker swarm init: {text.strip()}")
    try:
        yield
    finally:
        await docker("swarm", "leave", "--force")
        if bridge not in before:
            # Sandboxes of the swarm hold on to it for a moment.
            await eventually(partial(_gone, "network", "rm", bridge))


async def _gone(*command: str) -> bool:
    status, text = await run("docker", *command)
    return not status or "not found" in text.lower() or "no such" in text.lower()


async def eventually(condition: Callable[[], Awaitable[bool]], limit: float = LIMIT) -> None:
    """Wait until something has become true; TimeoutError if it does not."""
    async with asyncio.timeout(limit):
        while not await condition():
            await asyncio.sleep(POLL_SECONDS)


class Stack:
    """The stack, deployed. ``url``: the balancers' published port, or the stand-in's for it."""

    def __init__(self, name: str = "balancerswarmtest", **environ: str) -> None:
        self.name = name
        self._tags: set[str] = set()
        self._http, self._mesh = low_port(), low_port()
        self._environ = environ | {"HTTP_PORT": str(self._http), "MESH_PORT": str(self._mesh)}
        self.url = f"http://127.0.0.1:{self._http}"
        self.stand_in = False

    async def build(self, release: str) -> None:
        """Both images of the tree, under tags of their own; each release is another image."""
        for image, dockerfile in (("balancer", "balancer"), ("worker", "worker")):
            tag = self.image(image, release)
            self._tags.add(tag)
            await docker(
                "build", "--quiet", "--label", f"swarmtest={release}", "--tag", tag,
                "--file", f"{dockerfile}/Dockerfile", ".",
            )  # fmt: skip

    def image(self, service: str, release: str) -> str:
        return f"{self.name}-{service}:{release}"

    async def deploy(self, balancer: str, worker: str, workers: int = 3) -> None:
        """``balancer``, ``worker``: the release of each."""
        await docker(
            "stack", "deploy", "--resolve-image", "never",
            "--compose-file", str(STACK), "--compose-file", str(STAND_IN), self.name,
            **self._environ,
            WORKERS=str(workers),
            BALANCER_IMAGE=self.image("balancer", balancer),
            WORKER_IMAGE=self.image("worker", worker),
        )  # fmt: skip

    async def remove(self) -> None:
        """Take the stack down; nothing is left of it."""
        await run("docker", "stack", "rm", self.name)
        label = f"label=com.docker.stack.namespace={self.name}"

        async def nothing_is_left() -> bool:
            containers = "container", "ls", "--all", "--quiet", "--filter", label
            # The engine takes its time to remove those that have ended, and forgets them once the swarm is left.
            for container in (await docker(*containers, "--filter", "status=exited")).split():
                await _gone("container", "rm", container)
            others = [await docker(kind, "ls", "--quiet", "--filter", label) for kind in ("network", "config")]
            return not any([*others, await docker(*containers)])

        await eventually(nothing_is_left)
        for volume in (await docker("volume", "ls", "--quiet", "--filter", label)).split():
            await eventually(partial(_gone, "volume", "rm", volume))
        for tag in self._tags:
            await eventually(partial(_gone, "image", "rm", tag))

    # What is going on.

    async def containers(self, service: str) -> set[str]:
        """Ids (the first twelve digits, which are the hostnames) of the containers that run."""
        label = f"label=com.docker.swarm.service.name={self.name}_{service}"
        return set((await docker("container", "ls", "--quiet", "--filter", label)).split())

    async def replicas(self, service: str, count: int) -> None:
        """Wait until so many tasks run, by the engine's count, which is of healthy ones."""
        command = "service", "ls", "--filter", f"name={self.name}_{service}", "--format", "{{.Replicas}}"

        async def there() -> bool:
            return (await docker(*command)).split() == [f"{count}/{count}"]

        await eventually(there)

    async def settled(self, service: str, count: int) -> set[str]:
        """Wait until so many containers run and none besides; returns their ids."""

        async def there() -> bool:
            return len(await self.containers(service)) == count

        await self.replicas(service, count)
        await eventually(there)
        return await self.containers(service)

    async def replaced(self, service: str, old: set[str]) -> set[str]:
        """Wait until as many other containers run in place of these; returns their ids.

        Raises AssertionError if the engine gives the update up, or takes it back.
        """

        async def so() -> bool:
            now = await self.containers(service)
            command = "service", "inspect", "--format", "{{json .UpdateStatus}}", f"{self.name}_{service}"
            status = json.loads(await docker(*command)) or {"State": "updating"}
            assert status["State"] in ("updating", "completed"), status
            return len(now) == len(old) and not now & old and status["State"] == "completed"

        await eventually(so)
        return await self.containers(service)

    async def scale(self, service: str, count: int) -> None:
        await docker("service", "scale", "--detach", f"{self.name}_{service}={count}")

    async def records(self) -> dict[str, int]:
        """How many requests recorded each name at a worker."""
        (redis,) = await self.containers("redis")
        return recorded(await docker("exec", redis, "redis-cli", "--raw", "zrange", "recorded", "0", "-1"))

    async def answers(self, port: int) -> bool:
        """Whether a worker answers behind this port."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=3.0) as client:
                return (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
        except httpx.TransportError:
            return False

    async def choose_way(self) -> None:
        """Go through the routing mesh if it works here, and through the stand-in if it does not."""
        await eventually(lambda: self.answers(self._mesh))
        self.stand_in = not await self.answers(self._http)
        self.url = f"http://127.0.0.1:{self._mesh if self.stand_in else self._http}"


async def answering(load: Load, names: Collection[str]) -> None:
    """Wait until these workers answer, each of them, and for a whole window nobody else."""

    async def so() -> bool:
        since = time.monotonic() - WINDOW_SECONDS
        return {it.who for it in load.outcomes if it.began > since} == set(names)

    await eventually(so)
