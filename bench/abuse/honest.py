"""Honest clients: GETs at a fixed rate, most on a few open connections, some on new ones.

``python -m bench.abuse.honest PLAN``, where PLAN is a ``Plan`` as JSON. Says ``ready`` once the connections are open
and have been used, begins when a line comes, and prints one line of JSON, the ``Latency``.

A request's latency counts from when it was due, as in ``bench/pacer.py``. One that fails has an infinite latency,
so that a candidate that refuses quickly cannot look quick.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import random
import re
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import uvloop

from bench.abuse import frames
from bench.abuse.frames import FrameReader, Kind
from bench.pacer import percentile

Protocol = Literal["plain", "proxy", "tls", "h2"]

# An answer later than that is none, in seconds.
PATIENCE = 5.0
# Until the first answer of a candidate that has just been started, in seconds.
START_SECONDS = 30.0
# Open connections, requests on each before the first that counts, and one request of so many that has a new connection.
KEPT = 4
WARM_UP = 20
FRESH = 6

_LENGTH = re.compile(rb"\ncontent-length: *(\d+)", re.IGNORECASE)
_PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\n"


@dataclass(frozen=True)
class Plan:
    """``grace``: requests that are due in the first so many seconds are sent, but do not count."""

    host: str
    port: int
    protocol: Protocol
    rate: float
    seconds: float
    grace: float = 0.0
    fresh: bool = True


@dataclass(frozen=True)
class Latency:
    """What the requests came to, in milliseconds. ``late_p99_ms``: how late the client itself was."""

    requests: int
    failures: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float = 0.0


def latency(seconds: Sequence[float], lateness: Sequence[float] = ()) -> Latency:
    """Figures of latencies in seconds; infinite ones are failures."""
    ordered = sorted(seconds)
    return Latency(
        len(ordered),
        sum(math.isinf(it) for it in ordered),
        percentile(ordered, 0.5) * 1000,
        percentile(ordered, 0.99) * 1000,
        percentile(ordered, 1) * 1000,
        percentile(sorted(lateness), 0.99) * 1000,
    )


class Connection:
    """A connection, on which one request is under way at a time."""

    def __init__(self, plan: Plan, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._plan = plan
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._stream = -1
        if plan.protocol == "proxy":
            writer.write(_PROXY)
        elif plan.protocol == "h2":
            begin = frames.settings((frames.HEADER_TABLE_SIZE, 0))
            writer.write(frames.PREFACE + begin + frames.window_update(1 << 30))

    @classmethod
    async def open(cls, plan: Plan) -> Connection:
        context = client_context("h2" if plan.protocol == "h2" else "http/1.1")
        secure = context if plan.protocol in ("tls", "h2") else None
        return cls(plan, *await asyncio.open_connection(plan.host, plan.port, ssl=secure))

    async def get(self) -> bool:
        """Whether a whole response with the status 200 has come."""
        return await (self._get_http2() if self._plan.protocol == "h2" else self._get_http1())

    async def _get_http1(self) -> bool:
        self._writer.write(f"GET / HTTP/1.1\r\nHost: {self._plan.host}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        if found := _LENGTH.search(head):
            await self._reader.readexactly(int(found[1]))
        else:
            await self._reader.readuntil(b"0\r\n\r\n")
        return head.startswith(b"HTTP/1.1 200 ")

    async def _get_http2(self) -> bool:
        self._stream += 2
        self._writer.write(frames.headers(self._stream, frames.request(b"/")))
        good = False
        while True:
            piece = await self._reader.read(65536)
            if not piece:
                raise EOFError
            for it in self._frames.feed(piece):
                if it.kind in (Kind.SETTINGS, Kind.PING) and not it.flags & frames.ACK:
                    self._writer.write(frames.frame(it.kind, it.payload if it.kind == Kind.PING else b"", frames.ACK))
                if it.stream != self._stream:
                    continue
                if it.kind == Kind.RST_STREAM:
                    return False
                if it.kind == Kind.HEADERS:
                    good = frames.is_200(it.payload)
                if it.kind in (Kind.HEADERS, Kind.DATA) and it.flags & frames.END_STREAM:
                    return good

    def close(self) -> None:
        self._writer.transport.abort()


def client_context(protocol: str) -> ssl.SSLContext:
    """Trust any certificate: the one of a run is of no use outside of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


class Place:
    """What one request at a time makes use of: an open connection, or none."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._connection: Connection | None = None

    async def ask(self, patience: float = PATIENCE) -> bool:
        try:
            async with asyncio.timeout(patience):
                return await self._ask()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            self.close()
            return False

    async def _ask(self) -> bool:
        if self._connection:
            try:
                return await self._connection.get()
            except (OSError, EOFError):
                # Closed by the other side while it was idle: a browser asks again on a new connection.
                self.close()
        self._connection = await Connection.open(self._plan)
        return await self._connection.get()

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


class Clients:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kept: asyncio.Queue[Place] = asyncio.Queue()
        self._latencies: list[float] = []
        self._lateness: list[float] = []

    async def open(self) -> None:
        """Wait until the candidate answers, and open the connections that stay."""
        deadline = time.monotonic() + START_SECONDS
        places = [Place(self._plan) for _ in range(KEPT)]
        while not await places[0].ask(1):
            if time.monotonic() > deadline:
                raise SystemExit("no answer 200 of the candidate")
            await asyncio.sleep(0.05)
        for place in places:
            for _ in range(WARM_UP):
                await place.ask()
            self._kept.put_nowait(place)

    async def run(self) -> Latency:
        rng = random.Random(1)
        started = upcoming = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        while upcoming < started + self._plan.seconds:
            await asyncio.sleep(upcoming - time.monotonic())
            fresh = self._plan.fresh and len(tasks) % FRESH == 0
            tasks.append(asyncio.create_task(self._request(upcoming, fresh, upcoming >= started + self._plan.grace)))
            upcoming += rng.expovariate(self._plan.rate)
        await asyncio.gather(*tasks)
        return latency(self._latencies, self._lateness)

    async def _request(self, due: float, fresh: bool, counts: bool) -> None:
        begun = time.monotonic()
        good = False
        if fresh:
            place = Place(self._plan)
            good = await place.ask()
            place.close()
        else:
            try:
                async with asyncio.timeout(PATIENCE):
                    place = await self._kept.get()
            except TimeoutError:
                pass
            else:
                good = await place.ask(max(0.0, due + PATIENCE - time.monotonic()))
                self._kept.put_nowait(place)
        if counts:
            self._latencies.append(time.monotonic() - due if good else math.inf)
            self._lateness.append(begun - due)


async def serve(plan: Plan) -> Latency:
    clients = Clients(plan)
    await clients.open()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return await clients.run()


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(serve(plan)))), flush=True)


if __name__ == "__main__":
    main()
