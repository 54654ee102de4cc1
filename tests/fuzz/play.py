"""What all targets have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Plays a case; returns everything that must not have happened, in words.
Play = Callable[[bytes], list[str]]

# Seconds of CPU time that a case may take whatever it is, and for each of its bytes: five times what the slowest of
# the seeds take under coverage.
SECONDS = 1.0
SECONDS_PER_BYTE = 200e-6


@contextmanager
def bounded(found: list[str], size: Callable[[], int], per_byte: float = SECONDS_PER_BYTE) -> Iterator[None]:
    """Find that what is done here takes too much of the processor. ``size``: bytes that were sent, at the end."""
    before = time.thread_time()
    yield
    taken = time.thread_time() - before
    if taken > SECONDS + size() * per_byte:
        found.append(f"it takes too long: {taken:.3f} s for {size()} bytes")
