"""What the drill and the simulation of ejection count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.drill.ejection import Run, Worker
from bench.simulation import ejections

WELL = Run(3, "500", 3200, {"500": 8}, 1 / 3, 0.0, 1 / 3)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (WELL, ""),
        (replace(WELL, failed={"500": 12}), "requests failed"),
        (replace(WELL, fault="reset", failed={"502": 1}), "requests failed"),
        (replace(WELL, noticed=0.1), "kept 10.0%"),
        (replace(WELL, returned=0.02), "got 2.0%"),
    ],
)
def test_drill_says_what_is_out_of_its_bounds(run: Run, words: str) -> None:
    assert words in "".join(run.problems()) and bool(run.problems()) is bool(words)


def test_share_of_a_member_is_that_of_the_attempts_in_a_time() -> None:
    assert Worker(got=[1.0, 2.0, 9.0]).share([Worker(got=[1.5, 2.5, 3.0])], 1.0, 3.0) == 0.5


@pytest.mark.parametrize("case", ejections.CASES)
def test_simulated_minute_has_its_attempts_and_no_false_ejection(
    case: ejections.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ejections, "DAY", 60)
    monkeypatch.setattr(ejections, "DRAWN", 10_007)
    assert ejections.a_day(case, 1) == {"attempts": 60 * ejections.RATE * ejections.MEMBERS}
