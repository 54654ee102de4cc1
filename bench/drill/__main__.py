"""``make drill``: a load, what is done to the workers meanwhile, the figures.

Without an option the load goes through every phase, and the picture is drawn. Exit status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from bench.drill.ejection import ejection
from bench.drill.limits import KINDS, compare_all
from bench.drill.overload import Problem, overload
from bench.drill.report import Row, table
from bench.drill.rolling import roll
from bench.drill.run import drill, project, running, unexcused
from bench.drill.services import drill_services
from bench.drill.services import project as services_project
from bench.drill.websocket import CONNECTIONS, scaled
from tests.support.compose import Compose
from tests.support.paths import ROOT

PICTURE = ROOT / "docs" / "drill.svg"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument("--plain", action="store_true", help="uvicorn as it comes: no drain, no health path")
    parser.add_argument(
        "--asgi", action="store_true", help="clients served through ASGI, not by the balancer's own front end"
    )
    parser.add_argument("--only", help="phases whose name contains this")
    parser.add_argument("--log", type=Path, help="write the balancer's log to this file")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--rolling", type=int, metavar="N", help="N requests, while one worker of three is restarted every 2 s"
    )
    instead.add_argument(
        "--websockets",
        type=int,
        metavar="N",
        nargs="?",
        const=CONNECTIONS,
        help=f"N WebSockets (default {CONNECTIONS}), while the workers are scaled",
    )
    instead.add_argument(
        "--overload", action="store_true", help="three times what the members can do, with and without the limit"
    )
    instead.add_argument(
        "--ejection", action="store_true", help="one member of 2, 3 and 50 is bad for ten seconds, in four ways"
    )
    parser.add_argument("--workers", help=f"with --overload: only these of {','.join(KINDS)}, with limits of all sorts")
    arguments = parser.parse_args()
    kinds = (arguments.workers or ",".join(KINDS)).split(",")
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"--workers {','.join(sorted(unknown))}: there are {', '.join(KINDS)}")
    if (arguments.overload or arguments.ejection) and arguments.asgi:
        parser.error("--overload and --ejection are only for the balancer's own front end")
    if arguments.rolling:
        return asyncio.run(_rolling(arguments))
    if arguments.websockets:
        return asyncio.run(_websockets(arguments))
    if arguments.overload or arguments.ejection:
        try:
            if arguments.ejection:
                return asyncio.run(ejection())
            worst = 0 if arguments.workers else asyncio.run(overload())
            return worst or asyncio.run(compare_all(kinds))
        except Problem as problem:
            print(problem, file=sys.stderr)
            return 2
    return asyncio.run(_phases(arguments))


async def _rolling(arguments: argparse.Namespace) -> int:
    compose, _ = project(arguments.plain, arguments.asgi)
    async with running(compose):
        rolled = await roll(compose, arguments.rolling)
        await _keep_log(compose, arguments.log)
    print("\n".join(rolled.lines()))
    return 1 if rolled.lost else 0


async def _websockets(arguments: argparse.Namespace) -> int:
    compose, _ = project(arguments.plain, arguments.asgi)
    async with running(compose):
        lines, found = await scaled(compose, arguments.websockets)
        await _keep_log(compose, arguments.log)
    print("\n".join([*lines, "", *(found or ["nobody noticed, except those who were told"])]))
    return 1 if found else 0


async def _keep_log(compose: Compose, path: Path | None) -> None:
    """Write the balancer's log to a file, if one is wanted."""
    if path:
        await asyncio.to_thread(path.write_text, await compose("logs", "--no-log-prefix", "balancer"))


async def _phases(arguments: argparse.Namespace) -> int:
    only = arguments.only or ""
    compose, phases = project(arguments.plain, arguments.asgi)
    phases = [phase for phase in phases if only in phase.name]
    found: list[Row] = []
    picture = ""
    if phases:
        async with running(compose):
            found, picture = await drill(compose, phases)
            await _keep_log(compose, arguments.log)
    if not (arguments.only or arguments.plain or arguments.asgi):
        PICTURE.write_text(picture)
    if not (arguments.plain or arguments.asgi):  # These bring workers of their own, and routes to several pools.
        more, more_phases = await drill_services(services_project(), only)
        found, phases = found + more, phases + more_phases
    problems = unexcused(found, phases)
    verdict = problems or ["nothing was lost, nothing ran twice, nobody waited too long"]
    print("\n".join([*table(found), "", *verdict]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
