"""Signals of the supervisor to a process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from balancer.loop_time import Limit
from balancer.process.handover import REPLACED, WorkerContext

log = logging.getLogger(__name__)


class Signals:
    """Signals of the supervisor. ``stop``: set when all processes are to end. ``replaced``: set when successors serve.

    ``stop_now``: set when all processes are to end without a delay.
    """

    def __init__(self, context: WorkerContext, read_again: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.replaced = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminated)
        loop.add_signal_handler(REPLACED, self.replaced.set)
        loop.add_signal_handler(signal.SIGHUP, read_again)
        loop.add_reader(context.lifeline, self._orphaned, context.lifeline)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, REPLACED, signal.SIGHUP})

    def _terminated(self) -> None:
        (self.stop_now if self.stop.is_set() else self.stop).set()

    def _orphaned(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        log.error("the supervisor is gone")
        self.stop_now.set()
        self.stop.set()

    async def either(self) -> None:
        """Wait for ``stop`` or ``replaced``."""
        tasks = [asyncio.ensure_future(event.wait()) for event in (self.stop, self.replaced)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def delay(self, seconds: float) -> None:
        """Wait for ``seconds``, or until ``stop_now``."""
        try:
            async with Limit(seconds):
                await self.stop_now.wait()
        except TimeoutError:
            pass
