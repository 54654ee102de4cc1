"""The command: ``python -m bench [options]``, which ``make bench`` runs."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench import members, memory, peers, report, steady
from bench.builds import Builds
from bench.candidates import BALANCER, BASELINE, BESIDE, COMPILED, OURS, PEERS, Candidate, of_balancer
from bench.command import framed, names, positive, raise_file_limit, share
from bench.loads import LOADS
from bench.processes import ROOT, BenchError, cores
from bench.rounds import run_load
from bench.upstreams import HUGE_MIB, Upstreams, running_upstreams

# With the seconds that each takes.
MEMORY = {memory.IDLE: 45.0, memory.SLOW: 20.0, memory.HUGE: 115.0, memory.CROWD: 75.0}
# By the name of the measurement, the load whose requests come at a steady rate.
PACED = {
    steady.name_of(load): load for load in LOADS if load.name in ("get-32", "browser-256", "api-post-32", "proxied-32")
}
ALL = [*(load.name for load in LOADS), *PACED, *members.SENT, *MEMORY]
KNOWN = [*(candidate.name for candidate in PEERS), *OURS]
DEFAULT = [*(candidate.name for candidate in PEERS), BALANCER, COMPILED]
PARTIAL = ROOT / "bench" / ".cache" / "partial"


def main() -> int:
    arguments = _arguments()
    return framed("bench", lambda directory: Run(arguments, directory).run())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The balancer beside its peers, on loopback.")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of each load (default 5)")
    parser.add_argument("--seconds", type=positive, default=3, help="length of a measurement (default 3)")
    parser.add_argument(
        "--loads", type=names(ALL), default=None, metavar="LOAD,…", help=f"some of {', '.join(ALL)} (default all)"
    )
    parser.add_argument(
        "--candidates",
        "--only",
        dest="only",
        type=names(KNOWN, {"nginx": BASELINE}),
        default=None,
        metavar="CANDIDATE,…",
        help=f"some of {', '.join(KNOWN)} (default {', '.join(DEFAULT)}; for {', '.join(MEMORY)} the balancer alone)",
    )
    parser.add_argument(
        "--python", default="", metavar="PATH", help="the interpreter that runs the balancer (default the bench's own)"
    )
    parser.add_argument(
        "--beside", default="", metavar="COMMIT|PATH", help=f"another checkout, which takes part as {BESIDE}"
    )
    parser.add_argument(
        "--steady",
        "--paced",
        type=share,
        metavar="SHARE",
        nargs="?",
        const=steady.SHARE,
        help=f"only requests at that share ({steady.SHARE}) of the most that the balancer answers: those of --loads, "
        f"out of {', '.join(load.name for load in PACED.values())} (default get-32)",
    )
    parser.add_argument(
        "--idle", type=positive, metavar="N", nargs="?", const=10000, help="only this, with N idle clients (10000)"
    )
    parser.add_argument(
        "--slow-readers", type=positive, metavar="N", nargs="?", const=200, help="only this, with N clients (200)"
    )
    parser.add_argument(
        "--big-body",
        type=positive,
        metavar="MIB",
        nargs="?",
        const=HUGE_MIB,
        help=f"only this, with MIB MiB ({HUGE_MIB}, which is also the most)",
    )
    parser.add_argument(
        "--crowd",
        type=positive,
        metavar="SECONDS",
        nargs="?",
        const=40,
        help="only this, requests beside half-sent heads, slow bodies and slow readers for SECONDS (40)",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write bench/RESULTS.md and docs/bench.svg although this is not a run of everything",
    )
    return parser.parse_args()


class Run:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        self._arguments = arguments
        self._directory = directory
        self._cores = cores()
        self._builds = Builds(arguments.python, arguments.beside)
        wanted = [*(arguments.only or DEFAULT), *([BESIDE] if arguments.beside else [])]
        self._candidates = [it for it in [*PEERS, *of_balancer(self._builds)] if it.name in wanted]
        sizes = {
            memory.IDLE: arguments.idle,
            memory.SLOW: arguments.slow_readers,
            memory.HUGE: arguments.big_body and min(arguments.big_body, HUGE_MIB),
            memory.CROWD: arguments.crowd,
        }
        asked = [name for name, size in sizes.items() if size]
        self._loads: list[str] = arguments.loads or asked or ALL
        if arguments.steady:
            sent = arguments.loads or ["get-32"]
            self._loads = [name for name, load in PACED.items() if load.name in sent or name in sent]
        defaults = {memory.IDLE: 10000, memory.SLOW: 200, memory.HUGE: HUGE_MIB, memory.CROWD: 40}
        self._sizes = {name: size or defaults[name] for name, size in sizes.items()}
        plain = not (arguments.only or arguments.python or arguments.beside)
        self._complete = self._loads == ALL and plain

    def run(self) -> int:
        """Returns the exit status: 1 if the balancer failed or had errors."""
        peers.install()
        raise_file_limit()
        self._copy_sources()
        # The harness itself, and so everything that it does not pin, stays away from the proxy's core.
        os.sched_setaffinity(0, {self._cores[1]})
        started = time.monotonic()
        expected = expected_seconds(self._loads, len(self._candidates), self._arguments.rounds, self._arguments.seconds)
        _say(f"about {1 + expected // 60:.0f} minutes")
        results: report.Results = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "rounds": self._arguments.rounds,
            "seconds": self._arguments.seconds,
            "machine": peers.machine(),
            "candidates": {it.name: {"version": _version(it), "what": it.what} for it in self._candidates},
            "loads": {},
            "memory": {},
        }
        rounds, seconds = self._arguments.rounds, self._arguments.seconds
        with running_upstreams(self._directory, self._cores[1]) as upstreams:
            runs = {load.name: partial(run_load, load) for load in LOADS}
            share = self._arguments.steady or steady.SHARE
            runs |= {name: partial(steady.run_steady, load, share) for name, load in PACED.items()}
            for name, run in runs.items():
                if name in self._loads:
                    results["loads"][name] = run(
                        self._candidates, upstreams, rounds, seconds, self._cores, self._directory, _say
                    )
                    self._finished(results, name)
        for name in members.SENT:
            if name in self._loads:
                results["loads"][name] = members.run_members(
                    name, self._candidates, rounds, seconds, self._cores, self._directory, _say
                )
                self._finished(results, name)
        if any(name in self._loads for name in MEMORY):
            with running_upstreams(self._directory, self._cores[1]) as upstreams:
                self._memory(upstreams, results)
        self._write(results)
        _say(f"{time.monotonic() - started:.0f} s; results in {self._target()}")
        return 1 if _ours_failed(results) else 0

    def _memory(self, upstreams: Upstreams, results: report.Results) -> None:
        wanted = (
            self._candidates
            if self._arguments.only
            else [candidate for candidate in self._candidates if candidate.name == BALANCER]
        )
        for name in MEMORY:
            if name in self._loads:
                results["memory"][name] = {
                    candidate.name: self._memory_of(name, candidate, upstreams) for candidate in wanted
                }
        for line in report.memory_lines(results):
            _say(line)

    def _memory_of(self, name: str, candidate: Candidate, upstreams: Upstreams) -> dict[str, Any]:
        measure = {
            memory.IDLE: memory.idle_clients,
            memory.SLOW: memory.slow_readers,
            memory.HUGE: memory.huge_body,
            memory.CROWD: memory.crowd,
        }
        _say(f"{name}  {candidate.name} …")
        try:
            with candidate.running(upstreams, self._directory / f"{name}-{candidate.name}", self._cores[0]) as (
                server,
                address,
            ):
                memory.warm_up(server, address, self._cores[1])
                return measure[name](server, address, self._cores[1], self._sizes[name])
        except (BenchError, OSError, TimeoutError) as error:
            return {"failed": str(error) or type(error).__name__}

    def _finished(self, results: report.Results, name: str) -> None:
        results["loads"][name]["measured"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}, {peers.balancer_version()}"
        _say(f"\n{report.plain_table(name, results['loads'][name])}\n")
        self._write(results)

    def _copy_sources(self) -> None:
        """What the run starts it starts from a copy, so that nobody's work in the tree changes it half-way."""
        sources = self._directory / "sources"
        for package in ("balancer", "bench"):
            ignored = shutil.ignore_patterns("__pycache__", ".cache")
            shutil.copytree(ROOT / package, sources / package, ignore=ignored)
        os.environ["PYTHONPATH"] = str(sources)

    def _target(self) -> Path:
        return report.RESULTS_MD if self._complete or self._arguments.publish else PARTIAL / "RESULTS.md"

    def _write(self, results: report.Results) -> None:
        if self._arguments.publish and not self._complete:
            # The parts that were measured take the place of the older ones.
            results = merged(json.loads(report.RESULTS_JSON.read_text()), results)
        if self._complete or self._arguments.publish:
            report.publish(results)
        else:
            report.write(results, PARTIAL / "results.json", PARTIAL / "RESULTS.md", PARTIAL / "bench.svg")


def merged(known: report.Results, results: report.Results) -> report.Results:
    """The results, with the parts that were not measured as they are known, in the order of a complete run."""
    merged = dict(results)
    for part, order in (("candidates", KNOWN), ("loads", ALL), ("memory", ALL)):
        both = known[part] | results[part]
        merged[part] = {name: both[name] for name in [*order, *both] if name in both}
    return merged


def expected_seconds(loads: Sequence[str], candidates: int, rounds: int, seconds: int) -> float:
    """How long a run takes, but for what has to be installed or compiled."""
    # Of a measurement, around its time; of a candidate in a load: started, asked, warmed up, and stopped.
    around, once = 0.5, 1.5
    each = rounds * (seconds + around) + once
    total = 0.0
    for name in loads:
        if name in PACED:
            total += (candidates + 2) * each
        elif name in members.SENT:
            total += 40 + 6 * each
        else:
            total += MEMORY.get(name, candidates * each)
    return total


def _version(candidate: Candidate) -> str:
    """A build that cannot be made fails under each load, with the reason."""
    try:
        return candidate.version()
    except BenchError as error:
        _say(f"{candidate.name}: {error}")
        return "?"


def _ours_failed(results: report.Results) -> bool:
    for load in results["loads"].values():
        found = [figures["errors"] for name, figures in load["candidates"].items() if name in OURS]
        if any(found) or any(name in OURS for name in load["failures"]):
            return True
    ours = [figures[BALANCER] for figures in results["memory"].values() if BALANCER in figures]
    return any("failed" in figures or figures.get("beside", {}).get("errors") for figures in ours)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
