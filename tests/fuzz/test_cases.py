"""What the fuzzer found, and what it begins with: played again, so that it stays found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.known import OPEN, unknown
from tests.fuzz.targets import TARGETS, found_cases, load

CASES = [(target, path) for target in TARGETS for path in found_cases(target)]


@pytest.mark.parametrize(("target", "path"), CASES, ids=[path.name for _, path in CASES])
def test_cases_that_were_found_do_not_happen_again(target: str, path: Path, request: pytest.FixtureRequest) -> None:
    if path.name in OPEN:
        request.applymarker(pytest.mark.xfail(reason=OPEN[path.name][1]))
    assert load(target).player()(path.read_bytes()) == []


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_of_the_fuzzer_pass_the_judge(target: str) -> None:
    module = load(target)
    play = module.player()
    assert [(seed, found) for seed in module.seeds() if (found := unknown(play(seed)))] == []
