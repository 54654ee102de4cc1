"""One load over all candidates: alternated round by round, medians over the rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench.candidates import BASELINE, Candidate
from bench.loads import Load, Sample
from bench.processes import Address, BenchError, Server
from bench.upstreams import Upstreams

# Seconds: how long a candidate may take to come to rest, and in which steps it is looked at; the share of a core below
# which it counts as being at rest.
SETTLE_LIMIT, SETTLE_STEP, QUIET_SHARE = 10.0, 0.2, 0.2

Say = Callable[[str], None]
Entrants = dict[str, tuple[Server, Address]]


def run_load(
    load: Load,
    candidates: Sequence[Candidate],
    upstreams: Upstreams,
    rounds: int,
    seconds: int,
    cores: tuple[int, int],
    directory: Path,
    say: Say,
) -> dict[str, Any]:
    """The figures of every candidate under one load, as results.json has them."""
    failures: dict[str, str] = {}
    left_out = reasons(load, candidates)
    with ExitStack() as stack:
        entrants = started(load, candidates, upstreams, cores[0], directory, failures, say, stack)
        samples = alternate(load, entrants, rounds, seconds, cores[1], failures, say)
        peaks = {name: server.peak_kib() / 1024 for name, (server, _) in entrants.items()}
    figures = {name: summarize(load, samples[name], peaks[name]) for name in samples}
    baseline = figures.get(BASELINE, {}).get("cpu")
    for figure in figures.values():
        figure["ratio"] = figure["cpu"] / baseline if baseline else None
    return {
        "description": load.description,
        "unit": "CPU ms/MiB" if load.per_mib else "CPU µs/request",
        "candidates": {
            candidate.name: figures[candidate.name] for candidate in candidates if candidate.name in figures
        },
        "failures": failures,
        "left_out": left_out,
    }


def reasons(load: Load, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Of those candidates that cannot take the load: why."""
    found = {candidate.name: candidate.left_out(load.door) for candidate in candidates}
    return {name: reason for name, reason in found.items() if reason}


def started(
    load: Load,
    candidates: Sequence[Candidate],
    upstreams: Upstreams,
    core: int,
    directory: Path,
    failures: dict[str, str],
    say: Say,
    stack: ExitStack,
) -> Entrants:
    """The candidates that can take the load, started, each asked for one correct response."""
    entrants: Entrants = {}
    for candidate in candidates:
        if candidate.left_out(load.door):
            continue
        try:
            place = directory / f"{load.name}-{candidate.name}"
            entrant = stack.enter_context(candidate.running(upstreams, place, core, load.door))
            load.verify(entrant[1])
        except (BenchError, OSError) as error:
            failures[candidate.name] = str(error)
            say(f"{candidate.name} cannot take part in {load.name}: {error}")
        else:
            entrants[candidate.name] = entrant
    return entrants


def alternate(
    load: Load,
    entrants: Mapping[str, tuple[Server, Address]],
    rounds: int,
    seconds: int,
    core: int,
    failures: dict[str, str],
    say: Say,
) -> dict[str, list[Sample]]:
    """A B C … A B C …, after a short warm-up of each; one that fails is out from then on."""
    samples: dict[str, list[Sample]] = {name: [] for name in entrants}
    for number in range(rounds + 1):
        for name, (server, address) in entrants.items():
            if name in failures:
                continue
            try:
                sample = load.measure(server, address, seconds if number else 1, core)
                if not sample.requests:
                    raise BenchError(f"it answered nothing in {sample.seconds:.0f} s; errors: {sample.errors}")
            except BenchError as error:
                failures[name] = str(error)
                say(f"{name} failed in {load.name}: {error}")
                continue
            finally:
                _settle(server)
            if number:
                samples[name].append(sample)
                say(
                    f"{load.name}  round {number}/{rounds}  {name:<18} {cost(load, sample):9.2f} "
                    f"{'ms/MiB' if load.per_mib else 'µs'}  {sample.requests / sample.seconds:9.1f}/s"
                    + (f"  errors {sample.errors}" if sample.errors else "")
                )
    return {name: taken for name, taken in samples.items() if taken and name not in failures}


def _settle(server: Server) -> None:
    """Wait until a candidate has worked off what the load left behind: the next one shares its core."""
    deadline = time.monotonic() + SETTLE_LIMIT
    while time.monotonic() < deadline:
        before = server.cpu_seconds()
        time.sleep(SETTLE_STEP)
        if server.cpu_seconds() - before < QUIET_SHARE * SETTLE_STEP:
            return


def cost(load: Load, sample: Sample) -> float:
    """CPU ms a MiB or CPU µs a request."""
    return sample.cpu_seconds * 1e3 / sample.mib if load.per_mib else sample.cpu_seconds * 1e6 / sample.requests


def summarize(load: Load, samples: Sequence[Sample], peak_mib: float) -> dict[str, Any]:
    """Medians over the rounds; errors are summed."""
    costs = [cost(load, sample) for sample in samples]
    errors: dict[str, int] = {}
    for sample in samples:
        for kind, number in sample.errors.items():
            errors[kind] = errors.get(kind, 0) + number
    return {
        "cpu": median(costs),
        "cpu_min": min(costs),
        "cpu_max": max(costs),
        "requests_per_second": median(sample.requests / sample.seconds for sample in samples),
        "mib_per_second": median(sample.mib / sample.seconds for sample in samples),
        "p50_ms": median(sample.p50_ms for sample in samples),
        "p99_ms": median(sample.p99_ms for sample in samples),
        "core_percent": median(100 * sample.cpu_seconds / sample.seconds for sample in samples),
        "foreign_percent": median(100 * sample.foreign_seconds / sample.seconds for sample in samples),
        "peak_mib": peak_mib,
        "requests": sum(sample.requests for sample in samples),
        "errors": errors,
    }
