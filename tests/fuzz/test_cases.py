"""What the fuzzer found, and what it begins with: played again, so that it stays found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.case import run
from tests.fuzz.known import OPEN, unknown
from tests.fuzz.seeds import seeds
from tests.support.pipes import PipeLoop

CASES = sorted((Path(__file__).parent / "cases").iterdir())


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_cases_that_were_found_do_not_happen_again(path: Path, loop: PipeLoop, request: pytest.FixtureRequest) -> None:
    if path.name in OPEN:
        request.applymarker(pytest.mark.xfail(reason=OPEN[path.name][1]))
    assert run(path.read_bytes(), loop) == []


def test_seeds_of_the_fuzzer_pass_the_judge(loop: PipeLoop) -> None:
    assert [(seed, found) for seed in seeds() if (found := unknown(run(seed, loop)))] == []
