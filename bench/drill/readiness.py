"""When each worker became ready and when it ended, by the engine's word and by asking the workers themselves.

A worker's end is the engine's ``die`` event. Its readiness is the first 200 on its health path, asked from
the host at its own address every POLL_SECONDS, not through the balancer: the engine's ``start`` comes
before the process listens, and to take the first answer through the balancer would excuse
the balancer for being slow. So a gap is found up to POLL_SECONDS and one answer too long, and not shorter than it was.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf

from tests.support.compose import Compose

POLL_SECONDS = 0.02
# Limit for one question, in seconds: a worker that is paused or cut off does not answer at all.
ANSWER_SECONDS = 0.5
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Life:
    """One run of a container. ``ready`` and ``ended`` are readings of the monotonic clock, inf until they happen."""

    container: str
    ready: float = inf
    ended: float = inf


def gap(lives: Iterable[Life], began: float, ended: float) -> float:
    """The longest time in seconds between two readings of the monotonic clock when no worker was ready and alive."""
    longest, covered = 0.0, began
    for life in sorted(lives, key=lambda life: life.ready):
        if life.ready < ended:
            longest = max(longest, life.ready - covered)
            covered = max(covered, life.ended)
    return max(longest, ended - covered)


class Readiness:
    """Watches the workers of a project; ``lives`` grows while ``watching()``."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._current: dict[str, Life] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self.lives: list[Life] = []

    async def ready(self) -> None:
        """Wait until every worker that runs is ready."""
        while any(life.ready == inf for life in self._current.values()):
            await asyncio.sleep(POLL_SECONDS)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Follows the engine's events for as long as the context lasts; workers that run already count from now."""
        async with self._compose.events("worker") as events:
            for container in await self._compose.containers("worker"):
                self._started(container)
            follower = asyncio.create_task(self._follow(events))
            try:
                yield
            finally:
                tasks = [follower, *self._polls.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, events: AsyncIterator[str]) -> None:
        async for line in events:
            event = json.loads(line)
            container = event["id"]
            if event["Action"] == "start":
                self._started(container)
            elif event["Action"] == "die":
                when = event["timeNano"] / 1e9 - (time.time() - time.monotonic())
                self._ended(container, when)

    def _started(self, container: str) -> None:
        if container in self._current:
            return  # It was running already, and the event that says so is from before.
        life = self._current[container] = Life(container)
        self.lives.append(life)
        self._polls[container] = asyncio.create_task(self._poll(life))

    def _ended(self, container: str, when: float) -> None:
        if life := self._current.pop(container, None):
            life.ended = when
        if poll := self._polls.pop(container, None):
            poll.cancel()

    async def _poll(self, life: Life) -> None:
        while not (address := await self._compose.address(life.container)):
            await asyncio.sleep(POLL_SECONDS)
        ready = asyncio.Event()

        async def ask() -> None:
            if await _ready(address):
                ready.set()

        questions = set()
        while not ready.is_set():
            # What is asked while the container's network is being set up is lost, and asked again by the kernel
            # after a second only: so one question does not wait for another.
            question = asyncio.create_task(ask())
            questions.add(question)
            question.add_done_callback(questions.discard)
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await ready.wait()
            except TimeoutError:
                pass
        life.ready = time.monotonic()
        for question in questions:
            question.cancel()


async def _ready(host: str) -> bool:
    """Whether the worker at this address says that it takes requests."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, 80)
            try:
                writer.write(HEALTH)
                return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False
