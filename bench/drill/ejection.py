"""A member that is bad for ten seconds, without Docker: what clients notice, and when its share goes and comes back.

The load is open: GETs come at RATE a second whatever becomes of those before. Each fault has a run of its own, with a
balancer of its own: GOOD_BEFORE seconds in which all is well, BAD seconds with the fault, AFTER seconds.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from dataclasses import dataclass, field

from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.native import NativeUpstream
from bench.drill.overload import PATIENCE, balancer, members, request

RATE = 100.0
GOOD_BEFORE, BAD, AFTER = 5.0, 10.0, 22.0
SIZES = (2, 3, 50)
# Seconds that a member takes to answer; a slow one takes SLOWER times as long.
SERVICE = 0.03
SLOWER = 10
# Bounds: the share of requests that fail, for faults that can be repeated elsewhere and for others; the share of the
# bad member from NOTICED seconds after the beginning on; the share of its due that it has RETURNED seconds after the
# end, over the LAST seconds.
FAILED = {"garbage": 0.0, "reset": 0.0, "500": 0.01, "slow": 0.01}
NOTICED, SHARE = 3.0, 0.05
RETURNED, DUE, LAST = 20.0, 0.5, 2.0

ANSWERS = {
    "garbage": b"\x15\x03\x01\x00\x02\x02\x16 this is not HTTP\r\n\r\n",
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


@dataclass
class Worker:
    """A member. ``fault``: what is wrong with it now, or "". ``got``: when requests came, readings of the clock."""

    fault: str = ""
    got: list[float] = field(default_factory=list)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.got.append(time.monotonic())
                if self.fault == "reset":
                    writer.transport.abort()
                    return
                await asyncio.sleep(SERVICE * (SLOWER if self.fault == "slow" else 1))
                writer.write(ANSWERS.get(self.fault, OK))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def share(self, others: Sequence[Worker], begin: float, end: float) -> float:
        """Its part of all attempts between two readings of the clock."""
        mine, *theirs = (sum(begin <= at < end for at in worker.got) for worker in (self, *others))
        return mine / max(1, mine + sum(theirs))


@dataclass(frozen=True)
class Run:
    """What one fault has come to. ``failed``: by status. ``before``, ``noticed``, ``returned``: shares of attempts."""

    members: int
    fault: str
    requests: int
    failed: dict[str, int]
    before: float
    noticed: float
    returned: float

    def line(self) -> str:
        part = sum(self.failed.values()) / self.requests
        words = ", ".join(f"{count} {status}" for status, count in self.failed.items()) or "none"
        return (
            f"{self.members:7} {self.fault:10} {self.requests:8} {part:7.2%} {self.before:7.1%} {self.noticed:8.1%} "
            f"{self.returned:9.1%}   {words}"
        )

    def problems(self) -> list[str]:
        """What must not be."""
        found = []
        if sum(self.failed.values()) > FAILED[self.fault] * self.requests * BAD / (BAD + AFTER):
            found.append(f"{self.members} members, {self.fault}: {self.failed} of {self.requests} requests failed")
        if self.noticed > SHARE:
            found.append(f"{self.members} members, {self.fault}: the member kept {self.noticed:.1%} of the requests")
        if self.returned < DUE / self.members:
            found.append(f"{self.members} members, {self.fault}: the member got {self.returned:.1%} after it was well")
        return found


HEADING = (
    f"{'members':>7} {'fault':10} {'requests':>8} {'failed':>7} {'before':>7} {'3 s on':>8} {'20 s well':>9}   failures"
)


async def offer(target: Address, seconds: float) -> list[str]:
    """Send GETs at a steady rate; return their statuses, and what else became of them."""
    upstream = NativeUpstream(Timeouts(connect=PATIENCE, response=PATIENCE, idle=PATIENCE))
    statuses: list[str] = []

    async def visit() -> None:
        statuses.append(await request(upstream, target))

    due, end = time.monotonic(), time.monotonic() + seconds
    async with asyncio.TaskGroup() as visits:
        while (due := due + 1 / RATE) < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            visits.create_task(visit())
    await upstream.close()
    return statuses


def set_fault(workers: Sequence[Worker], fault: str) -> None:
    """Let members have a fault from now on, or be well."""
    for worker in workers:
        worker.fault = fault


async def measure(count: int, fault: str, ailing: int = 1) -> Run:
    """Let ``ailing`` of the members have a fault for BAD seconds; the figures are those of the first."""
    workers = [Worker() for _ in range(count)]
    async with members(workers) as zone, balancer(zone) as target:
        await asyncio.sleep(1)
        bad, *others = workers
        began = time.monotonic()
        await offer(target, GOOD_BEFORE)
        before = bad.share(others, began, time.monotonic())
        began = time.monotonic()
        well = began + BAD
        set_fault(workers[:ailing], fault)
        asyncio.get_running_loop().call_later(BAD, set_fault, workers, "")
        statuses = await offer(target, BAD + AFTER)
        noticed = bad.share(others, began + NOTICED, well)
        returned = bad.share(others, well + RETURNED, well + RETURNED + LAST)
    failed: dict[str, int] = {}
    for status in statuses:
        if status != "200":
            failed[status] = failed.get(status, 0) + 1
    return Run(count, fault, len(statuses), failed, before, noticed, returned)


async def ejection(sizes: Sequence[int] = SIZES) -> int:
    """Print the figures of each fault with few and many members; exit status 1 if one is out of its bounds."""
    print(f"{RATE:g} GETs a second; one member is bad for {BAD:g} s, after {GOOD_BEFORE:g} s in which all are well")
    print(HEADING)
    problems: list[str] = []
    for count in sizes:
        for fault in FAILED:
            run = await measure(count, fault)
            print(run.line(), flush=True)
            problems += run.problems()
        run = await measure(count, "500", ailing=count)
        print(run.line(), "(all members)", flush=True)
        if sum(run.failed.values()) < 0.95 * RATE * BAD or run.noticed < 0.5 / count:
            problems.append(f"{count} members, all answer 500: {run.failed} came to clients")
    print("\n".join(["", *(problems or ["all within the bounds"])]))
    return 1 if problems else 0
