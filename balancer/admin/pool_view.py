"""What the admin listener needs to know of a pool: of the one in its own process, or of the sum of several."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Snapshot
from balancer.members.member import Member
from balancer.telemetry.stats import Stats
from balancer.types import Address, Clock
from balancer.upstream.base import Connections


class View(Protocol):
    """A pool as others see it: a ``LoadBalancer``, or several of different processes taken together.

    ``available``: how many members may be given requests. ``queued``: requests that wait for a member, and ``active``:
    requests in progress, with those. ``clients``: open connections of the listener that requests come by; the same
    object for all pools that share one. ``connections``: those to members. Both are None where they are not counted.
    """

    @property
    def settings(self) -> Settings: ...
    @property
    def name(self) -> str: ...
    @property
    def stats(self) -> Stats | None: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def snapshot(self) -> Snapshot | None: ...
    @property
    def members(self) -> Mapping[Address, Member]: ...
    @property
    def available(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def clients(self) -> Collection[object] | None: ...
    @property
    def connections(self) -> Connections | None: ...

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, or requests again; those that it has are finished."""


class Usage(NamedTuple):
    """A process that serves. ``cpu``: seconds that it has used so far; ``memory``: its resident bytes."""

    number: int
    pid: int
    cpu: float
    memory: int

    @classmethod
    def own(cls, number: int = 0) -> Usage:
        """That of this process."""
        return cls(number, os.getpid(), time.process_time(), _resident_memory())


def _resident_memory() -> int:
    """0 where the system does not say so (it is not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


V = TypeVar("V", bound=View)


def by_name(pools: Iterable[V]) -> dict[str, V]:
    """The pools by what they are called: as their routes say, else by their alias; with more to it where needed."""
    found: dict[str, V] = {}
    for pool in dict.fromkeys(pools):
        name = pool.name or pool.settings.alias
        precise = f"{name}:{pool.settings.upstream_port}"
        names = chain([name, precise], (f"{precise}/{number}" for number in count(2)))
        found[next(it for it in names if it not in found)] = pool
    return found
