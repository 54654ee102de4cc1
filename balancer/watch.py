"""``balancer watch``: the curl loop. Sends requests at a steady rate and shows who answers."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

# Where the example worker says who it is. Any other answer goes by its first line.
_HOSTNAME = re.compile(r"\bI am ([^\s!]+)!")
# Requests that may wait at the same time: a stalled server is not piled upon without end.
MAX_WAITING = 100
# How many of the last answers the picture shows, and how many latencies the percentiles are of.
ROTATION = 60
LATENCIES = 1000
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red", "bright_cyan", "bright_green")


@dataclass(frozen=True, slots=True)
class Result:
    """One request. ``who`` answered, or ``failure`` says why nobody did; ``seconds`` is how long it took."""

    seconds: float
    who: str = ""
    failure: str = ""


@dataclass(slots=True)
class Tally:
    """What a loop of requests came to so far."""

    shares: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    rotation: deque[str] = field(default_factory=lambda: deque(maxlen=ROTATION))
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    longest: float = 0.0

    def add(self, result: Result) -> None:
        if result.failure:
            self.failures[result.failure] += 1
        else:
            self.shares[result.who] += 1
            self.rotation.append(result.who)
            self.latencies.append(result.seconds)
        self.longest = max(self.longest, result.seconds)

    @property
    def requests(self) -> int:
        return self.shares.total() + self.failures.total()

    def percentile(self, share: float) -> float:
        """The latency in seconds that ``share`` (0 to 1) of the last answers did not exceed; 0 without answers."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0

    def summary(self) -> list[str]:
        """Plain lines for people."""
        lines = [
            f"{self.requests} requests, {self.failures.total()} failed, "
            f"median {self.percentile(0.5) * 1000:.1f} ms, p99 {self.percentile(0.99) * 1000:.1f} ms, "
            f"longest {self.longest * 1000:.1f} ms"
        ]
        answered = self.shares.total()
        lines += [f"  {who}: {count} ({count / answered:.1%})" for who, count in sorted(self.shares.items())]
        lines += [f"  failed {count} times: {why}" for why, count in self.failures.most_common()]
        return lines


def judge(response: httpx.Response, seconds: float) -> Result:
    """Who answered, or why the answer counts as a failure: a status of 400 or more."""
    first_line = response.text.strip().partition("\n")[0][:60]
    if response.is_error:
        token = response.headers.get("X-Balancer-Error")
        return Result(seconds, failure=f"{response.status_code} {token or first_line}".strip())
    named = _HOSTNAME.search(response.text)
    return Result(seconds, who=named[1] if named else first_line or "(empty answer)")


class Loop:
    """Requests to one URL, each on a connection of its own, as a loop of curls would send them."""

    def __init__(self, url: str, rate: float, count: int = 0, timeout: float = 30.0) -> None:
        self._url = url
        self._rate = rate
        self._count = count
        self._timeout = timeout

    async def results(self) -> AsyncIterator[Result]:
        """The results as they come; ends after ``count`` requests, or never where it is 0."""
        done: asyncio.Queue[Result] = asyncio.Queue()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits, timeout=self._timeout, trust_env=False) as client:
            sender = asyncio.create_task(self._send(client, done))
            try:
                received = 0
                while not self._count or received < self._count:
                    yield await done.get()
                    received += 1
            finally:
                sender.cancel()
                with suppress(asyncio.CancelledError):
                    await sender

    async def _send(self, client: httpx.AsyncClient, done: asyncio.Queue[Result]) -> None:
        places = asyncio.Semaphore(MAX_WAITING)
        due = time.monotonic()

        async def one() -> None:
            try:
                await done.put(await self._request(client))
            finally:
                places.release()

        async with asyncio.TaskGroup() as requests:
            sent = 0
            while not self._count or sent < self._count:
                await places.acquire()
                requests.create_task(one())
                sent += 1
                due = max(due + 1 / self._rate, time.monotonic() - 1)
                await asyncio.sleep(due - time.monotonic())

    async def _request(self, client: httpx.AsyncClient) -> Result:
        began = time.monotonic()
        try:
            response = await client.get(self._url)
            return judge(response, time.monotonic() - began)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Result(time.monotonic() - began, failure=str(error) or type(error).__name__)


def picture(title: str, tally: Tally) -> RenderableType:
    """The rotation, the shares and the failures, for a terminal."""
    names = sorted(tally.shares)
    colours = {who: COLOURS[index % len(COLOURS)] for index, who in enumerate(names)}
    rotation = Text.assemble(*(("● ", colours[who]) for who in tally.rotation))
    table = Table("worker", "requests", "share", "", box=None, pad_edge=False)
    recent = Counter(tally.rotation)
    for who in names:
        bar = "█" * round(30 * recent[who] / max(1, recent.total()))
        share = f"{tally.shares[who] / tally.shares.total():.1%}"
        table.add_row(Text(who, colours[who]), str(tally.shares[who]), share, Text(bar, colours[who]))
    failed = tally.failures.total()
    line = (
        f"{tally.requests} requests, {failed} failed, median {tally.percentile(0.5) * 1000:.1f} ms, "
        f"p99 {tally.percentile(0.99) * 1000:.1f} ms, longest {tally.longest * 1000:.0f} ms"
    )
    causes = [Text(f"{count} times {why}", "red") for why, count in tally.failures.most_common(5)]
    return Group(Text(title, "bold"), rotation, table, Text(line, "red" if failed else ""), *causes)


@asynccontextmanager
async def interruptible() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set, while the context lasts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def run(url: str, rate: float, count: int, timeout: float) -> int:
    """The command; returns its exit status: 1 if any request failed."""
    tally = asyncio.run(_watch(Console(), url, Loop(url, rate, count, timeout)))
    for line in tally.summary():
        print(line)
    return 1 if tally.failures else 0


async def _watch(console: Console, url: str, loop: Loop) -> Tally:
    tally = Tally()
    live = Live(console=console, refresh_per_second=10, transient=True) if console.is_terminal else None

    async def show() -> None:
        async for result in loop.results():
            tally.add(result)
            if live:
                live.update(picture(url, tally))
            else:
                print(f"{result.seconds * 1000:8.1f} ms  {result.failure or result.who}", flush=True)

    async with interruptible() as stop:
        if live:
            live.start()
        try:
            await first(show(), stop.wait())
        finally:
            if live:
                live.stop()
    return tally


async def first(*awaitables: Awaitable[object]) -> None:
    """Return when the first of them has ended, with the others cancelled."""
    tasks = [asyncio.ensure_future(it) for it in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
