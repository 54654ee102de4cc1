"""Compares the policies in a simulation: ``python -m bench.simulate``.

What is simulated, and how: docs/performance/simulation.md.

The same arguments print the same bytes. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from bench.simulation.report import draw, table
from bench.simulation.scenarios import NAMES, Case, sections
from bench.simulation.world import WARM_UP, Figures


def run_all(cases: Iterable[Case], jobs: int) -> dict[Case, Figures]:
    """The figures of each; what several sections ask for is run once."""
    wanted = list(dict.fromkeys(cases))
    began = time.monotonic()
    found = {}
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        for case, figures in zip(wanted, (pool.map if pool else map)(Case.run, wanted), strict=True):
            found[case] = figures
            done = f"{len(found)} of {len(wanted)} runs, {time.monotonic() - began:.0f} s"
            print(f"\r{done}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__.partition(":")[0])
    parser.add_argument("--only", default=",".join(NAMES), help="some of %(default)s")
    parser.add_argument("--members", type=int, default=100, help="default: %(default)s ('large' has its own number)")
    parser.add_argument("--balancers", type=int, default=1, help="default: %(default)s ('large', 'several': their own)")
    parser.add_argument("--requests", type=int, default=200_000, help="of each run; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each; default: %(default)s")
    parser.add_argument("--chart", type=Path, help="an SVG to write as well")
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(NAMES)}")
    for name in ("members", "balancers", "requests", "jobs"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} takes a number from 1 up")

    compared = sections(names, given.members, given.balancers, given.requests, given.seed)
    figures = run_all((case for comparison in compared for case in comparison.cases.values()), given.jobs)
    results = [
        (comparison.title, {label: figures[case] for label, case in comparison.cases.items()})
        for comparison in compared
    ]
    what = (
        f"Simulated, seed {given.seed}: {given.members:,} members, {given.requests:,} requests a run "
        f"(unless it says otherwise), of which the first {100 * WARM_UP:.0f} % are not counted"
    )
    print(what)
    for title, found in results:
        print(f"\n## {title}\n\n{table(found)}")
    if given.chart:
        marks = "Latency: p50 (ring), p99 (dot), p99.9 (stroke), on a logarithmic scale."
        given.chart.write_text(draw("Policies compared, simulated", (f"{what}.", marks), results))


if __name__ == "__main__":
    main()
