"""What requests wait at a steady rate that the balancer can well bear, beside its peers at the same rate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.candidates import BALANCER, BASELINE, COMPILED, Candidate
from bench.loads import Load, Sample
from bench.processes import undisturbed
from bench.rounds import Entrants, Say, alternate, reasons, started, summarize
from bench.upstreams import Upstreams

# Of the most that the balancer answers.
SHARE = 0.7
# The load without a proxy: what of a latency is the generator's and the member's.
DIRECT = "no proxy"
# Their most is far below the rate.
TOO_SLOW = ("starlette-httpx", "starlette-aiohttp")


def name_of(load: Load) -> str:
    """What the load is called at a steady rate."""
    return "steady" if load.name == "get-32" else f"{load.name}-steady"


def run_steady(
    full: Load,
    share: float,
    candidates: Sequence[Candidate],
    upstreams: Upstreams,
    rounds: int,
    seconds: int,
    cores: tuple[int, int],
    directory: Path,
    say: Say,
) -> dict[str, Any]:
    """The balancer's most in a closed loop; then everybody at that share of it, as results.json has them.

    It is the most of the compiled balancer where that takes part. Other processes of the machine stay out of the
    figures, where the system lets: see ``undisturbed``.
    """
    name = name_of(full)
    wanted = [candidate for candidate in candidates if candidate.name not in TOO_SLOW]
    failures: dict[str, str] = {}
    load = replace(full, name=name, description="")
    with ExitStack() as stack:
        first = stack.enter_context(undisturbed(upstreams.server))
        running = started(load, wanted, upstreams, cores[0], directory, failures, say, stack)
        entrants: Entrants = {DIRECT: (upstreams.server, upstreams.members[0])} | running
        most = 0.0
        ours = next((it for it in (COMPILED, BALANCER) if it in running), None)
        if ours:
            alone = alternate(full, {ours: entrants[ours]}, rounds, seconds, cores[1], failures, say)
            most = median(sample.requests / sample.seconds for sample in alone[ours]) if alone else 0.0
            load = _load(full, ours, most, share, first)
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
        "left_out": reasons(load, wanted),
    }


def _load(full: Load, ours: str, most: float, share: float, first: bool) -> Load:
    """``first``: what is measured goes before all other processes."""
    rate = round(share * most, -2)
    neighbours = "wait for what is measured" if first else "share the cores"
    return replace(
        full,
        name=name_of(full),
        rate=rate,
        description=f"{full.description}; {rate:.0f} requests/s at random times, {share:.0%} of the {most:.0f} "
        f"that {ours} answers at the most; latency from when each was due; other processes of the machine "
        f"{neighbours}",
    )


def _summarize(load: Load, samples: Sequence[Sample], peak_mib: float) -> dict[str, Any]:
    return summarize(load, samples, peak_mib) | {
        "p99_min_ms": min(sample.p99_ms for sample in samples),
        "p99_max_ms": max(sample.p99_ms for sample in samples),
        "late_p99_ms": median(sample.late_p99_ms for sample in samples),
    }
