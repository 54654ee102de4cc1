"""``balancer demo``: scales the system up and down and draws the workers that answer."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from rich.console import Console, RenderableType

from balancer.demo.system import DemoError, System, preferred_port, require_packages
from balancer.watch import Loop, Tally, drawing, first, interruptible, on_terminal, picture
from balancer.words import counted

# Requests a second of the built-in curl loop.
RATE = 20.0
STEPS_IN_ROUND = 3
# Where compose.yaml publishes the status page; the demo has it on another port where this one is taken.
STATUS_PORT = 9000


def run(workers: int, seconds: float, port: int) -> int:
    """Run one round of ``seconds`` (0: rounds until Ctrl-C); return the exit status: 1 if any request failed."""
    try:
        tally = asyncio.run(_demo(Console(), workers, seconds, port))
    except DemoError as error:
        print(f"The demo cannot run: {error}", file=sys.stderr)
        return 1
    for line in tally.summary(time.monotonic(), time.time()):
        print(line)
    return 1 if tally.failures else 0


def steps(workers: int) -> list[int]:
    """Return the number of workers in each third of a round: one, all, and in between."""
    return [1, workers, (workers + 2) // 2 if workers > 1 else 1]


class Stage:
    """The display of the demo: a live picture on a terminal, elsewhere a plain line for every change."""

    def __init__(self, addresses: str, draws: bool) -> None:
        self.tally = Tally()
        self._addresses = addresses
        self._activity = "starting"
        self._began = time.monotonic()
        self._answering: frozenset[str] = frozenset()
        self._draws = draws

    def announce(self, activity: str) -> None:
        """Show what the demo does from now on."""
        self._activity = activity
        self._print_line(activity)

    def add_result(self, failure: str) -> None:
        """Print a failure, or a change of the rotation, once the result is in the tally."""
        if failure:
            self._print_line(f"failed: {failure}")
        # In so many answers, each worker had a turn, twice.
        window = 2 * max(len(self._answering), len(set(self.tally.rotation)), 1)
        answering = frozenset(list(self.tally.rotation)[-window:])
        if answering != self._answering:
            self._answering = answering
            self._print_line("answering: " + ", ".join(sorted(answering)))

    def draw(self, width: int, height: int) -> RenderableType:
        """Return the picture of this moment."""
        return picture(f"{self._addresses}   {self._activity}", self.tally, time.monotonic(), width, height)

    def _print_line(self, text: str) -> None:
        if not self._draws:
            print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


async def _demo(console: Console, workers: int, seconds: float, port: int) -> Tally:
    require_packages()
    status_port = preferred_port(STATUS_PORT)
    url, status = (f"http://127.0.0.1:{number}/" for number in (port, status_port))
    # A picture takes this line away, and its end brings it back.
    print(f"workers: {url}\nstatus page: {status}", flush=True)
    draws = on_terminal(console)
    stage = Stage(f"{url}   status page {status}", draws)
    async with interruptible() as stop:
        picture_of_now = [drawing(console, stage.draw)] if draws else []
        await first(
            _rounds(stage, workers, seconds, System(port, admin_port=status_port), url), stop.wait(), *picture_of_now
        )
    return stage.tally


async def _rounds(stage: Stage, workers: int, seconds: float, started: System, url: str) -> None:
    stage.announce("starting DNS, Redis, a worker and the balancer")
    async with started as system:
        await system.scale(1)
        load = asyncio.create_task(_load(stage, url))
        try:
            for count in itertools.cycle(steps(workers)) if not seconds else steps(workers):
                stage.announce(f"{counted(count, 'worker')} wanted")
                began = time.monotonic()
                await system.scale(count)
                step = (seconds or 20.0) / STEPS_IN_ROUND
                await asyncio.sleep(max(0.0, began + step - time.monotonic()))
            stage.announce("stopping")
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)


async def _load(stage: Stage, url: str) -> None:
    async for result in Loop(url, RATE, sending=stage.tally.sent).results():
        stage.tally.add(result)
        stage.add_result(result.failure)
