"""What requests wait at a steady rate that the balancer can well bear, beside its peers at the same rate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.candidates import BALANCER, BASELINE, CANDIDATES, Candidate
from bench.loads import LOADS, Load, Sample
from bench.processes import BenchError
from bench.rounds import Entrants, Say, alternate, summarize
from bench.upstreams import Upstreams

NAME = "steady"
# Of the most that the balancer answers.
SHARE = 0.7
# The load without a proxy: what of a latency is the generator's and the member's.
DIRECT = "no proxy"
# Their most is far below the rate.
TOO_SLOW = ("starlette-httpx", "starlette-aiohttp")


def run_steady(
    candidates: Sequence[Candidate],
    upstreams: Upstreams,
    rounds: int,
    seconds: int,
    cores: tuple[int, int],
    directory: Path,
    say: Say,
) -> dict[str, Any]:
    """The balancer's most with 32 connections; then everybody at 70 % of that, as results.json has them."""
    full = next(load for load in LOADS if load.name == "get-32")
    wanted = [
        candidate
        for candidate in CANDIDATES
        if candidate.name == BALANCER or (candidate in candidates and candidate.name not in TOO_SLOW)
    ]
    failures: dict[str, str] = {}
    entrants: Entrants = {DIRECT: (upstreams.server, upstreams.members[0])}
    with ExitStack() as stack:
        for candidate in wanted:
            place = directory / f"{NAME}-{candidate.name}"
            try:
                entrants[candidate.name] = stack.enter_context(candidate.running(upstreams, place, cores[0]))
            except (BenchError, OSError) as error:
                failures[candidate.name] = str(error)
                say(f"{candidate.name} cannot take part in {NAME}: {error}")
        load = replace(full, name=NAME, description="")
        most = 0.0
        if BALANCER in entrants:
            alone = alternate(full, {BALANCER: entrants[BALANCER]}, rounds, seconds, cores[1], failures, say)
            most = median(sample.requests / sample.seconds for sample in alone[BALANCER]) if alone else 0.0
            load = _load(full, most)
        samples = alternate(load, entrants, rounds, seconds, cores[1], failures, say) if most else {}
        peaks = {name: server.peak_kib() / 1024 for name, (server, _) in entrants.items()}
    figures = {name: _summarize(load, taken, peaks[name]) for name, taken in samples.items()}
    baseline = figures.get(BASELINE, {}).get("p99_ms")
    for figure in figures.values():
        figure["p99_ratio"] = figure["p99_ms"] / baseline if baseline else None
    return {
        "description": load.description,
        "unit": "ms",
        "rate": load.rate,
        "most": most,
        "candidates": {name: figures[name] for name in entrants if name in figures},
        "failures": failures,
    }


def _load(full: Load, most: float) -> Load:
    rate = round(SHARE * most, -2)
    return replace(
        full,
        name=NAME,
        rate=rate,
        description=f"{full.description}, {rate:.0f} requests/s at random times, {SHARE:.0%} of the {most:.0f} "
        f"that the balancer answers at the most; latency from when each was due",
    )


def _summarize(load: Load, samples: Sequence[Sample], peak_mib: float) -> dict[str, Any]:
    return summarize(load, samples, peak_mib) | {
        "p99_min_ms": min(sample.p99_ms for sample in samples),
        "p99_max_ms": max(sample.p99_ms for sample in samples),
        "late_p99_ms": median(sample.late_p99_ms for sample in samples),
    }
