"""What the supervisor wants of a process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from balancer.process.handover import LEAVE, WorkerContext

log = logging.getLogger(__name__)


class Signals:
    """What the supervisor wants: ``stop`` is set when all is to end, ``leave`` when others have taken the place.

    ``at_once`` is set when all is to end without a delay.
    """

    def __init__(self, post: WorkerContext, read_again: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self.try_send_nowait = asyncio.Event()
        self.leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminated)
        loop.add_signal_handler(LEAVE, self.leave.set)
        loop.add_signal_handler(signal.SIGHUP, read_again)
        loop.add_reader(post.lifeline, self._orphaned, post.lifeline)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, LEAVE, signal.SIGHUP})

    def _terminated(self) -> None:
        (self.try_send_nowait if self.stop.is_set() else self.stop).set()

    def _orphaned(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        log.error("the supervisor is gone")
        self.try_send_nowait.set()
        self.stop.set()

    async def either(self) -> None:
        """Wait for the first of both."""
        waits = [asyncio.ensure_future(it.wait()) for it in (self.stop, self.leave)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def delay(self, seconds: float) -> None:
        """Wait for so long, or until it is to be at once."""
        try:
            async with asyncio.timeout(seconds):
                await self.try_send_nowait.wait()
        except TimeoutError:
            pass
