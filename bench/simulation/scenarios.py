"""What happens to members in each scenario, and what is compared in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.simulation.members import Container, Farewell
from bench.simulation.world import Events, Figures, Setup, World, run

# A container listens so many seconds after its start.
BOOT = 0.3, 1.0
# In a restart: from the exit of the last to the start of the first.
RESTART_PAUSE = 0.5
# How the members of a deploy leave: of ten, five drain, four close and one dies.
FAREWELLS = [Farewell.DRAINS, Farewell.CLOSES] * 4 + [Farewell.DRAINS, Farewell.DIES]
# A rolling deploy replaces the members in so many steps.
STEPS = 10


async def nothing(world: World) -> None:
    """Members stay as they are."""


async def rolling(world: World) -> None:
    """A tenth of the members at a time is replaced by new ones; an old one leaves once its successor listens."""
    old = list(world.containers.values())
    seconds = world.setup.seconds
    await asyncio.sleep(0.1 * seconds)
    for step in range(STEPS):
        for number in range(step, len(old), STEPS):
            world.spawn(_replace(world, old[number], FAREWELLS[number // STEPS % len(FAREWELLS)]))
        await asyncio.sleep(0.8 * seconds / STEPS)


async def _replace(world: World, old: Container, farewell: Farewell) -> None:
    await world.add(old.speed).start(world.rng.uniform(*BOOT))
    await old.stop(farewell)


async def restart(world: World) -> None:
    """All members leave at once; once the last has gone, all come back at the same addresses."""
    old = list(world.containers.values())
    await asyncio.sleep(0.3 * world.setup.seconds)
    async with asyncio.TaskGroup() as leaving:
        for number, container in enumerate(old):
            leaving.create_task(container.stop(FAREWELLS[number % len(FAREWELLS)]))
    await asyncio.sleep(RESTART_PAUSE)
    async with asyncio.TaskGroup() as coming:
        for container in old:
            again = world.add(container.speed, container.address)
            coming.create_task(again.start(world.rng.uniform(*BOOT)))


async def recovering(world: World) -> None:
    """The slowest member has the speed of the others after half of the run."""
    slowest = min(world.containers.values(), key=lambda container: container.speed)
    await asyncio.sleep(0.5 * world.setup.seconds)
    world.set_speed(slowest, 1.0)


def equal(members: int) -> tuple[float, ...]:
    return (1.0,) * members


def unequal(members: int) -> tuple[float, ...]:
    """Every fourth at half the speed."""
    return tuple(0.5 if number % 4 == 3 else 1.0 for number in range(members))


def one_slow(members: int) -> tuple[float, ...]:
    return 0.1, *equal(members - 1)


def mixed(members: int) -> tuple[float, ...]:
    """Of four, one at twice the speed and one at half of it."""
    return tuple((2.0, 1.0, 1.0, 0.5)[number % 4] for number in range(members))


@dataclass(frozen=True)
class Scenario:
    """``load`` as in a Setup; what is unequal gets less, so that the weakest can just keep up with round robin."""

    title: str
    speeds: Callable[[int], tuple[float, ...]] = equal
    events: Events = nothing
    load: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "equal": Scenario("Equal members", load=0.7),
    "unequal": Scenario("Unequal members: every fourth at half the speed", unequal),
    "slow": Scenario("One slow member: a tenth of the speed", one_slow),
    "recovering": Scenario("One recovering member: a tenth of the speed for half of the run", one_slow, recovering),
    "mixed": Scenario("Heterogeneous members: of four, one at twice the speed and one at half of it", mixed, load=0.4),
    "rolling": Scenario("Rolling deploy: ten steps of a tenth", events=rolling, load=0.7),
    # So that a second's requests can wait.
    "restart": Scenario("Thundering restart: all go, then all come", events=restart, settings={"queue_max": 100_000}),
}


POLICIES = ("round_robin", "least_requests", "least_latency", "random", "hash")
# Where there is a limit for each member, it is twice what a member works on at a time.
LIMIT = ("max_requests_per_member", 8)

# What is compared, and the settings of the balancers for it.
VARIANTS: dict[str, tuple[tuple[str, Any], ...]] = {
    **{policy: (("policy", policy),) for policy in POLICIES},
    "hash, factor 125": (("policy", "hash"), ("hash_balance_factor", 125)),
    "round_robin, limit 8": (("policy", "round_robin"), LIMIT),
    "least_requests, limit 8": (("policy", "least_requests"), LIMIT),
}
EXTRA = {"restart": {"round_robin, QUEUE_MAX 1000": (("policy", "round_robin"), ("queue_max", 1000))}}
SEVERAL = {policy: VARIANTS[policy] for policy in ("round_robin", "round_robin, limit 8", "least_requests")}
BALANCERS = (1, 2, 5, 20)
# Members, balancers, requests.
LARGE = 10_000, 20, 1_000_000

NAMES = (*SCENARIOS, "several", "large")


@dataclass(frozen=True)
class Case:
    """One run. ``settings``: the balancers', beside those of the scenario."""

    scenario: str
    settings: tuple[tuple[str, Any], ...]
    members: int
    balancers: int
    requests: int
    seed: int

    def run(self) -> Figures:
        scenario = SCENARIOS[self.scenario]
        # The seed depends on neither policy nor settings: all of them get the same requests.
        seed = f"{self.seed} {self.scenario}"
        settings = {**scenario.settings, **dict(self.settings)}
        speeds = scenario.speeds(self.members)
        setup = Setup(seed, speeds, self.balancers, self.requests, settings, load=scenario.load)
        return run(setup, scenario.events)


@dataclass(frozen=True)
class Section:
    """Runs that are compared with each other, by what each is called."""

    title: str
    cases: Mapping[str, Case]


def sections(names: Sequence[str], members: int, balancers: int, requests: int, seed: int) -> list[Section]:
    """What is to be compared: of SCENARIOS with so much of everything, of SEVERAL with as many balancers as it says."""
    found = []
    for name in names:
        if name == "large":
            cases = {policy: Case("unequal", (("policy", policy),), *LARGE, seed) for policy in POLICIES}
            found.append(
                Section(
                    "{:,} members, {} balancers, {:,} requests: every fourth at half the speed".format(*LARGE), cases
                )
            )
        elif name == "several":
            for scenario in ("unequal", "slow"):
                cases = {
                    f"{label}, {count} balancer{'s' if count > 1 else ''}": Case(
                        scenario, settings, members, count, requests, seed
                    )
                    for label, settings in SEVERAL.items()
                    for count in BALANCERS
                }
                found.append(Section(f"Several balancers. {SCENARIOS[scenario].title}", cases))
        else:
            cases = {
                label: Case(name, settings, members, balancers, requests, seed)
                for label, settings in (VARIANTS | EXTRA.get(name, {})).items()
            }
            found.append(Section(SCENARIOS[name].title, cases))
    return found
