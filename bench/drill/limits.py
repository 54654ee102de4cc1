"""``MAX_REQUESTS_PER_MEMBER=auto`` beside fixed limits, for three kinds of workers, at three times their capacity.

Each limit is measured with workers at full speed, and once their speed has halved. ``auto`` has FOUND_WITHIN seconds to
find its number, and FOUND_AGAIN_WITHIN after that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from bench.drill.overload import (
    FLAG,
    MEMBERS,
    PATIENCE,
    Answer,
    Kind,
    Worker,
    balancer,
    figures,
    members,
    offer,
)

KINDS = {
    kind.name: kind
    for kind in (Kind("sync", 1, 0.04, in_turn=True), Kind("threads", 8, 0.16), Kind("asyncio", 64, 0.4))
}
LOAD = 3.0
# What is tried of the number that a worker can do at once.
TRIED = (0.75, 1.0, 1.25, 1.5)
# Seconds at each speed with a fixed limit, of which the first are not counted.
LENGTH, WARM_UP = 6.0, 2.0
# When ``auto`` has to have found its number, and for how long its goodput counts then.
FOUND_WITHIN, FOUND_AGAIN_WITHIN, COUNTED = 10.0, 20.0, 8.0
# Goodput of ``auto`` as a share of that with the best fixed limit.
GOOD = 0.95
# The queue holds what the slowest worker can answer while its client still waits.
QUEUE = f"--queue-timeout={PATIENCE / 2:g}"


async def _halve(workers: Sequence[Worker], after: float) -> None:
    await asyncio.sleep(after)
    for worker in workers:
        worker.speed = 0.5


async def _run(kind: Kind, limit: str, halved_after: float, length: float) -> tuple[list[Answer], float]:
    """Return the answers under a load in whose course the workers' speed halves, and when it began."""
    rng = random.Random(1)
    workers = [Worker(rng, kind) for _ in range(MEMBERS)]
    async with members(workers) as zone, balancer(zone, f"{FLAG}={limit}", QUEUE) as target:
        began = time.monotonic()
        halving = asyncio.create_task(_halve(workers, halved_after))
        answers = await offer(target, LOAD * kind.capacity, length, rng)
        await halving
    return answers, began


async def compare(kind: Kind) -> bool:
    """Print a table of the limits for a kind of workers; return whether ``auto`` is good enough."""
    print(
        f"\n{kind.name}: {kind.knee} at once, {kind.service * 1000:g} ms each; {LOAD:g} times {kind.capacity:g}/s come"
    )
    print(f"{'limit':>8} {'goodput':>10} {'at half speed':>14}")
    best = [0.0, 0.0]
    for limit in dict.fromkeys(max(1, round(kind.knee * share)) for share in TRIED):
        answers, began = await _run(kind, str(limit), LENGTH, 2 * LENGTH)
        found = [
            figures(LOAD, answers, began, until, until - LENGTH + WARM_UP).goodput for until in (LENGTH, 2 * LENGTH)
        ]
        best = [max(pair) for pair in zip(best, found, strict=True)]
        print(f"{limit:>8} {found[0]:8.0f}/s {found[1]:12.0f}/s", flush=True)
    halved = FOUND_WITHIN + COUNTED
    length = halved + FOUND_AGAIN_WITHIN + COUNTED
    answers, began = await _run(kind, "auto", halved, length)
    found = [figures(LOAD, answers, began, until, until - COUNTED).goodput for until in (halved, length)]
    shares = [goodput / max(most, 1e-9) for goodput, most in zip(found, best, strict=True)]
    print(f"{'auto':>8} {found[0]:8.0f}/s {found[1]:12.0f}/s")
    print(f"{'':8} {shares[0]:10.0%} {shares[1]:14.0%} of the best", flush=True)
    return min(shares) >= GOOD


async def compare_all(names: Sequence[str]) -> int:
    """Print the tables of these kinds of workers; exit status 1 if ``auto`` is not good enough for one of them."""
    good = [await compare(KINDS[name]) for name in names]
    return 0 if all(good) else 1
