"""The bench's processes: their place among those of the machine, and members that are started more than once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import debian_nginx
from bench.processes import ROOT, BenchError, undisturbed
from bench.upstreams import running_upstreams


def test_what_is_measured_goes_before_other_processes_and_no_longer_than_that() -> None:
    usual = os.sched_getscheduler(0)
    with undisturbed() as first:
        if not first:
            pytest.skip("the system lets no process go before others")
        said = subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"])
        assert int(said) == os.SCHED_RR
    assert os.sched_getscheduler(0) == usual


def test_what_is_measured_shares_the_cores_where_the_system_does_not_let_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with undisturbed() as first:
        assert not first


def test_members_can_be_started_twice_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        debian_nginx()
    except BenchError as error:
        pytest.skip(str(error))
    for _ in range(2):
        with running_upstreams(tmp_path, min(os.sched_getaffinity(0))) as upstreams:
            assert len(upstreams.members) == 2
