"""Find what requests leave behind: tasks that still run, connections, and objects of the balancer that stay alive.

No class is named here, so that the check outlives every renaming: it counts the instances of all classes that the
balancer and the servers under it define, and the open descriptors of the process.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter

from tests.support.wire import LIMIT

# The packages whose objects are counted: ours, and those that hold connections of clients and members for us.
PACKAGES = frozenset({"balancer", "uvicorn", "websockets", "httptools", "httpx", "httpcore"})


class Leaks:
    """What there is more of than when this object was made. ``at_rest`` makes it at the right moment."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._objects = _count()
        self._descriptors = _descriptors()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Leaks) and vars(self) == vars(other)

    def changed(self, later: Leaks) -> str:
        """Return what another count differs in, in words."""
        objects = {it: (self._objects[it], later._objects[it]) for it in self._objects | later._objects}
        descriptors = {
            it: (self._descriptors[it], later._descriptors[it]) for it in self._descriptors | later._descriptors
        }
        tasks = [_coroutine(it) for it in self._tasks ^ later._tasks]
        return f"{tasks} { ({it: counts for it, counts in (objects | descriptors).items() if len(set(counts)) > 1}) }"

    def found(self) -> list[str]:
        """Return the names of coroutines whose tasks still run, of classes with more instances, and of descriptors."""
        tasks = [_coroutine(it) for it in asyncio.all_tasks() - self._tasks]
        objects = _count() - self._objects
        descriptors = _descriptors() - self._descriptors
        return sorted(tasks) + sorted(objects) + sorted(descriptors)


async def at_rest() -> Leaks:
    """Wait until what requests before this one have left is gone, and nothing changes for a while.

    To count all objects of a process that has run many tests takes a second, in which a probe may come.
    """
    deadline = asyncio.get_running_loop().time() + 3 * LIMIT
    before = Leaks()
    while True:
        await asyncio.sleep(0.3)
        leaks = Leaks()
        if leaks == before:
            return leaks
        assert asyncio.get_running_loop().time() < deadline, f"it changes all the time: {before.changed(leaks)}"
        before = leaks


async def nothing_left(leaks: Leaks) -> None:
    """Wait until nothing is left; a failure names what is."""
    deadline = asyncio.get_running_loop().time() + LIMIT
    while (found := leaks.found()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
    assert not found, f"left: {found}"


def _coroutine(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", repr(task))


def _count() -> Counter[str]:
    """Count the instances of each class of PACKAGES, by the name of the class."""
    gc.collect()
    classes = Counter(map(type, gc.get_objects()))
    return Counter(
        {it.__qualname__: count for it, count in classes.items() if it.__module__.partition(".")[0] in PACKAGES}
    )


def _descriptors() -> Counter[str]:
    """Count the open descriptors of each kind: "socket", "pipe", and so on; none where /proc does not list them."""
    kinds: Counter[str] = Counter()
    try:
        names = os.listdir("/proc/self/fd")  # noqa: PTH208 - iterdir takes a descriptor of its own for longer
    except OSError:
        return kinds
    for name in names:
        try:
            kinds[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1  # noqa: PTH115
        except OSError:
            continue  # The one that listed them.
    return kinds
