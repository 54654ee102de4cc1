"""The threat model names settings and constants that there are, with the values that they have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module

import pytest

from balancer.config.display import variable
from balancer.config.settings import Settings
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "reference" / "threat-model.md").read_text()
DEFAULTS = {variable(field.name): field.default for field in fields(Settings)}
UNITS = {"KiB": 1024, "MiB": 1024 * 1024}


def rows() -> Iterator[tuple[str, str]]:
    """Each bound of a table that is in the code, with the default that the page gives it."""
    yield from re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", PAGE, re.MULTILINE)
    yield from re.findall(r"`([a-z0-9_.]+\.[A-Z_]+)`(?: is | \()([^,)]+)[,)]", PAGE)


def in_code(name: str) -> float:
    if name.startswith("BALANCER_"):
        value = DEFAULTS[name]
    else:
        module, _, constant = name.rpartition(".")
        value = getattr(import_module(f"balancer.{module}"), constant)
    assert isinstance(value, int | float)
    return value


@pytest.mark.parametrize(("name", "default"), sorted(set(rows())))
def test_bound_has_the_value_that_the_page_gives_it(name: str, default: str) -> None:
    if "http2" in name:
        pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    if "tracing" in name:
        pytest.importorskip("opentelemetry", reason="spans need the extra otel")
    number, unit, *_ = [*default.split(), ""]
    assert in_code(name) == float(number) * UNITS.get(unit, 1)


def test_page_has_every_limit_that_is_a_setting() -> None:
    named = {name for name, _ in rows()}
    limits = {name for name in DEFAULTS if name.startswith(("BALANCER_MAX_", "BALANCER_MIN_", "BALANCER_QUEUE_"))}
    assert limits <= named
