"""More than the members can do, without Docker: what the limit on requests per member is worth.

The members serve so many requests at once in so many seconds each on average (``Kind``). With threads or asyncio, more
at once take longer each, and longer than in proportion, as in a process that thrashes: (n / knee) ** 1.5 times as long.
A sync worker takes one after the other; the rest wait in its backlog. The load is open: requests come
at random at their rate whatever becomes of those before, as those of many independent users do. Who has no answer
after PATIENCE seconds has left, and an answer that comes later is not counted.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from balancer.errors import ResponseTimeout, TruncatedResponse, UpstreamError
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.native import NativeUpstream
from bench.drill.rolling import percentile

MEMBERS = 2
PATIENCE = 5.0
# Offered loads, as multiples of the capacity.
LOADS = (1.0, 3.0)
# Seconds of each load, and how many of them at the beginning are not counted: a queue that fills up hides its length.
LENGTH, WARM_UP = 9.0, 3.0
# Goodput under the highest load as a share of the best.
KEPT = 0.9
FLAG = "--max-requests-per-member"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


class Problem(Exception):
    """The measurement cannot be made; the message says why."""


@dataclass(frozen=True)
class Kind:
    """A kind of worker: ``knee`` requests at once take ``service`` seconds each. ``in_turn``: the rest wait."""

    name: str
    knee: int
    service: float
    in_turn: bool = False

    @property
    def capacity(self) -> float:
        """Requests a second that all members together can answer."""
        return MEMBERS * self.knee / self.service


THREADS = Kind("threads", 8, 0.04)


class Worker:
    """A member that slows down when it is given more than it can do at once. ``speed``: 0.5 takes twice the time."""

    def __init__(self, rng: random.Random, kind: Kind) -> None:
        self._rng = rng
        self._kind = kind
        self._turns = asyncio.Semaphore(kind.knee if kind.in_turn else 1_000_000)
        self._busy = 0
        self.most = 0
        self.speed = 1.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self._busy += 1
                self.most = max(self.most, self._busy)
                try:
                    async with self._turns:
                        await asyncio.sleep(self._service_time())
                finally:
                    self._busy -= 1
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _service_time(self) -> float:
        kind = self._kind
        slower = 1.0 if kind.in_turn else max(1.0, self._busy / kind.knee) ** 1.5
        return kind.service / self.speed * slower * (0.5 + self._rng.random())


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. ``seconds``: how long it took; ``ended``: reading of the monotonic clock."""

    status: str
    seconds: float
    ended: float


@dataclass(frozen=True)
class Level:
    """The figures under one offered load. Rates in requests a second, times in seconds."""

    load: float
    offered: float
    goodput: float
    served: Sequence[float]
    refused: Sequence[float]
    others: Counter[str]

    def line(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.others.items())
        return (
            f"{self.load:4g}x {self.offered:8.0f}/s {self.goodput:8.0f}/s {_times(self.served)}   "
            f"{_times(self.refused)}   {told}"
        )


def _times(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    if not ordered:
        return f"{'-':>6} {'-':>9} {'-':>9}"
    return f"{len(ordered):6} {percentile(ordered, 50) * 1000:6.0f} ms {percentile(ordered, 99) * 1000:6.0f} ms"


HEADING = (
    f"{'load':>5} {'offered':>10} {'goodput':>10} {'200':>6} {'p50':>9} {'p99':>9}   {'503':>6} {'p50':>9} {'p99':>9}"
    "   others"
)


def figures(load: float, answers: Sequence[Answer], began: float, length: float, warm_up: float) -> Level:
    """Of the answers that came after the warm-up and before the end of the load."""
    counted = [answer for answer in answers if warm_up <= answer.ended - began < length]
    served = [answer.seconds for answer in counted if answer.status == "200" and answer.seconds <= PATIENCE]
    return Level(
        load,
        sum(warm_up <= answer.ended - answer.seconds - began < length for answer in answers) / (length - warm_up),
        len(served) / (length - warm_up),
        served,
        [answer.seconds for answer in counted if answer.status.startswith("503")],
        Counter(answer.status for answer in counted if answer.status != "200"),
    )


async def offer(target: Address, rate: float, length: float, rng: random.Random) -> list[Answer]:
    """Send requests at random, ``rate`` a second for ``length`` seconds; returns when the last has its answer."""
    upstream = NativeUpstream(Timeouts(connect=PATIENCE, response=PATIENCE, idle=PATIENCE))
    answers: list[Answer] = []

    async def visit() -> None:
        began = time.monotonic()
        status = await request(upstream, target)
        now = time.monotonic()
        answers.append(Answer(status, now - began, now))

    began = due = time.monotonic()
    async with asyncio.TaskGroup() as visits:
        while (due := due + rng.expovariate(rate)) < began + length:
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            visits.create_task(visit())
    await upstream.close()
    return answers


async def request(upstream: NativeUpstream, target: Address) -> str:
    """Send a GET; return its status with the balancer's token, or what else became of it."""
    try:
        response = await upstream.send(target, UpstreamRequest("GET", b"/", [(b"host", b"overload")]))
        try:
            while (await response.read())[1]:
                pass
        finally:
            await response.close()
    except ResponseTimeout:
        return "left without an answer"
    except (UpstreamError, TruncatedResponse) as error:
        return type(error).__name__
    token = next((value.decode() for name, value in response.headers if name == b"x-balancer-error"), "")
    return f"{response.status} {token}".strip()


class Serving(Protocol):
    """A member: what it does with a connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what comes, until it ends."""


@asynccontextmanager
async def members(workers: Sequence[Serving]) -> AsyncIterator[Zone]:
    """Have members serve; the zone names them by SRV, since on loopback each has a port of its own."""
    zone = Zone()
    zone.records["apps"] = []
    async with AsyncExitStack() as stack:
        for number, worker in enumerate(workers):
            server = await stack.enter_async_context(await asyncio.start_server(worker.serve, "127.0.0.1", 0))
            port = server.sockets[0].getsockname()[1]
            zone.records["apps"].append(("SRV", f"0 1 {port} member-{number}.apps."))
            zone.records[f"member-{number}.apps"] = [("A", "127.0.0.1")]
        yield zone


@asynccontextmanager
async def balancer(zone: Zone, *flags: str) -> AsyncIterator[Address]:
    """``balancer serve`` with these flags and the environment's settings; yields its data listener."""
    address = Address("127.0.0.1", free_port())
    async with DnsServer(zone) as server:
        command = [sys.executable, "-m", "balancer", "serve", *flags, f"--bind={address}", "--admin-bind=off"]
        command += [f"--resolver={server.address}", "--dns-record=srv", "--alias=apps", "--access-log=off"]
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        try:
            await _answering(address, process)
            yield address
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _answering(address: Address, process: Process) -> None:
    """Wait until a request gets through. Raises Problem if none does."""
    upstream = NativeUpstream(Timeouts(connect=PATIENCE, response=PATIENCE, idle=PATIENCE))
    status = ""
    for _ in range(100):
        if process.returncode is not None:
            raise Problem(f"balancer serve ended with status {process.returncode}")
        if (status := await request(upstream, address)) == "200":
            break
        await asyncio.sleep(0.1)
    await upstream.close()
    if status != "200":
        raise Problem(f"balancer serve does not pass requests on: {status}")


async def has_limit() -> bool:
    """Whether this balancer can limit the requests of a member."""
    command = [sys.executable, "-m", "balancer", "serve", "--help"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    return FLAG.encode() in (await process.communicate())[0]


async def measure(*flags: str, length: float = LENGTH, warm_up: float = WARM_UP) -> tuple[list[Level], int]:
    """The figures under each of LOADS, and the most requests that a member was given at once."""
    rng, levels = random.Random(1), []
    for load in LOADS:
        # A balancer and members of their own: what the load before left behind is not this one's.
        workers = [Worker(rng, THREADS) for _ in range(MEMBERS)]
        async with members(workers) as zone, balancer(zone, *flags) as target:
            began = time.monotonic()
            answers = await offer(target, load * THREADS.capacity, length, rng)
            levels.append(figures(load, answers, began, length, warm_up))
            most = max(worker.most for worker in workers)
    return levels, most


def kept(levels: Sequence[Level]) -> float:
    """Goodput under the highest load as a share of the best goodput."""
    return levels[-1].goodput / max(max(level.goodput for level in levels), 1e-9)


async def overload() -> int:
    """Print the figures with and without the limit; exit status 1 if goodput broke down with it, 2 if there is none."""
    if not await has_limit():
        print(f"balancer serve has no {FLAG}: there is no limit to measure", file=sys.stderr)
        return 2
    hold = {name: os.environ.get(name) for name in ("BALANCER_QUEUE_TIMEOUT", "BALANCER_QUEUE_MAX")}
    settings = ", ".join(f"{name}={value}" for name, value in hold.items() if value) or "default hold"
    knee, capacity = THREADS.knee, THREADS.capacity
    print(f"{MEMBERS} members for {capacity:g} requests a second, {knee} at once each; clients wait {PATIENCE:g} s")
    found = 1.0
    for limit in (knee, 0):
        levels, most = await measure(f"{FLAG}={limit}")
        print(f"\n{FLAG} {limit}, {settings}: at most {most} requests at once on a member")
        print("\n".join([HEADING, *(level.line() for level in levels)]))
        print(f"goodput at {LOADS[-1]:g}x: {kept(levels):.0%} of the best")
        if limit:
            found = kept(levels)
    return 0 if found >= KEPT else 1
