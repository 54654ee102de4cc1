"""The README and the reference say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from balancer.config.display import show, variable
from balancer.config.settings import Settings
from balancer.errors import TOKENS
from docs.site import reference
from tests.support.paths import ERRORS, README, ROOT

PORTUGUESE = (ROOT / "README.pt-BR.md").read_text()
LIBRARY = (ROOT / "docs" / "guides" / "library.md").read_text()
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text()


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_settings_table_has(field) -> None:  # type: ignore[no-untyped-def]
    kind = field.metadata["kind"]
    default = show(field.default, kind)
    assert f"| `{variable(field.name)}` | {default} | {kind.accepts} | {field.metadata['meaning']} |\n" in SETTINGS


def test_settings_table_has_nothing_else() -> None:
    assert SETTINGS.count("\n| `BALANCER_") == len(fields(Settings))


def test_compose_passes_every_setting_on_but_its_two_listeners() -> None:
    passed = (ROOT / "compose.yaml").read_text()
    missing = [it.name for it in fields(Settings) if f"      {variable(it.name)}:\n" not in passed]
    assert missing == ["bind", "admin_bind"]


def test_compose_passes_all_of_an_env_file_that_may_be_missing() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["balancer"]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    for document in (README, PORTUGUESE, (ROOT / "docs" / "getting-started.md").read_text()):
        assert "Compose 2.24" in document


def test_every_token_that_the_balancer_can_answer_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "balancer").rglob("*.py"))
    said = set(re.findall(r'Refusal\(\s*(\d{3}), "(\w+)"', source))
    explained = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", ERRORS, re.MULTILINE))
    assert said <= explained
    # Where a variable holds the token, the source does not show it beside the status.
    assert {token for _, token in explained} == TOKENS


def test_examples_in_python_are_parts_of_those_that_tests_run() -> None:
    sources = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    blocks = re.findall(r"^```python\n(.*?)^```", README + LIBRARY, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    assert all(any(block.strip() in source for source in sources) for block in blocks)


def test_readme_is_short_and_its_blocks_have_languages() -> None:
    assert len(README.splitlines()) <= 150
    fences = re.findall(r"^```(\w*)$", README, re.MULTILINE)
    assert set(fences[::2]) == {"sh", "console", "yaml", "python"}
    assert not any(fences[1::2])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_explained(path: Path) -> None:
    assert f"](../../examples/{path.name})" in LIBRARY


@pytest.mark.parametrize("name", reference.PAGES)
def test_reference_page_is_what_the_code_generates(name: str) -> None:
    path, text = reference.page(name)
    assert path.read_text() == text
