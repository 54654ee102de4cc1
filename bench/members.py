"""The balancer against itself: 1000 members beside 2, under load and idle."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from balancer.demo.system import free_port
from bench.candidates import BALANCER, Candidate, Command, Site, balancer, nginx_keepalive
from bench.loads import LOADS
from bench.peers import balancer_version
from bench.processes import START_SECONDS, Address, BenchError, Server
from bench.rounds import Say, alternate, summarize
from bench.upstreams import ALIAS, MANY_ALIAS, running_upstreams

NAME = "members-1000"
MANY = 1000
# The admin listener asks for the names of all containers when they come and are up, which is not what is measured.
SETTLE_SECONDS = 16.0
IDLE_SECONDS = 8.0
NEVER = "3600"


@dataclass(frozen=True)
class Variant:
    """A balancer with 2 or ``MANY`` members; ``loaded`` says that it is measured under load, too."""

    name: str
    members: int
    resolves: bool = True
    probes: bool = True
    loaded: bool = False

    def flags(self) -> Sequence[str]:
        return [
            f"--alias={ALIAS if self.members == 2 else MANY_ALIAS}",
            *([] if self.resolves else [f"--resolve-interval={NEVER}"]),
            *([] if self.probes else [f"--health-interval={NEVER}"]),
        ]


VARIANTS = [
    Variant("2 members", 2, loaded=True),
    Variant(f"{MANY} members", MANY, loaded=True),
    Variant(f"{MANY} members, resolves, never probes", MANY, probes=False),
    Variant(f"{MANY} members, probes, never resolves", MANY, resolves=False),
    Variant(f"{MANY} members, never resolves nor probes", MANY, resolves=False, probes=False, loaded=True),
]


def run_members(rounds: int, seconds: int, cores: tuple[int, int], directory: Path, say: Say) -> dict[str, Any]:
    """CPU a request with 2 and with ``MANY`` members, and what the idle balancer takes of a core."""
    try:
        return _run_members(rounds, seconds, cores, directory, say)
    except (BenchError, OSError) as error:
        say(f"{NAME} failed: {error}")
        failures = {BALANCER: str(error)}
        return {
            "description": "",
            "unit": "CPU µs/request",
            "candidates": {},
            "failures": failures,
            "idle_core_percent": {},
        }


def _run_members(rounds: int, seconds: int, cores: tuple[int, int], directory: Path, say: Say) -> dict[str, Any]:
    load = replace(next(load for load in LOADS if load.name == "get-32"), name=NAME)
    directory = directory / NAME
    directory.mkdir()
    with ExitStack() as stack, ExitStack() as idle_only:
        upstreams = stack.enter_context(running_upstreams(directory, cores[1], MANY))
        running: dict[str, tuple[Server, Address]] = {}
        for number, variant in enumerate(VARIANTS):
            admin = Address("127.0.0.1", free_port())

            def command(site: Site, variant: Variant = variant, admin: Address = admin) -> Command:
                return balancer(site, *variant.flags(), f"--admin-bind={admin}")

            candidate = Candidate(BALANCER, variant.name, command, balancer_version)
            running[variant.name] = (stack if variant.loaded else idle_only).enter_context(
                candidate.running(upstreams, directory / f"variant{number}", cores[0])
            )
            _wait_for_members(admin, variant.members)
            say(f"{NAME}  {variant.name}: all up")
        time.sleep(SETTLE_SECONDS)
        idle = _idle({name: server for name, (server, _) in running.items()})
        idle_only.close()
        failures: dict[str, str] = {}
        loaded = {variant.name: running[variant.name] for variant in VARIANTS if variant.loaded}
        for count in (2, MANY):

            def nginx(site: Site, count: int = count) -> Command:
                return nginx_keepalive(replace(site, count=count))

            name = f"nginx, {count} members"
            peer = Candidate(name, "", nginx, balancer_version)
            loaded[name] = stack.enter_context(peer.running(upstreams, directory / f"nginx{count}", cores[0]))
        samples = alternate(load, loaded, rounds, seconds, cores[1], failures, say)
        peaks = {name: server.peak_kib() / 1024 for name, (server, _) in loaded.items()}
    figures = {name: summarize(load, taken, peaks[name]) for name, taken in samples.items()}
    for name, figure in figures.items():
        few = figures.get("nginx, 2 members" if name.startswith("nginx") else VARIANTS[0].name, {}).get("cpu")
        figure["ratio"] = figure["cpu"] / few if few else None
    return {
        "description": f"{load.description}; the balancer and nginx, each with {MANY} members beside itself with 2",
        "unit": "CPU µs/request",
        "candidates": figures,
        "failures": failures,
        "idle_core_percent": idle,
    }


def _wait_for_members(admin: Address, expected: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    up = 0
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://{admin}/members", timeout=10) as response:
            up = sum(member["state"] == "up" for member in json.load(response)["members"])
        if up == expected:
            return
        time.sleep(0.2)
    raise BenchError(f"the balancer says that {up} of {expected} members are up")


def _idle(servers: dict[str, Server]) -> dict[str, float]:
    """Per cent of a core that each uses while no request comes."""
    before = {name: server.cpu_seconds() for name, server in servers.items()}
    time.sleep(IDLE_SECONDS)
    return {name: 100 * (server.cpu_seconds() - before[name]) / IDLE_SECONDS for name, server in servers.items()}
