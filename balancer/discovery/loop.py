"""Resolves the alias at all times, off the path of requests."""

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
    """Resolves at the pace of ``discovery.pace``. ``available``, ``waiting``: whether members are, and requests do.

    A slow query does not delay the next, so that one slow answer cannot hide a new member. An answer older than one
    that was delivered before is dropped.
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
        self._rounds = 0
        self._delivered = 0
        self._wakened = asyncio.Event()

    def wake(self) -> None:
        """Query DNS as soon as URGENT_INTERVAL since the last round allows."""
        self._pace.speed_up(self._clock())
        self._wakened.set()

    async def run(self) -> None:
        """Query DNS until cancelled."""
        self._pace.speed_up(self._clock())
        async with asyncio.TaskGroup() as queries:
            while True:
                self._rounds += 1
                queries.create_task(self._round(self._rounds))
                self._wakened.clear()
                await asyncio.sleep(self._closest)
                delay = self._pace.delay(self._available(), self._waiting(), self._clock())
                try:
                    async with asyncio.timeout(delay - self._closest):
                        await self._wakened.wait()
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
            self._pace.record_answer(any(answer.endpoints for answer in snapshot.answers), self._clock())
            self._deliver(snapshot)
