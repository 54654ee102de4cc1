"""The balancer and peers, each against itself: 1000 members beside 2, under load and idle."""

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
from bench.candidates import BALANCER, BASELINE, COMPILED, Candidate
from bench.configs import Command, Site
from bench.loads import LOADS, Load
from bench.processes import START_SECONDS, Address, BenchError, Server
from bench.rounds import Say, alternate, summarize
from bench.upstreams import ALIAS, MANY_ALIAS, Upstreams, running_upstreams

NAME, BROWSER = "members-1000", "members-1000-browser"
# By the name of the measurement: the load, and which peers are measured beside the balancer.
SENT = {NAME: ("get-32", [BASELINE]), BROWSER: ("browser-32", [BASELINE, "haproxy"])}
MANY, FEW = 1000, "2 members"
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
    Variant(FEW, 2, loaded=True),
    Variant(f"{MANY} members", MANY, loaded=True),
    Variant(f"{MANY} members, resolves, never probes", MANY, probes=False),
    Variant(f"{MANY} members, probes, never resolves", MANY, resolves=False),
    Variant(f"{MANY} members, never resolves nor probes", MANY, resolves=False, probes=False, loaded=True),
]


def run_members(
    name: str,
    candidates: Sequence[Candidate],
    rounds: int,
    seconds: int,
    cores: tuple[int, int],
    directory: Path,
    say: Say,
) -> dict[str, Any]:
    """CPU a request with 2 and with ``MANY`` members; for ``NAME`` also what the idle balancer takes of a core.

    The balancer is the compiled one where that is a candidate and the pure one is not.
    """
    known = {candidate.name: candidate for candidate in candidates}
    ours = known.get(BALANCER) or known.get(COMPILED)
    try:
        if ours is None:
            raise BenchError(f"neither {BALANCER} nor {COMPILED} takes part")
        directory = directory / name
        directory.mkdir()
        with running_upstreams(directory, cores[1], MANY) as upstreams:
            measured = _Measurement(name, ours, upstreams, cores, directory, say)
            return measured.run([known[it] for it in SENT[name][1] if it in known], rounds, seconds)
    except (BenchError, OSError) as error:
        say(f"{name} failed: {error}")
        empty: dict[str, Any] = {"description": "", "unit": "CPU µs/request", "candidates": {}, "of": FEW}
        return empty | {"failures": {ours.name if ours else BALANCER: str(error)}}


class _Measurement:
    def __init__(
        self,
        name: str,
        ours: Candidate,
        upstreams: Upstreams,
        cores: tuple[int, int],
        directory: Path,
        say: Say,
    ) -> None:
        self._load: Load = replace(next(load for load in LOADS if load.name == SENT[name][0]), name=name)
        self._ours = ours
        self._variants = [it for it in VARIANTS if it.loaded or name == NAME]
        self._upstreams = upstreams
        self._cores = cores
        self._directory = directory
        self._say = say

    def run(self, peers: Sequence[Candidate], rounds: int, seconds: int) -> dict[str, Any]:
        with ExitStack() as stack, ExitStack() as idle_only:
            running = {it.name: self._start(it, stack if it.loaded else idle_only) for it in self._variants}
            idle = {}
            if len(self._variants) > sum(it.loaded for it in self._variants):
                time.sleep(SETTLE_SECONDS)
                idle = _idle({name: server for name, (server, _) in running.items()})
            idle_only.close()
            loaded = {it.name: running[it.name] for it in self._variants if it.loaded}
            relation = dict.fromkeys(loaded, FEW)
            for peer in peers:
                title = "nginx" if peer.name == BASELINE else peer.name
                for count in (2, MANY):
                    loaded[f"{title}, {count} members"] = self._start_peer(peer, count, stack)
                    relation[f"{title}, {count} members"] = f"{title}, {FEW}"
            failures: dict[str, str] = {}
            samples = alternate(self._load, loaded, rounds, seconds, self._cores[1], failures, self._say)
            peaks = {name: server.peak_kib() / 1024 for name, (server, _) in loaded.items()}
        figures = {name: summarize(self._load, taken, peaks[name]) for name, taken in samples.items()}
        for name, figure in figures.items():
            few = figures.get(relation[name], {}).get("cpu")
            figure["ratio"] = figure["cpu"] / few if few else None
        beside = " and ".join(["the balancer", *("nginx" if it.name == BASELINE else it.name for it in peers)])
        return {
            "description": f"{self._load.description}; {beside}, each with {MANY} members beside itself with 2",
            "unit": "CPU µs/request",
            "candidates": figures,
            "failures": failures,
            "of": FEW,
        } | ({"idle_core_percent": idle} if idle else {})

    def _start(self, variant: Variant, stack: ExitStack) -> tuple[Server, Address]:
        admin = Address("127.0.0.1", free_port())

        def command(site: Site) -> Command:
            made = self._ours.command(site)
            return replace(made, argv=[*made.argv, *variant.flags(), f"--admin-bind={admin}"])

        candidate = replace(self._ours, name=variant.name, command=command)
        place = self._directory / f"variant{self._variants.index(variant)}"
        entrant = stack.enter_context(candidate.running(self._upstreams, place, self._cores[0]))
        _wait_for_members(admin, variant.members)
        self._say(f"{self._load.name}  {variant.name}: all up")
        return entrant

    def _start_peer(self, peer: Candidate, count: int, stack: ExitStack) -> tuple[Server, Address]:
        candidate = replace(peer, command=lambda site: peer.command(replace(site, count=count)))
        place = self._directory / f"{peer.name}{count}"
        return stack.enter_context(candidate.running(self._upstreams, place, self._cores[0]))


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
