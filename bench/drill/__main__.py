"""``make drill``: the load through every phase, the figures, the picture. Exit status 1 if anything was lost."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from balancer.settings import Address
from bench.drill.load import Load
from bench.drill.phases import PHASES, Phase
from bench.drill.report import Row, Span, rows, table, timeline
from tests.support.compose import ROOT, Compose

PICTURE = ROOT / "docs" / "drill.svg"


async def drill(compose: Compose, phases: Sequence[Phase] = PHASES) -> tuple[list[Row], str]:
    """Run the phases on a project that is up with three workers; returns the figures and the picture."""
    target = urlsplit(compose.url)
    assert target.hostname and target.port
    load = Load(Address(target.hostname, target.port))
    spans = []
    async with load.running():
        for phase in phases:
            began = time.monotonic()
            await phase.act(compose)
            await asyncio.sleep(phase.settle)
            spans.append(Span(phase.name, began, time.monotonic()))
    return rows(spans, load.outcomes, await compose.records()), timeline(spans, load.outcomes)


def unexcused(found: Sequence[Row], phases: Sequence[Phase] = PHASES) -> list[str]:
    """What must not be: a line for each. POSTs in flight on a member that was cut off may fail, with 502 or 504."""
    problems = []
    for row, phase in zip(found, phases, strict=True):
        for kind, count in row.failures.items():
            honest = phase.excuses and kind.startswith(("POST 502", "POST 504"))
            redis = "Redis" in phase.name and "Redis is away" in kind
            if not (honest or redis):
                problems.append(f"{row.name}: {count} times {kind}")
        if row.twice:
            problems.append(f"{row.name}: {row.twice} POSTs ran twice")
        if row.missing:
            problems.append(f"{row.name}: {row.missing} acknowledged POSTs are missing")
    return problems


async def _run(compose: Compose, phases: Sequence[Phase]) -> tuple[list[Row], str, str]:
    await compose("down", "--volumes", "--timeout", "1", "--remove-orphans")
    try:
        await compose("up", "--build", "--detach", "--wait", "--scale", "worker=3")
        found, picture = await drill(compose, phases)
        return found, picture, await compose("logs", "--no-log-prefix", "balancer")
    finally:
        await compose("down", "--volumes", "--timeout", "1", "--remove-orphans")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument("--plain", action="store_true", help="uvicorn as it comes: no drain, no health path")
    parser.add_argument("--only", help="phases whose name contains this")
    parser.add_argument("--log", type=Path, help="write the balancer's log to this file")
    arguments = parser.parse_args()
    phases = [it for it in PHASES if not arguments.only or arguments.only in it.name]
    if arguments.plain:
        compose = Compose("balancerdrill", files=["compose.yaml", "bench/drill/plain.yaml"])
    else:
        compose = Compose("balancerdrill", BALANCER_HEALTH_PATH="/healthz")
    found, picture, log = asyncio.run(_run(compose, phases))
    if not (arguments.only or arguments.plain):
        PICTURE.write_text(picture)
    if arguments.log:
        arguments.log.write_text(log)
    problems = unexcused(found, phases)
    print("\n".join([*table(found), "", *(problems or ["nothing was lost, nothing ran twice"])]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
