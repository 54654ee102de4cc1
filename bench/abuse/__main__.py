"""The command: ``python -m bench.abuse [options]``, which ``make abuse`` runs."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from bench import peers
from bench.abuse import report
from bench.abuse.candidates import BALANCER, COMMANDS, TITLES, takes_part, version
from bench.abuse.rows import ROWS, Row
from bench.abuse.run import Run
from bench.abuse.verdict import Figures
from bench.command import framed, names, raise_file_limit
from bench.processes import ROOT, BenchError, cores
from bench.upstreams import Upstreams, running_upstreams
from tests.support.tls import issue

SECONDS = 5.0
KNOWN = {row.name: row for row in ROWS}
SAVED = ROOT / "bench" / ".cache" / "abuse.json"
# Members take the heads that the balancer takes, and write down what is smuggled. ``/slow`` takes half a second: the
# bytes of the first second go out at once.
SLOW_BYTES, SLOW_RATE = 60 * 1024, "40k"
MEMBER_HTTP = "map $request $smuggled {{ ~smuggle 1; default 0; }}"
MEMBER_SERVER = """large_client_header_buffers 4 64k;
        access_log {directory}/members.log combined if=$smuggled;
        location = /slow {{ alias {directory}/slow; limit_rate {rate}; }}"""


def main() -> int:
    arguments = _arguments()
    rows = [KNOWN[name] for name in arguments.rows]
    return framed("abuse", lambda directory: run(directory, rows, arguments.candidates, arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.abuse",
        description="Attacks on the balancer and its peers, with honest clients beside them.",
    )
    parser.add_argument(
        "--rows",
        type=names(KNOWN),
        default=list(KNOWN),
        metavar="NAME[,NAME]",
        help="only these; prints, and writes no page",
    )
    parser.add_argument(
        "--candidates",
        type=names(COMMANDS),
        default=list(COMMANDS),
        metavar="NAME[,NAME]",
        help=f"only these of {', '.join(COMMANDS)}; likewise",
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="of each attack without a time of its own (default: %(default)s)"
    )
    parser.add_argument(
        "--publish", action="store_true", help="write the page with these rows beside those of earlier runs"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    return parser.parse_args()


def run(directory: Path, rows: Sequence[Row], candidates: Sequence[str], arguments: argparse.Namespace) -> int:
    """Returns the exit status: 1 if the balancer misses its verdict in a row."""
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return 0
    started = time.monotonic()
    complete = len(rows) == len(ROWS) and len(candidates) == len(COMMANDS)
    peers.install()
    os.environ["PYTHONPATH"] = str(ROOT)
    raise_file_limit()
    both = cores()
    os.sched_setaffinity(0, {both[1]})
    issue(directory)
    (directory / "slow").write_bytes(bytes(SLOW_BYTES))
    server = MEMBER_SERVER.format(directory=directory, rate=SLOW_RATE)
    with running_upstreams(directory, both[1], http=MEMBER_HTTP.format(), server=server) as upstreams:
        cells = _measure(rows, candidates, upstreams, directory, both, arguments.seconds)
    saved = report.load(SAVED)
    for name, figures in cells.items():
        saved[name] = {**saved.get(name, {}), **figures}
    report.save(SAVED, saved)
    wanted = BALANCER in candidates
    missed = {row.name: found for row in rows if wanted and (found := report.misses(row, cells.get(row.name, {})))}
    if complete or arguments.publish:
        report.DOC.write_text(report.text(saved, {name: version(name) for name in COMMANDS}))
        print(f"written to {report.DOC.relative_to(ROOT)}")
    print(f"{time.monotonic() - started:.0f} s; {len(missed)} of {len(rows)} rows missed")
    for name, found in missed.items():
        print(f"{name}: {'; '.join(found)}")
    return 1 if missed else 0


def _measure(
    rows: Sequence[Row],
    candidates: Sequence[str],
    upstreams: Upstreams,
    directory: Path,
    both: tuple[int, int],
    seconds: float,
) -> dict[str, dict[str, Figures]]:
    """All figures, by row and candidate. What the balancer is watched for afterwards goes on beside the next attack."""
    waiting: dict[str, dict[str, Future[Figures]]] = {}
    said = 0
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        for row in rows:
            runs = [Run(name, row, upstreams, directory, both) for name in candidates if takes_part(name, row)]
            for it in runs:
                stack.callback(it.close)
            for together in [runs] if row.gentle else [[it] for it in runs]:
                for it in [it for it in together if _done(it, lambda it: it.begin(seconds))]:
                    if _done(it, Run.finish):
                        waiting.setdefault(row.name, {})[it.name] = pool.submit(it.settle)
            said = _say_finished(said, waiting)
        for of in waiting.values():
            wait(of.values())
        _say_finished(said, waiting)
        return {name: _results(of) for name, of in waiting.items()}


def _done(run: Run, step: Callable[[Run], None]) -> bool:
    """Whether a step of a run came to its end; what went wrong is printed, and the other rows go on."""
    try:
        step(run)
    except BenchError as error:
        run.close()
        print(f"{run.row.name}, {run.name}: {error}", flush=True)
        return False
    return True


def _results(of: Mapping[str, Future[Figures]]) -> dict[str, Figures]:
    """The figures of a row, without those that could not be read at the end."""
    return {name: it.result() for name, it in of.items() if not isinstance(it.exception(), BenchError)}


def _say_finished(said: int, waiting: dict[str, dict[str, Future[Figures]]]) -> int:
    """A line for each row whose figures have become complete, in order; how many there have been, given that number."""
    for name, of in list(waiting.items())[said:]:
        if not all(it.done() for it in of.values()):
            break
        said += 1
        cells = _results(of)
        words = [
            f"{TITLES[candidate]} {report.latency_cell(it)}, +{report.memory_cell(it)} MiB, {it.attack.ended} ended"
            f" (clients late by {it.latency.late_p99_ms:.1f} ms)"
            for candidate, it in cells.items()
        ]
        missed = report.misses(KNOWN[name], cells) if BALANCER in of else []
        print(f"{name}: {'; '.join(words)}{'; MISSED: ' + ', '.join(missed) if missed else ''}", flush=True)
    return said


if __name__ == "__main__":
    sys.exit(main())
