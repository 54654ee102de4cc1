"""The worker's log: lines go to standard error from a thread, so that a log that is not read makes no request wait."""

from __future__ import annotations

import logging
import queue
import time
from logging.handlers import QueueHandler, QueueListener

# Lines that may wait for a reader; further ones are dropped.
LINES_MAX = 1000
# Seconds that the end of the process leaves a slow reader.
FINISH_SECONDS = 0.5


class _Waiting(QueueHandler):
    """Puts lines into a queue. ``dropped``: those for which it had no place, since they were reported last."""

    def __init__(self) -> None:
        self.lines: queue.Queue[logging.LogRecord] = queue.Queue(LINES_MAX)
        self.dropped = 0
        super().__init__(self.lines)
        self.setFormatter(logging.Formatter("%(message)s"))

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Writer(QueueListener):
    """Writes the lines, in a thread of its own, and reports those that were dropped."""

    def __init__(self, waiting: _Waiting) -> None:
        super().__init__(waiting.lines, logging.StreamHandler())
        self._waiting = waiting

    def handle(self, record: logging.LogRecord) -> None:
        super().handle(record)
        if count := self._waiting.dropped:
            self._waiting.dropped -= count
            super().handle(logging.makeLogRecord({"msg": f"{count} lines dropped: the log is not read"}))


class Log:
    """The log of this process, from its making on."""

    def __init__(self) -> None:
        waiting = _Waiting()
        logging.basicConfig(level=logging.WARNING, handlers=[waiting])
        self._lines = waiting.lines
        _Writer(waiting).start()

    def finish(self) -> None:
        """Wait until the last lines are written, FINISH_SECONDS at most."""
        deadline = time.monotonic() + FINISH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.001)
