"""What is fuzzed: by the name of each target, the module that plays its cases.

A module has ``player()``, which returns a function that plays a case and returns everything that must not have
happened; ``seeds()``, the cases that a run begins with; and ``SIZE_MAX``, the bytes that a case has at most.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
CASES = HERE / "cases"
DICTIONARIES = HERE / "dictionaries"

TARGETS = {
    "http1": "tests.fuzz.case",
    "heads": "tests.fuzz.heads",
    "http2": "tests.fuzz.http2",
    "proxy": "tests.fuzz.proxy",
    "dns": "tests.fuzz.dns_answer",
    "admin": "tests.fuzz.admin",
}


def load(target: str) -> ModuleType:
    """The module of a target. Raises KeyError if there is no such target."""
    return import_module(TARGETS[target])


def found_cases(target: str) -> list[Path]:
    """The cases that were found for a target."""
    return sorted((CASES / target).glob("*"))
