"""The drill itself: the load through every phase, and what must not be found afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.drill.load import Load
from bench.drill.phases import PHASES, PLAIN_PHASES, Phase, reload
from bench.drill.readiness import Readiness
from bench.drill.report import Row, Span, rows, timeline
from tests.support.compose import Compose

PROJECT = "balancerdrill"
# What a worker says.
REDIS_AWAY = "cannot count: Redis is away"


def project(plain: bool, asgi: bool = False) -> tuple[Compose, list[Phase]]:
    """The project with workers that drain and say when they are ready, or with plain ones; and their phases.

    ``asgi``: clients are served through ASGI rather than by the balancer's own front end.
    """
    files = ["compose.yaml"]
    phases = PLAIN_PHASES if plain else PHASES
    if asgi:
        files.append("bench/drill/asgi.yaml")
        # uvicorn's own front end, which `balancer serve` never uses, closes connections to which a request is coming.
        phases = [phase for phase in phases if phase.act is not reload]
    if plain:
        return Compose(PROJECT, files=[*files, "bench/drill/plain.yaml"]), phases
    return Compose(PROJECT, files=files, BALANCER_HEALTH_PATH="/healthz"), phases


@asynccontextmanager
async def running(compose: Compose, **scale: int) -> AsyncIterator[None]:
    """The project is up, with three workers unless ``scale`` says otherwise; nothing is left of it afterwards."""
    scaled = [word for service, count in (scale or {"worker": 3}).items() for word in ("--scale", f"{service}={count}")]
    await compose("down", "--volumes", "--timeout", "1", "--remove-orphans")
    try:
        await compose("up", "--build", "--detach", "--wait", *scaled)
        yield
    finally:
        await compose("down", "--volumes", "--timeout", "1", "--remove-orphans")


async def drill(compose: Compose, phases: Sequence[Phase] = PHASES) -> tuple[list[Row], str]:
    """Run the phases on a project that is up with three workers; returns the figures and the picture."""
    load, readiness, spans = Load(compose.url), Readiness(compose), []
    async with readiness.watching(), load.running():
        await readiness.ready()
        for phase in phases:
            began = time.monotonic()
            await phase.act(compose)
            await asyncio.sleep(phase.settle)
            spans.append(Span(phase.name, began, time.monotonic()))
    found = rows(spans, load.outcomes, await compose.records(), readiness.lives)
    return found, timeline(spans, load.outcomes)


def unexcused(found: Sequence[Row], phases: Sequence[Phase] = PHASES, slack: float = 0.0) -> list[str]:
    """What must not be: a line for each. POSTs in flight on a member that was cut off may fail, with 502 or 504.

    ``slack``: seconds by which every wait may be longer, on a machine that has other things to do.
    """
    problems = []
    for row, phase in zip(found, phases, strict=True):
        for kind, count in row.failures.items():
            # A worker that was cut off from the network may say in its own words, once it is back, that Redis was away.
            honest = phase.excuses and (
                kind.startswith(("POST 502", "POST 504")) or (kind.startswith("POST 503") and REDIS_AWAY in kind)
            )
            if not honest:
                problems.append(f"{row.name}: {count} times {kind}")
        if row.twice:
            problems.append(f"{row.name}: {row.twice} recorded requests ran twice")
        if row.missing:
            problems.append(f"{row.name}: {row.missing} acknowledged requests are missing")
        waited = row.longest_get if phase.excuses else row.longest
        if waited > row.gap + phase.limit + slack:
            problems.append(
                f"{row.name}: {'a GET' if phase.excuses else 'a request'} waited {waited:.2f} s, and "
                f"{row.gap:.2f} s without a worker plus {phase.limit:g} s are allowed"
            )
    return problems
