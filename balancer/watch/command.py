"""The command: results go to a terminal as a picture, elsewhere as lines."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import uvloop
from rich.console import Console

from balancer.watch.loop import Loop, first, interruptible
from balancer.watch.render import drawing, picture
from balancer.watch.tally import Result, Tally, entry

FAILED = 1
UNUSABLE = 2


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line; ``count`` 0: until Ctrl-C. ``json``: objects for scripts in place of all else."""

    url: str
    rate: float = 5.0
    count: int = 0
    timeout: float = 30.0
    method: str = "GET"
    headers: Sequence[tuple[bytes, bytes]] = ()
    keepalive: bool = False
    json: bool = False


def run(options: Options) -> int:
    """Send requests until the count is reached or a signal comes; return the exit status.

    1 if any request failed, 2 if the URL cannot be used. A closed pipe (``| head``) ends it as a signal does.
    """
    tally = Tally()
    try:
        loop = Loop(
            options.url,
            options.rate,
            options.count,
            options.timeout,
            method=options.method,
            headers=options.headers,
            keepalive=options.keepalive,
            sending=tally.sent,
        )
    except httpx.InvalidURL as error:
        print(f"{options.url!r} cannot be used: {error}", file=sys.stderr)
        return UNUSABLE
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_watch(loop, tally, options.json))
        now, at = time.monotonic(), time.time()
        if options.json:
            _print_json({"summary": tally.report(now, at)})
        else:
            print("\n".join(tally.summary(now, at)), flush=True)
    except BrokenPipeError:
        pass  # ``balancer.cli.output`` has the rest.
    return FAILED if tally.failed else 0


def on_terminal(console: Console) -> bool:
    """Whether a picture can be drawn: rich would also believe variables such as FORCE_COLOR."""
    return sys.stdout.isatty() and not console.is_dumb_terminal


async def _watch(loop: Loop, tally: Tally, as_json: bool) -> None:
    console = Console()
    draws = not as_json and on_terminal(console)

    async def count() -> None:
        async for result in loop.results():
            tally.add(result)
            if as_json:
                _print_json(entry(result))
            elif not draws:
                _print_line(result)

    async with interruptible() as stop:
        if draws:
            picture_of_now = drawing(
                console, lambda width, height: picture(loop.title, tally, time.monotonic(), width, height)
            )
            await first(count(), stop.wait(), picture_of_now)
        else:
            await first(count(), stop.wait())


def _print_line(result: Result) -> None:
    print(f"{result.seconds * 1000:8.1f} ms  {result.failure or result.worker}", flush=True)


def _print_json(line: dict[str, object]) -> None:
    print(json.dumps(line, separators=(",", ":")), flush=True)
