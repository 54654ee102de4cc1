"""Imports go downward only, and the core does no I/O: read from the source, so that nothing needs to run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import balancer
import worker

BALANCER = Path(balancer.__file__).parent
WORKER = Path(worker.__file__).parent

CORE = {
    "errors", "settings", "headers", "request", "health", "membership", "policies", "retry", "hold", "slots", "strict",
    "frames", "proxyprotocol", "http1", "memo", "observer", "record", "stats", "events", "hooks", "routes",
    "search", "pace", "watch/tally",
}  # fmt: skip
IO = {"asyncio", "time", "logging", "socket", "httpx", "starlette", "uvicorn", "dns", "redis"}


def imports(source: str) -> Iterator[str]:
    """The dotted name of everything that a module imports, at its top or further in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (it.name for it in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            yield from (f"{node.module}.{it.name}" for it in node.names)


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path.read_text())}


def modules(package: Path) -> list[Path]:
    found = sorted(package.rglob("*.py"))
    assert found
    return found


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b, c\ndef f():\n    from d import e\nif x:\n    from g.h import i as j\n"
    assert set(imports(source)) == {"a.b", "c", "d.e", "g.h.i"}


@pytest.mark.parametrize("name", sorted(CORE))
def test_a_core_module_imports_nothing_that_does_io(name: str) -> None:
    assert not roots(BALANCER / f"{name}.py") & IO


@pytest.mark.parametrize("name", sorted(CORE))
def test_a_core_module_imports_only_the_core_of_the_balancer(name: str) -> None:
    parts = [it.split(".") for it in imports((BALANCER / f"{name}.py").read_text())]
    assert {it[1] for it in parts if it[0] == "balancer"} <= CORE - {name}


@pytest.mark.parametrize("path", modules(BALANCER), ids=lambda path: str(path.relative_to(BALANCER)))
def test_the_balancer_imports_neither_redis_nor_the_worker(path: Path) -> None:
    assert not roots(path) & {"redis", "fakeredis", "worker"}


@pytest.mark.parametrize("path", modules(WORKER), ids=lambda path: path.name)
def test_the_worker_does_not_import_the_balancer(path: Path) -> None:
    assert "balancer" not in roots(path)
