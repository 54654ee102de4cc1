"""WebSockets under scaling: connections on workers that stay never notice; others are told, with a close code.

Each connection sends a short text to ``/echo`` every PAUSE seconds and compares what comes back. The header
``x-worker`` of the handshake's response says whose it is. A connection that ends is opened again, like a browser's.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.compose import Compose

CONNECTIONS = 200
PAUSE = 0.1
# How long an echo may take on a worker that stays, and how long before a client gives up, in seconds.
ECHO_LIMIT = 1.0
PATIENCE = 15.0
# Seconds of load after each change.
SETTLE = 4.0
# How many workers there are, one after the other.
SCALES = (3, 5, 1, 3)


@dataclass(slots=True)
class ActiveRequest:
    """One connection. ``longest``: the slowest echo in seconds. ``code``: of the close frame that came, or None.

    ``end`` is empty while it is open and after an end of our own, else what happened.
    """

    who: str
    echoes: int = 0
    longest: float = 0.0
    end: str = ""
    code: int | None = None
    open: bool = True


class Crowd:
    """The clients; ``visits`` and ``refusals`` grow as they go."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = False
        self._clients = 0
        self._group = asyncio.TaskGroup()
        self.in_flight: list[ActiveRequest] = []
        # Handshakes that failed, by reason.
        self.refusals: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Those who ``join`` go on for as long as the context lasts, and then close their connections."""
        async with self._group:
            try:
                yield
            finally:
                self._stop = True

    async def join(self, count: int) -> None:
        """So many clients more; returns when each has a connection."""
        for _ in range(count):
            self._clients += 1
            self._group.create_task(self._client(self._clients))
        async with asyncio.timeout(PATIENCE):
            while len(self.open) < self._clients:
                await asyncio.sleep(0.05)

    @property
    def open(self) -> list[ActiveRequest]:
        return [visit for visit in self.in_flight if visit.open]

    def spread(self) -> Counter[str]:
        """Open connections by worker."""
        return Counter(visit.who for visit in self.open)

    async def _client(self, number: int) -> None:
        await asyncio.sleep(number % CONNECTIONS / CONNECTIONS * PAUSE)
        while not self._stop:
            try:
                # No compression, no pings: what goes over the wire is what is sent here.
                async with connect(
                    self._url, compression=None, ping_interval=None, proxy=None, open_timeout=PATIENCE
                ) as socket:
                    assert socket.response
                    visit = ActiveRequest(socket.response.headers.get("x-worker", ""))
                    self.in_flight.append(visit)
                    try:
                        await self._talk(number, socket, visit)
                    finally:
                        visit.open = False
            except (InvalidHandshake, OSError, TimeoutError) as error:
                self.refusals[f"{type(error).__name__}: {error}"] += 1
                await asyncio.sleep(PAUSE)

    async def _talk(self, number: int, socket: ClientConnection, visit: ActiveRequest) -> None:
        try:
            while not self._stop:
                text, began = f"{number} says {visit.echoes}", time.monotonic()
                await socket.send(text)
                async with asyncio.timeout(PATIENCE):
                    answer = await socket.recv()
                if answer != text:
                    visit.end = f"sent {text!r}, received {answer!r}"
                    return
                visit.echoes += 1
                visit.longest = max(visit.longest, time.monotonic() - began)
                await asyncio.sleep(PAUSE)
        except ConnectionClosed as error:
            visit.code = error.rcvd.code if error.rcvd else None
            visit.end = f"closed with {visit.code}" if error.rcvd else "reset"
        except TimeoutError:
            visit.end = f"no echo within {PATIENCE:g} s"


def problems(visits: Sequence[ActiveRequest], refusals: Counter[str], gone: Collection[str]) -> list[str]:
    """What must not be: a line for each. ``gone``: the workers that were told to leave."""
    found = Counter(f"handshake failed: {kind}" for kind in refusals.elements())
    for visit in visits:
        if not visit.who:
            found["a response to a handshake without x-worker"] += 1
        elif visit.who not in gone:
            if visit.end:
                found[f"on a worker that stayed: {visit.end}"] += 1
            if visit.longest > ECHO_LIMIT:
                found[f"on a worker that stayed: an echo took longer than {ECHO_LIMIT:g} s"] += 1
        elif visit.open:
            found["still open on a worker that is gone"] += 1
        elif visit.end and visit.code is None:
            found[f"on a worker that left: {visit.end}"] += 1
    return [f"{count} times {kind}" for kind, count in found.items()]


async def scaled(compose: Compose, connections: int) -> tuple[list[str], list[str]]:
    """Scale a project that is up with three workers under so many connections; returns figures and problems.

    Half of the clients come at the beginning, the others after the second scale, so that new workers have some, too.
    """
    crowd = Crowd(compose.url.replace("http", "ws", 1) + "/echo")
    lines: list[str] = []
    gone: set[str] = set()
    seen: Counter[str] = Counter()
    async with crowd.running():
        for step, workers in enumerate(SCALES):
            before = await _hostnames(compose)
            await compose.scale(workers)
            gone |= before - await _hostnames(compose)
            await asyncio.sleep(SETTLE)
            if step < 2:
                await crowd.join(connections // 2 if step == 0 else connections - connections // 2)
                await asyncio.sleep(SETTLE)
            ends = Counter(visit.end for visit in crowd.in_flight if visit.end)
            ended = ", ".join(f"{count} {end}" for end, count in (ends - seen).items())
            seen = ends
            spread = ", ".join(str(count) for _, count in crowd.spread().most_common())
            lines.append(f"{workers} workers: {len(crowd.open)} connections ({spread}); ended: {ended or 'none'}")
        # While they are open: those on a worker that is gone must not be.
        found = problems(crowd.in_flight, crowd.refusals, gone)
    stayed = [visit for visit in crowd.in_flight if visit.who not in gone]
    longest = max((visit.longest for visit in stayed), default=0.0)
    lines.append(
        f"{sum(visit.echoes for visit in crowd.in_flight)} echoes on {len(crowd.in_flight)} connections; "
        f"longest echo on a worker that stayed {longest * 1000:.0f} ms"
    )
    return lines, found


async def _hostnames(compose: Compose) -> set[str]:
    """The host names of the workers that run: Docker takes the beginning of the container's id."""
    return {container[:12] for container in await compose.containers("worker")}
