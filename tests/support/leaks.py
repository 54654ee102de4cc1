"""Find what requests leave behind: tasks that still run, and objects that live for one request."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from balancer.frontend.active_requests import ActiveRequest
from balancer.upstream.response import Response

# Each of these, subclasses included, is made for one request and is gone after it. The request's context is not among
# them: it is the record that the observers of a test keep.
PER_REQUEST = (ActiveRequest, Response)


class Leaks:
    """What there is more of than when this object was made. Make it while no request is in progress."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._objects = _count()

    def found(self) -> list[str]:
        """Return the names of coroutines whose tasks still run, then the names of classes with more objects."""
        tasks = [_coroutine(it) for it in asyncio.all_tasks() - self._tasks]
        return sorted(tasks) + sorted(_count() - self._objects)


def _coroutine(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", repr(task))


def _count() -> Counter[str]:
    """Count the objects of classes in PER_REQUEST by the name of their class."""
    gc.collect()
    return Counter(type(it).__name__ for it in gc.get_objects() if isinstance(it, PER_REQUEST))
