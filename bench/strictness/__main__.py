"""The command: ``python -m bench.strictness [options]``, which ``make strictness`` runs."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from balancer.demo.system import free_port
from bench import peers
from bench.builds import Builds
from bench.candidates import PEERS, Candidate, of_balancer
from bench.command import framed, names
from bench.configs import Command, Site, caddy
from bench.processes import ROOT, Address, Server, cores
from bench.strictness import report, timed
from bench.strictness.client import PATIENCE, answer_case, request_case, settle
from bench.strictness.member import Member
from bench.upstreams import ALIAS, FIRST_MEMBER, Upstreams
from tests.support.hostile import CASES
from tests.support.hostile_answers import ANSWERS

# How often a case is sent.
TRIES = 5


def main() -> int:
    arguments = _arguments()
    return framed("strictness", lambda directory: asyncio.run(run(directory, arguments.cases, arguments.only)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.strictness", description="Every case of strictness, for the balancer and its peers."
    )
    parser.add_argument(
        "--cases", metavar="TEXT", help="only cases with that in their name; prints, and writes nothing"
    )
    parser.add_argument(
        "--only", type=names(report.COLUMNS), metavar="NAME[,NAME]", help="only these; prints, and writes nothing"
    )
    return parser.parse_args()


def _caddy_for_any_host(site: Site) -> Command:
    """The bench's Caddy serves the host of its address alone."""
    command = caddy(site)
    config = site.directory / "Caddyfile"
    config.write_text(config.read_text().replace(f"http://{site.listen} ", f"http://:{site.listen.port} "))
    return command


def _candidates(names: Iterable[str]) -> list[Candidate]:
    known = {candidate.name: candidate for candidate in [*PEERS, *of_balancer(Builds())]}
    known["caddy"] = dataclasses.replace(known["caddy"], command=_caddy_for_any_host)
    return [known[name] for name in names]


async def run(directory: Path, wanted: str | None, only: list[str] | None) -> int:
    """Returns the exit status: 1 if the balancer is laxer than it should be."""
    started = time.monotonic()
    complete = wanted is None and only is None
    candidates = _candidates(only or report.COLUMNS)
    peers.install()
    proxy_core, other_core = cores()
    os.environ["PYTHONPATH"] = str(ROOT)
    os.sched_setaffinity(0, {other_core})
    results = report.Results(
        datetime.now(UTC).strftime("%Y-%m-%d"),
        {candidate.name: candidate.version().partition(",")[0] for candidate in candidates},
    )
    with ExitStack() as stack:
        resolver = Address("127.0.0.1", free_port())
        zone = [sys.executable, "-m", "bench.zone", str(resolver.port), f"{ALIAS}={FIRST_MEMBER}+1"]
        dns = stack.enter_context(Server("DNS server", zone, other_core, directory / "zone.log"))
        runs = [
            _candidate(candidate, directory / candidate.name, resolver, dns, proxy_core, wanted, complete, stack)
            for candidate in candidates
        ]
        for candidate, cells in zip(candidates, await asyncio.gather(*runs), strict=True):
            results.cells[candidate.name] = cells
    if complete:
        report.DOC.write_text(report.text(results))
        print(f"{time.monotonic() - started:.0f} s; written to {report.DOC.relative_to(ROOT)}")
    else:
        for name in results.cells[candidates[0].name]:
            print(
                f"{name}: "
                + ", ".join(f"{name_of_candidate}: {cells[name]}" for name_of_candidate, cells in results.cells.items())
            )
    found = list(report.complaints(results.cells))
    for line in found:
        print(line)
    return 1 if found else 0


async def _laxest(attempt: Callable[[], Awaitable[str]], listen: Address, member: Member) -> str:
    """The laxest of TRIES results: some depend on what arrives first. One that was waited for does not."""
    cells = []
    for _ in range(TRIES):
        await settle(listen, member)
        started = time.monotonic()
        cells.append(await attempt())
        if time.monotonic() - started > PATIENCE:
            break
    return max(cells, key=report.laxness)


async def _candidate(
    candidate: Candidate,
    directory: Path,
    resolver: Address,
    dns: Server,
    core: int,
    wanted: str | None,
    bounds: bool,
    stack: ExitStack,
) -> dict[str, str]:
    """All cells of one column."""
    member = Member()
    address = Address(FIRST_MEMBER, free_port(FIRST_MEMBER))
    await member.start(address)
    # In a thread, because it waits for an answer of the member, which lives in this one.
    running = candidate.running(Upstreams([address], resolver, dns), directory, core)
    _, listen = await asyncio.to_thread(stack.enter_context, running)
    cells: dict[str, str] = {}
    tries = {case.name: partial(request_case, listen, member, case) for case in CASES}
    tries |= {case.name: partial(answer_case, listen, member, number) for number, case in enumerate(ANSWERS)}
    for name, attempt in tries.items():
        if wanted is None or wanted in name:
            cells[name] = await _laxest(attempt, listen, member)
    await settle(listen, member)
    if bounds:
        print(f"{candidate.name}: {len(cells)} cases; bounds of time …", flush=True)
        cells |= await timed.measure(listen)
    await member.stop()
    return cells


if __name__ == "__main__":
    sys.exit(main())
