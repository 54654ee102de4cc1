"""A mark that distinguishes a supervisor from other processes, for a command that is about to signal it.

On Linux a supervisor alone has a file of the name MARK open. ``/proc`` shows that to processes of the same user, of
any PID namespace. Elsewhere ``ps`` has the command line, which a supervisor shares with its children.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MARK = "balancer-supervisor"
PROC = Path("/proc")


def make_mark() -> list[int]:
    """Return the descriptors that mark this process; its children have to close them."""
    return [os.memfd_create(MARK)] if hasattr(os, "memfd_create") else []


def objection(pid: int) -> str | None:
    """Return why a process is not to be signalled as a supervisor; None for one of this user's, and for root."""
    try:
        owner, marked = _in_proc(pid) if PROC.is_dir() else _by_ps(pid)
    except (FileNotFoundError, ProcessLookupError):
        return f"there is no process {pid}"
    except OSError as error:
        return f"process {pid} cannot be examined ({error.strerror})"
    user = os.geteuid()
    if user not in (0, owner):
        return f"process {pid} belongs to user {owner} and not to user {user}"
    return None if marked else f"process {pid} is no supervisor of `balancer serve`"


def _in_proc(pid: int) -> tuple[int, bool]:
    """Return the owner of a process, and whether it has the mark. Raises OSError."""
    process = PROC / str(pid)
    owner = process.stat().st_uid
    if os.geteuid() not in (0, owner):
        return owner, False  # Its files cannot be read.
    return owner, any(_leads_to(descriptor) == f"/memfd:{MARK} (deleted)" for descriptor in (process / "fd").iterdir())


def _leads_to(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # It has been closed since.
        return ""


def _by_ps(pid: int) -> tuple[int, bool]:
    owner, parent, command = _ps(pid)
    serves = "balancer" in command and " serve" in command
    return int(owner), serves and _ps(int(parent))[2] != command


def _ps(pid: int) -> list[str]:
    """Return the user, the parent and the command line of a process. Raises ProcessLookupError."""
    found = subprocess.run(["ps", "-o", "uid=,ppid=,command=", "-p", str(pid)], capture_output=True, text=True)
    fields = found.stdout.split(None, 2)
    if len(fields) < 3:
        raise ProcessLookupError
    return fields
