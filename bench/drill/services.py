"""Phases with services of other kinds: busy ones, which must not be taken for hung, and two that change places.

Each phase has a load of its own. A request that is recorded must be so once, and a site's request is the site's alone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from functools import partial

from bench.drill.load import Ask, Load, Outcome, greet_or_record
from bench.drill.phases import Act, Phase
from bench.drill.readiness import Life
from bench.drill.report import Row, Span, rows
from bench.drill.run import running
from tests.support.compose import Compose

PROJECT = "balancerservices"
# With these, the workers of one kind are three with a turn each, of the other two with eight each.
SCALE = {"worker": 0, "sync": 3, "gthread": 2, "shop": 1, "api": 1}
# Clients that send short requests meanwhile, and the pause of each in seconds.
CLIENTS, PAUSE = 4, 0.2


def project() -> Compose:
    return Compose(PROJECT, files=["compose.yaml", "bench/drill/services.yaml"])


def phases(outcomes: list[Outcome]) -> list[Phase]:
    """The phases; what becomes of their requests is added to ``outcomes``.

    A short request that a busy worker is given before its probe is late waits as long as the one before it. A site
    without a container has its requests wait.
    """

    def busy(service: str, methods: list[str], seconds: int) -> Phase:
        name = f"busy {service}, {len(methods)} x {seconds} s"
        act = partial(_busy, outcomes, service=service, methods=methods, seconds=seconds)
        return Phase(name, act, settle=0, limit=seconds + 3.0)

    return [
        busy("sync", ["GET", "PUT"], 6),
        busy("gthread", ["GET"] * 16, 5),
        busy("gthread", ["GET", "PUT"] * 8, 15),
        Phase("DNS away, recreate", partial(_two_sites, outcomes, act=_recreate), settle=0, limit=15.0),
        Phase("DNS away, address taken", partial(_two_sites, outcomes, act=_take_over), settle=0, limit=15.0),
    ]


async def _busy(outcomes: list[Outcome], compose: Compose, service: str, methods: list[str], seconds: int) -> None:
    """Requests that take their time, one for each of ``methods``, among short ones."""
    short = Ask("GET", f"/{service}/".encode(), who=service)
    load = Load(compose.url, PAUSE, CLIENTS, lambda rng: short)

    def long(method: str) -> Ask:
        name = uuid.uuid4().hex
        return Ask(method, f"/{service}/?seconds={seconds}&name={name}".encode(), name, service)

    async with load.running():
        await asyncio.gather(*(load.send(long(method)) for method in methods))
    outcomes += load.outcomes


async def _two_sites(outcomes: list[Outcome], compose: Compose, act: Act) -> None:
    loads = [Load(compose.url, PAUSE, CLIENTS, partial(greet_or_record, site=site)) for site in ("shop", "api")]
    async with loads[0].running(), loads[1].running():
        await act(compose)
        await asyncio.sleep(3)
    for load in loads:
        outcomes += load.outcomes


async def _recreate(compose: Compose) -> None:
    for _ in range(4):
        await compose("up", "--detach", "--no-deps", "--force-recreate", "shop", "api")
        await asyncio.sleep(1)


async def _take_over(compose: Compose) -> None:
    """The only container of a site is removed, another site's gets its address, and then the site is back."""
    for _ in range(2):
        await compose("rm", "--stop", "--force", "shop")
        await compose("up", "--detach", "--no-deps", "--no-recreate", "--scale", "api=2", "api")
        await asyncio.sleep(3)
        await compose("up", "--detach", "--no-deps", "--no-recreate", "shop")
        await compose("up", "--detach", "--no-deps", "--no-recreate", "--scale", "api=1", "api")


async def drill_services(compose: Compose, only: str = "") -> tuple[list[Row], list[Phase]]:
    """Run the phases whose name contains ``only``, on a project of their own; returns the figures, and those phases."""
    outcomes: list[Outcome] = []
    chosen, spans = [phase for phase in phases(outcomes) if only in phase.name], []
    if not chosen:
        return [], []
    async with running(compose, **SCALE):
        await asyncio.gather(*(_answers(compose, site) for site in ("sync", "gthread", "shop", "api")))
        for phase in chosen:
            began = time.monotonic()
            await phase.act(compose)
            spans.append(Span(phase.name, began, time.monotonic()))
        recorded = await compose.records()
    return rows(spans, outcomes, recorded, [Life("any", 0.0)]), chosen


async def _answers(compose: Compose, service: str) -> None:
    """Wait until a service does, as long as a request is held."""
    answer = await compose.get(f"/{service}/", timeout=60.0)
    assert answer.status_code == 200, answer.text
