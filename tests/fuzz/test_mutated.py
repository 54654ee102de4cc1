"""Seeds of the newer targets, broken in generated ways, the same every time: they do no harm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import DICTIONARIES, TARGETS, load
from tests.fuzz.test_generated import generated

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)")


def words(path: Path) -> list[bytes]:
    """The words of a dictionary of libFuzzer's."""

    def unescaped(found: re.Match[bytes]) -> bytes:
        return bytes([int(found[1][1:], 16)]) if len(found[1]) == 3 else found[1]

    return [_ESCAPED.sub(unescaped, word) for word in _WORD.findall(path.read_bytes())]


@pytest.mark.parametrize("target", sorted({*TARGETS} - {"http1"}))
def test_broken_cases_do_no_harm(target: str) -> None:
    module = load(target)
    play = module.player()
    seeds = sorted(set(module.seeds()))
    others = [*words(DICTIONARIES / f"{target}.txt"), *seeds]

    @st.composite
    def broken(draw: st.DrawFn) -> bytes:
        case: bytes = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(case)))
            end = draw(st.sampled_from([start, start + 1, start + 9]))
            other = draw(st.one_of(st.sampled_from(others), st.binary(max_size=3)))
            case = case[:start] + other + case[end:]
        return case

    @generated(200)
    @given(broken())
    def check(case: bytes) -> None:
        assert play(case) == []

    check()
