"""The interface of a pool for the admin listener: of the one in its own process, or of the sum of several."""

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
from balancer.telemetry.client_limits import ClientLimits
from balancer.telemetry.log_output import dropped_lines
from balancer.telemetry.stats import Stats
from balancer.types import Address, Clock
from balancer.upstream.base import Connections


class View(Protocol):
    """A pool for the admin port: a ``LoadBalancer``, or the sum of several of different processes."""

    @property
    def settings(self) -> Settings:
        """Settings of the pool."""

    @property
    def name(self) -> str:
        """Name of the pool where there are several, else ""."""

    @property
    def stats(self) -> Stats | None:
        """Figures, or None where nothing is counted."""

    @property
    def clock(self) -> Clock:
        """Clock of its readings, in seconds."""

    @property
    def snapshot(self) -> Snapshot | None:
        """Last DNS answers, or None before there were any."""

    @property
    def members(self) -> Mapping[Address, Member]:
        """Members by address."""

    @property
    def available(self) -> int:
        """Number of members that may be given requests."""

    @property
    def queued(self) -> int:
        """Number of requests that wait for a member."""

    @property
    def active(self) -> int:
        """Number of requests in progress, with those that wait."""

    @property
    def clients(self) -> Collection[object] | None:
        """Open client connections of its listener, or None; one object for all pools of a listener."""

    @property
    def connections(self) -> Connections | None:
        """Connections to members, or None where they are not counted."""

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, or requests again; those that it has are finished."""

    def eject(self, member: Member, seconds: float) -> None:
        """Give a member requests only while no other is up, for so many seconds; a trial follows."""

    def restore(self, member: Member) -> None:
        """Give a member that is ejected or on trial its whole share of requests again."""


class Usage(NamedTuple):
    """A process that serves. ``cpu``: seconds that it has used so far; ``memory``: its resident bytes.

    ``log_lines_dropped``: by stream, because it was not read or could not be written. ``client_limits``: how often
    clients have reached each bound.
    """

    number: int
    pid: int
    cpu: float
    memory: int
    log_lines_dropped: Mapping[str, int]
    client_limits: Mapping[str, int]

    @classmethod
    def own(cls, limits: ClientLimits | None = None, number: int = 0) -> Usage:
        """Return the usage of this process. ``limits``: those of its clients, where it has any."""
        reached = (limits or ClientLimits()).counts
        return cls(number, os.getpid(), time.process_time(), _resident_memory(), dropped_lines(), dict(reached))


def _resident_memory() -> int:
    """Return resident bytes; 0 where the system does not report them (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


V = TypeVar("V", bound=View)


def by_name(pools: Iterable[V]) -> dict[str, V]:
    """Return the pools by display name: by their routes, else by their alias; with more to it where needed."""
    found: dict[str, V] = {}
    for pool in dict.fromkeys(pools):
        name = pool.name or pool.settings.alias
        precise = f"{name}:{pool.settings.upstream_port}"
        names = chain([name, precise], (f"{precise}/{number}" for number in count(2)))
        found[next(name for name in names if name not in found)] = pool
    return found
