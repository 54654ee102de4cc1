"""A rolling restart that never stops: one worker of three is restarted every two seconds, under so many requests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from bench.drill.load import Load, Outcome
from tests.support.compose import Compose

# Seconds from the begin of one restart to the begin of the next; one that takes longer delays it.
PERIOD = 2.0
# Each client's pause between two requests, in seconds.
PAUSE = 0.09


@dataclass(frozen=True)
class Rolled:
    """The figures. ``p50``, ``p99`` and ``longest``: how long requests waited, in seconds. ``took``: of all, too."""

    requests: int
    restarts: int
    took: float
    failures: Mapping[str, int]
    p50: float
    p99: float
    longest: float
    twice: int
    missing: int

    @property
    def lost(self) -> bool:
        return bool(self.failures or self.twice or self.missing)

    def lines(self) -> list[str]:
        return [
            f"{self.requests} requests in {self.took:.0f} s, {self.restarts} restarts, "
            f"{sum(self.failures.values())} failed",
            *(f"  {count} times {kind}" for kind, count in self.failures.items()),
            f"waits: p50 {self.p50 * 1000:.1f} ms, p99 {self.p99 * 1000:.1f} ms, longest {self.longest:.2f} s",
            f"POSTs that ran twice: {self.twice}; acknowledged POSTs that are missing: {self.missing}",
        ]


async def roll(compose: Compose, requests: int) -> Rolled:
    """Send at least so many requests to a project that is up with three workers."""
    load, restarts = Load(compose.url, PAUSE), 0

    async def restart() -> None:
        nonlocal restarts
        for worker in cycle(await compose.containers("worker")):
            began = time.monotonic()
            await compose.run("docker", "restart", worker)
            restarts += 1
            await asyncio.sleep(began + PERIOD - time.monotonic())

    began = time.monotonic()
    async with load.running():
        restarting = asyncio.create_task(restart())
        while len(load.outcomes) < requests and not restarting.done():
            await asyncio.sleep(0.1)
        restarting.cancel()
        (failed,) = await asyncio.gather(restarting, return_exceptions=True)
    if isinstance(failed, Exception):
        raise failed
    return judge(load.outcomes, await compose.records(), restarts, time.monotonic() - began)


def judge(outcomes: Sequence[Outcome], recorded: Mapping[str, int], restarts: int, took: float) -> Rolled:
    """``recorded``: how often each POST's name came to a worker."""
    waits = sorted(outcome.seconds for outcome in outcomes)
    return Rolled(
        len(outcomes),
        restarts,
        took,
        Counter(f"{outcome.method} {outcome.failure}" for outcome in outcomes if outcome.failure),
        percentile(waits, 50),
        percentile(waits, 99),
        waits[-1],
        sum(recorded.get(outcome.name, 0) > 1 for outcome in outcomes if outcome.name),
        sum(not outcome.failure and not recorded.get(outcome.name) for outcome in outcomes if outcome.name),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` percent of the ordered ones do not exceed; 0 if there is none."""
    return ordered[min(int(len(ordered) * share / 100), len(ordered) - 1)] if ordered else 0.0
