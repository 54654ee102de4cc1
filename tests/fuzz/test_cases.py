"""What the fuzzer found, and what it begins with: played again, so that it stays found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.case import run
from tests.fuzz.seeds import seeds
from tests.support.pipes import PipeLoop

CASES = sorted((Path(__file__).parent / "cases").iterdir())

# Cases that still fail, and why.
OPEN = {
    "head-refused": "the reason of a refusal is sent as a body of the response to HEAD",
    "http-1.0-truncated": "a body that lasts until close, and is cut short, ends in order rather than by a reset",
    "http-1.0-without-host": "a member gets a request of HTTP/1.1 without a Host",
}


@pytest.fixture(scope="module")
def loop() -> Iterator[PipeLoop]:
    loop = PipeLoop()
    yield loop
    loop.close()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_what_was_found_does_not_happen_again(path: Path, loop: PipeLoop, request: pytest.FixtureRequest) -> None:
    if reason := OPEN.get(path.name):
        request.applymarker(pytest.mark.xfail(reason=reason))
    assert run(path.read_bytes(), loop) == []


@pytest.mark.xfail(reason=OPEN["http-1.0-truncated"])
def test_nothing_is_found_in_what_the_fuzzer_begins_with(loop: PipeLoop) -> None:
    assert [(seed, found) for seed in seeds() if (found := run(seed, loop))] == []
