"""How long the machine takes for a bare request to a worker, beside everything that it does at the same time.

A drill allows waits of fixed length. On a machine that is busy, every step of a wait takes longer, and the balancer is
not the cause. A bare request goes from this host to a worker's own address; the balancer has no part in it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.support.compose import Compose

INTERVAL = 0.1
# Seconds between two looks at which workers run.
LOOK_INTERVAL = 2.0
# Limit for one request, in seconds. A worker that is paused for five seconds leaves too few measurements to count.
LIMIT = 0.5
# A member that is lost costs so many steps at most: an answer of DNS, connections, probes, and the request again.
STEPS = 20
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n"


class Yardstick:
    """Measures while ``measuring()``. ``seconds`` has the time of every bare request that was answered."""

    def __init__(self, compose: Compose, services: Sequence[str] = ("worker",), port: int = 80) -> None:
        self._compose = compose
        self._services = services
        self._port = port
        self._addresses: dict[str, list[str]] = {}
        self.seconds: list[float] = []

    @property
    def slack(self) -> float:
        """Return the seconds by which a wait may be longer: STEPS times what 99 % of the bare requests took at most."""
        ordered = sorted(self.seconds)
        return STEPS * ordered[len(ordered) * 99 // 100] if ordered else 0.0

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        """Send bare requests for as long as the context lasts."""
        tasks = [asyncio.create_task(self._look()), asyncio.create_task(self._measure())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            for service in self._services:
                try:
                    containers = await self._compose.containers(service)
                    found = [await self._compose.address(container) for container in containers]
                except AssertionError:
                    continue  # A container has gone between the two commands; the addresses from before stay.
                self._addresses[service] = [address for address in found if address]
            await asyncio.sleep(LOOK_INTERVAL)

    async def _measure(self) -> None:
        async with asyncio.TaskGroup() as requests:
            while True:
                for address in itertools.chain(*self._addresses.values()):
                    requests.create_task(self._request(address))
                await asyncio.sleep(INTERVAL)

    async def _request(self, address: str) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT):
                reader, writer = await asyncio.open_connection(address, self._port)
                try:
                    writer.write(REQUEST)
                    answered = await reader.read(1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return
        if answered:
            self.seconds.append(time.monotonic() - began)
