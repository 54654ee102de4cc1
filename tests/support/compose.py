"""Drives the project's own ``compose.yaml`` on a real engine, under a project name of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import unquote

import httpx

from balancer.demo.system import free_port
from balancer.watch import Loop, Result, Tally
from tests.support.paths import ROOT

GREETING = re.compile(r"Hello World I am (\S+)! (\d+) times\.\n")


def engine_problem() -> str:
    """Why no engine can be used here, or "" if one can."""
    try:
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True, timeout=30)
        subprocess.run(["docker", "info"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no Docker Engine with Compose answers: {error}"
    return ""


class Compose:
    """The running project. ``url`` is the balancer's data port, ``admin`` its admin port."""

    def __init__(self, project: str = "balancertest", files: Sequence[str] = ("compose.yaml",), **environ: str) -> None:
        self.project = project
        self.network = f"{project}_backend"
        self._environ = {key: value for key, value in os.environ.items() if not key.startswith("BALANCER_")} | {
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_FILE": os.pathsep.join(files),
            "HTTP_PORT": str(free_port()),
            "ADMIN_PORT": str(free_port()),
            **environ,
        }
        self.url = f"http://127.0.0.1:{self._environ['HTTP_PORT']}"
        self.admin = f"http://127.0.0.1:{self._environ['ADMIN_PORT']}"

    async def run(self, *command: str) -> str:
        """Run a command in the project's folder; returns its output. Raises AssertionError if it fails."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, f"{' '.join(command)}: {err.decode()}"
        return out.decode()

    async def __call__(self, *arguments: str) -> str:
        return await self.run("docker", "compose", *arguments)

    async def down(self) -> None:
        """Remove all that there is of the project."""
        await self("down", "--volumes", "--timeout", "1", "--remove-orphans")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """The project anew, up with one worker; nothing is left of it afterwards."""
        await self.down()
        try:
            await self("up", "--build", "--detach", "--wait", "--scale", "worker=1")
            yield self
        finally:
            await self.down()

    async def scale(self, workers: int) -> None:
        await self("up", "--detach", "--no-recreate", "--scale", f"worker={workers}")

    async def containers(self, service: str) -> list[str]:
        """Full ids of the service's containers, stopped ones included."""
        return (await self("ps", "--all", "--quiet", service)).split()

    async def exit_codes(self) -> dict[str, int]:
        ids = (await self("ps", "--all", "--quiet")).split()
        text = await self.run("docker", "inspect", "--format", "{{.Name}} {{.State.ExitCode}}", *ids)
        return {name.lstrip("/"): int(code) for name, code in (line.split() for line in text.splitlines())}

    async def records(self) -> dict[str, int]:
        """How many requests recorded each name at a worker."""
        return recorded(await self("exec", "--no-TTY", "redis", "redis-cli", "--raw", "zrange", "recorded", "0", "-1"))

    async def address(self, container: str) -> str:
        """The container's IPv4 address on the project's network, or "" while it has none."""
        form = f'{{{{with index .NetworkSettings.Networks "{self.network}"}}}}{{{{.IPAddress}}}}{{{{end}}}}'
        return (await self.run("docker", "inspect", "--format", form, container)).strip()

    @asynccontextmanager
    async def events(self, service: str) -> AsyncIterator[AsyncIterator[str]]:
        """The engine's events of the service's containers from now on, each as a line of JSON."""
        command = ["docker", "events", "--format", "{{json .}}", "--since", str(int(time.time()))]
        for label in (f"project={self.project}", f"service={service}"):
            command += ["--filter", f"label=com.docker.compose.{label}"]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        try:
            yield _lines(process.stdout)
        finally:
            process.terminate()
            await process.wait()

    async def get(self, path: str = "/", timeout: float = 30.0) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=timeout) as client:
            return await client.get(self.url + path)

    async def greetings(self, count: int) -> list[tuple[str, int]]:
        """(hostname, n) of so many requests, one after the other."""
        found = []
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(count):
                response = await client.get(self.url)
                greeting = GREETING.fullmatch(response.text)
                assert greeting, response.text
                found.append((greeting[1], int(greeting[2])))
        return found

    async def hostnames(self, expected: int, limit: float) -> set[str]:
        """The hostnames of a window of requests, once there are so many; at the latest after ``limit`` seconds."""
        names: set[str] = set()
        try:
            async with asyncio.timeout(limit):
                while len(names) != expected:
                    names = {name for name, _ in await self.greetings(3 * expected)}
        except TimeoutError:
            pass
        return names

    @asynccontextmanager
    async def load(self, rate: float = 20.0) -> AsyncIterator[Tally]:
        """A curl loop for as long as the context lasts."""
        tally = Tally()

        async def pump() -> None:
            result: Result
            async for result in Loop(self.url, rate).results():
                tally.add(result)

        task = asyncio.create_task(pump())
        try:
            yield tally
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def recorded(lines: str) -> dict[str, int]:
    """How often each name was recorded. Each time is a line with the quoted name and the request's own id."""
    return Counter(unquote(line.partition(" ")[0]) for line in lines.split("\n") if line)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    while line := await stream.readline():
        yield line.decode()
