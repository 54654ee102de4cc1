"""The turn to write to a pipe, a terminal or a socket that several processes share: lines of two are never mixed.

POSIX keeps a write to a pipe together up to PIPE_BUF bytes, and only so many; a terminal and a socket keep nothing
together. A line of a long target has more. Hence one process at a time writes, under a lock of the place itself:

* The lock is on what the descriptor leads to (fcntl), so that all who write there have the same one without more
  ado: supervisor, processes that serve, that of the admin port, and those before and after a reload.
* A process has the lock for one write. Where the other side takes a part of a line alone, the process keeps the lock
  until it takes the rest. A process that ends, however it ends, loses the lock.
* What such a process leaves may be half a line. A byte that all processes of one supervisor share says so (those
  after a reload have another), and the next one ends it.
* A file takes no turns: the kernel writes there whole, one after the other.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
from contextlib import suppress

# Seconds until a process that has not got its turn tries again.
TURN_SECONDS = 0.005


class WriteTurn:
    """The turns of this process at one place. ``midway``: the line under way is half out, and the turn stays."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        kind = os.fstat(descriptor).st_mode
        self._shared = stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(descriptor)
        self._torn = mmap.mmap(-1, 1)
        self.midway = False

    def take(self) -> bool:
        """Return whether it is the turn of this process, which then has it until ``end``."""
        if self.midway or not self._shared:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            self._shared = False  # The system has no locks for this.
        return True

    def torn(self) -> bool:
        """Return whether another process has ended in the middle of a line; to be called with the turn."""
        return self._shared and not self.midway and self._torn[0] != 0

    def end(self, midway: bool = False) -> None:
        """Pass the turn on; or keep it, because a line is half out."""
        if self._shared:
            self.midway = midway
            self._torn[0] = midway
            self.give_back()

    def give_back(self) -> None:
        """Pass the turn on, unless a line is half out."""
        if self._shared and not self.midway:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def wait(self, seconds: float) -> bool:
        """Wait until the turn can be had, for so many seconds; return whether it can."""
        deadline = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() >= deadline:
                return False
            time.sleep(TURN_SECONDS)
        self.give_back()
        return True
