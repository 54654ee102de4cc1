"""Asks DNS who is behind the alias, all the time, off the path of requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from balancer.discovery.pace import URGENT_INTERVAL, Pace
from balancer.discovery.snapshot import Snapshot
from balancer.types import Clock

log = logging.getLogger(__name__)

Resolve = Callable[[], Awaitable[Snapshot]]


class Discovery:
    """Resolves as often as ``discovery.pace`` says. ``available``, ``waiting``: whether members are, and requests do.

    A query that takes long does not keep the next from being sent, so that one slow answer cannot
    hide a new member; an answer that is older than one that was delivered already is dropped.
    """

    def __init__(
        self,
        resolve: Resolve,
        interval: float,
        clock: Clock,
        available: Callable[[], bool],
        waiting: Callable[[], bool],
        deliver: Callable[[Snapshot], None],
    ) -> None:
        self._resolve = resolve
        self._closest = min(URGENT_INTERVAL, interval)
        self._clock = clock
        self._available = available
        self._waiting = waiting
        self._deliver = deliver
        self._pace = Pace(interval)
        self._asked = 0
        self._delivered = 0
        self._hurry = asyncio.Event()

    def wake(self) -> None:
        """What DNS says is wanted now: ask as soon as URGENT_INTERVAL since the last round allows."""
        self._pace.wanted(self._clock())
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        self._pace.wanted(self._clock())
        async with asyncio.TaskGroup() as queries:
            while True:
                self._asked += 1
                queries.create_task(self._round(self._asked))
                self._hurry.clear()
                await asyncio.sleep(self._closest)
                delay = self._pace.delay(self._available(), self._waiting(), self._clock())
                try:
                    async with asyncio.timeout(delay - self._closest):
                        await self._hurry.wait()
                except TimeoutError:
                    pass

    async def _round(self, number: int) -> None:
        try:
            snapshot = await self._resolve()
        except Exception:
            log.exception("a resolver raised; what is known stays")
            return
        if number > self._delivered:
            self._delivered = number
            self._pace.answered(any(it.endpoints for it in snapshot.answers), self._clock())
            self._deliver(snapshot)
