"""docs/reference/strictness.md has a row for each case, and each row is a wire test."""

from __future__ import annotations

import ast
import re

import pytest

from bench.strictness.report import BALANCER, COLUMNS, as_expected, laxness
from tests.support.hostile import CASES, OPEN, Case
from tests.support.hostile_answers import ANSWERS, PASSES, Answer
from tests.support.hostile_bounds import BOUNDS, Bound
from tests.support.paths import ROOT

HOSTILE: list[Case | Answer] = [*CASES, *ANSWERS]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "reference" / "strictness.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| request |", "| response |", "| client |"))
]
CELLS = {row[0]: dict(zip(COLUMNS, row[2:], strict=True)) for row in ROWS}


def test_rows_are_the_cases() -> None:
    cases = [(it.name, it.rule) for it in HOSTILE] + [(it.name, it.promise) for it in BOUNDS]
    assert [(row[0], row[1]) for row in ROWS] == cases
    assert len(CELLS) == len(cases), "names are unique"


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_balancer_does_what_the_case_asks_for_and_is_never_the_laxest(case: Case | Answer) -> None:
    row = dict(CELLS[case.name])
    ours = row.pop(BALANCER)
    assert as_expected(case, ours) is (case.name not in OPEN)
    if case.name not in OPEN and (case.status if isinstance(case, Case) else case.becomes != PASSES):
        assert laxness(ours) <= max(map(laxness, row.values()))


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_test_of_a_bound_exists(bound: Bound) -> None:
    path, _, name = bound.test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {it.name for it in ast.walk(tree) if isinstance(it, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_wire_tests_send_every_case() -> None:
    edge = (ROOT / "tests/frontend/test_connection.py").read_text()
    used = re.findall(r"^@each\(it for it in CASES if (.*)\)$", edge, re.MULTILINE)
    assert used == ["it.status and not it.in_body", "it.status and it.in_body", "not it.status"]
    assert re.search(
        r"^        for it in ANSWERS$", (ROOT / "tests/upstream/test_hostile_members.py").read_text(), re.MULTILINE
    )
