"""Lines for the log about what clients may cause at any rate."""

from __future__ import annotations

import logging
import time

from balancer.types import Clock
from balancer.words import counted

# Seconds between two lines.
INTERVAL = 60.0


class RareLog:
    """One kind of line, at most once in INTERVAL; what is left out is counted in the next line."""

    def __init__(self, log: logging.Logger, clock: Clock = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def warning(self, message: str, *args: object) -> None:
        """Log a warning, or count it."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + INTERVAL
        left_out, self._left_out = self._left_out, 0
        if left_out:
            message, args = f"{message} (and %s since the last line)", (*args, counted(left_out, "time"))
        self._log.warning(message, *args)
