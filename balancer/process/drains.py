"""Who is drained by hand, for the processes that come later: a drain outlives a crash and a reload.

All processes of a balancer have a file without a name open, which the supervisor passes on. Each writes down which
members it knows as drained, and does as it finds written when it first learns who there is. An address that is not
there any more then is forgotten: when it comes back, it is another container's.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Snapshot
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.telemetry.observer import Observer


def make_notes() -> int:
    """A descriptor of the file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("drains")
    with tempfile.TemporaryFile() as file:  # (It is not Linux.)
        return os.dup(file.fileno())


class Drains(Observer):
    """Those of one pool. ``drain``: what does it to a member."""

    def __init__(self, notes: int, settings: Settings, drain: Callable[[Member], None]) -> None:
        self._notes = notes
        # What a pool is called may depend on others.
        self._pool = f"{settings.alias}:{settings.upstream_port}"
        self._drain = drain
        self._drained: set[str] = set()
        with self._locked():
            self._wanted = set(self._read().get(self._pool, ()))

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        if change.joined and self._wanted:
            wanted, self._wanted = self._wanted, set()
            for member in change.joined:
                if str(member.address) in wanted:
                    self._drain(member)
            self._write()
        if gone := self._drained & {str(it.address) for it in change.left}:
            self._drained -= gone
            self._write()

    def drained(self, member: Member) -> None:
        (self._drained.add if member.drained else self._drained.discard)(str(member.address))
        self._write()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._notes, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._notes, fcntl.LOCK_UN)

    def _read(self) -> dict[str, list[str]]:
        try:
            found: dict[str, list[str]] = json.loads(os.pread(self._notes, os.fstat(self._notes).st_size, 0))
        except ValueError:  # It is new, or a process was killed while writing.
            found = {}
        return found

    def _write(self) -> None:
        with self._locked():
            data = json.dumps(self._read() | {self._pool: sorted(self._drained)}).encode()
            os.ftruncate(self._notes, 0)
            os.pwrite(self._notes, data, 0)
