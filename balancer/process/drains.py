"""Drains by hand, for the processes that come later: a drain outlives a crash and a reload.

All processes of a balancer have a file without a name open, which the supervisor passes on. Each writes its drained
members into it. At its first members, each drains those that it finds there. An address that is gone by then is
forgotten: when it comes back, it is another container's.
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


def make_file() -> int:
    """Return a descriptor of the file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("drains")
    with tempfile.TemporaryFile() as file:  # (It is not Linux.)
        return os.dup(file.fileno())


class Drains(Observer):
    """The drained members of one pool. ``drain``: called with each member to be drained."""

    def __init__(self, file: int, settings: Settings, drain: Callable[[Member], None]) -> None:
        self._file = file
        # The display name of a pool may depend on others.
        self._pool = f"{settings.alias}:{settings.upstream_port}"
        self._drain = drain
        self._drained: set[str] = set()
        with self._locked():
            self._pending = set(self._read().get(self._pool, ()))

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        if change.joined and self._pending:
            pending, self._pending = self._pending, set()
            for member in change.joined:
                if str(member.address) in pending:
                    self._drain(member)
            self._write()
        if gone := self._drained & {str(member.address) for member in change.left}:
            self._drained -= gone
            self._write()

    def drained(self, member: Member) -> None:
        (self._drained.add if member.drained else self._drained.discard)(str(member.address))
        self._write()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read(self) -> dict[str, list[str]]:
        try:
            found: dict[str, list[str]] = json.loads(os.pread(self._file, os.fstat(self._file).st_size, 0))
        except ValueError:  # It is new, or a process was killed while writing.
            found = {}
        return found

    def _write(self) -> None:
        with self._locked():
            data = json.dumps(self._read() | {self._pool: sorted(self._drained)}).encode()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, data, 0)
