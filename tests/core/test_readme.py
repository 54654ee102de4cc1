"""The README says what the code does."""

from __future__ import annotations

import re
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest

from balancer.config.display import show, variable
from balancer.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_the_settings_table_has(field) -> None:  # type: ignore[no-untyped-def]
    kind = field.metadata["kind"]
    default = show(field.default, kind)
    assert f"| `{variable(field.name)}` | {default} | {kind.accepts} | {field.metadata['meaning']} |\n" in README


def test_the_settings_table_has_nothing_else() -> None:
    assert README.count("\n| `BALANCER_") == len(fields(Settings))


def test_compose_passes_every_setting_on_but_its_two_listeners() -> None:
    passed = (ROOT / "compose.yaml").read_text()
    missing = [it.name for it in fields(Settings) if f"      {variable(it.name)}:\n" not in passed]
    assert missing == ["bind", "admin_bind"]


def test_every_token_that_the_balancer_can_answer_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "balancer").rglob("*.py"))
    said = set(re.findall(r'Refusal\(\s*(\d{3}), "(\w+)"', source))
    explained = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", README, re.MULTILINE))
    assert said == explained


def test_the_examples_in_python_are_parts_of_those_that_tests_run() -> None:
    section = README.partition("\n## In Python\n")[2].partition("\n## ")[0]
    blocks = [
        textwrap.dedent(it).strip() for it in re.findall(r"(?:^(?: {4}.*)?\n)+", section, re.MULTILINE) if it.strip()
    ]
    files = [(ROOT / name).read_text() for name in re.findall(r"\]\((examples/\w+\.py)\)", section)]
    assert len(blocks) == len(files) == 2
    assert all(block in file for block, file in zip(blocks, files, strict=True))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_explained(path: Path) -> None:
    assert f"](../../examples/{path.name})" in (ROOT / "docs/guides/library.md").read_text()
