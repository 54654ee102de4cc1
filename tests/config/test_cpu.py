"""How many cores may be used, by affinity and by the quotas of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balancer.config import cpu


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores; its control groups are below ``cgroup``."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cpus_without_a_quota_are_the_affinity(machine: Path) -> None:
    assert cpu.usable_cores() == 8
    write(machine / "own", "0::/\n")
    write(machine / "cgroup/cpu.max", "max 100000\n")
    assert cpu.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("400000 100000", 4), ("20000 100000", 1), ("9900000 100000", 8)]
)
def test_quota_counts_rounded_up(machine: Path, quota: str, expected: int) -> None:
    write(machine / "own", "0::/\n")
    write(machine / "cgroup/cpu.max", f"{quota}\n")
    assert cpu.usable_cores() == expected


def test_smallest_quota_of_all_groups_around_counts(machine: Path) -> None:
    write(machine / "own", "0::/system.slice/balancer.service\n")
    write(machine / "cgroup/system.slice/cpu.max", "300000 100000\n")
    write(machine / "cgroup/system.slice/balancer.service/cpu.max", "500000 100000\n")
    assert cpu.usable_cores() == 3


def test_first_version_of_control_groups_counts_too(machine: Path) -> None:
    # The path is the host's, the files are the container's own.
    write(machine / "own", "12:pids:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    write(machine / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n")
    write(machine / "cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert cpu.usable_cores() == 3
    write(machine / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert cpu.usable_cores() == 8
