"""The drill as a test: nothing is lost, nothing runs twice, nobody waits long, whatever is done to the workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.drill.phases import reload, restart_redis
from bench.drill.report import table
from bench.drill.rolling import roll
from bench.drill.run import drill, project, running, unexcused
from bench.drill.services import drill_services
from bench.drill.services import project as services_project
from bench.drill.websocket import scaled
from bench.drill.yardstick import Yardstick

# Seconds under load after each phase, where `make drill` takes twice as many.
SETTLE = 1.5


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.parametrize("plain", [False, True], ids=["draining", "plain"])
async def test_requests_of_the_drill_are_not_lost_and_run_once(plain: bool) -> None:
    compose, phases = project(plain)
    # To what the balancer and Redis do, it is the same what workers run.
    same = (reload, restart_redis) if plain else ()
    phases = [replace(it, settle=min(it.settle, SETTLE)) for it in phases if it.act not in same]
    yardstick = Yardstick(compose)
    async with running(compose), yardstick.measuring():
        found, _ = await drill(compose, phases)
    assert unexcused(found, phases, yardstick.slack) == [], "\n".join(table(found))
    assert sum(row.requests for row in found) > 1000


@pytest.mark.engine
@pytest.mark.long
async def test_rolling_restart_loses_nothing() -> None:
    compose, _ = project(plain=False)
    async with running(compose):
        rolled = await roll(compose, 4000)
    assert not rolled.lost, "\n".join(rolled.lines())
    assert rolled.restarts >= 3


@pytest.mark.engine
@pytest.mark.long
async def test_websockets_on_workers_that_stay_notice_nothing_and_the_others_are_told() -> None:
    compose, _ = project(plain=False)
    async with running(compose):
        lines, problems = await scaled(compose, 200)
    assert problems == [], "\n".join(lines)


@pytest.mark.engine
@pytest.mark.long
async def test_busy_services_keep_their_requests_and_sites_that_change_places_their_own() -> None:
    compose = services_project()
    yardstick = Yardstick(compose, ("shop", "api"))
    async with yardstick.measuring():
        found, phases = await drill_services(compose)
    assert unexcused(found, phases, yardstick.slack) == [], "\n".join(table(found))
    assert all(row.requests for row in found)
