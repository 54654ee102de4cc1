"""The number of processor cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the cores of the CPU affinity, at most the quota of the control group, rounded up; at least one.

    ``docker run --cpus 1.5`` and a CPU limit of Kubernetes are such quotas.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.ceil(min(_quotas(CGROUPS, OWN_CGROUPS), default=affinity))))


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of this process's control group and of those around it, as far as readable."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Within a container the path may be the host's, while the mounted tree is the container's own: its root counts.
        inner = PurePosixPath(path.lstrip("/"))
        for place in (inner, *inner.parents):
            group = root / controllers / place
            quota = _first_version(group) if controllers else _second_version(group)
            if quota:
                yield quota


def _second_version(group: Path) -> float | None:
    """Return the quota in ``cpu.max``: quota and period in microseconds, or "max" (Linux, cgroup-v2.rst)."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # There is none, or no limit.
        return None


def _first_version(group: Path) -> float | None:
    """Return the quota in ``cpu.cfs_quota_us``, which is -1 where there is no limit (Linux, sched-bwc.rst)."""
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None
