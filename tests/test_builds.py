"""The two builds of one source: what may be compiled, which build runs, and that an old one never runs unnoticed."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from balancer import build
from tests.support.builds import COMPILED
from tests.support.paths import ROOT

LISTED: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["balancer"]["compiled"]
EACH = pytest.mark.parametrize("module", LISTED)


def parsed(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())


def defaults(node: ast.ClassDef) -> list[ast.AnnAssign | ast.Assign]:
    return [it for it in node.body if isinstance(it, ast.Assign) or (isinstance(it, ast.AnnAssign) and it.value)]


def test_list_of_compiled_modules_is_in_order_and_has_no_module_twice() -> None:
    assert sorted(set(LISTED)) == LISTED


@EACH
def test_compiled_module_has_no_coroutine(module: str) -> None:
    """mypyc compiles coroutines so that one may raise the exception of another."""
    kinds = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
    assert [node.lineno for node in ast.walk(parsed(module)) if isinstance(node, kinds)] == []


@EACH
def test_attribute_that_is_none_at_first_has_one_type_besides(module: str) -> None:
    """Of others, mypyc leaves the default away, and the attribute is undefined."""
    wrong = [
        node.lineno
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.ClassDef)
        for node in defaults(node)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
        and ast.unparse(node.annotation).partition("[")[0].count("|") + ast.unparse(node.annotation).count("] |") > 1
    ]
    assert wrong == []


@EACH
def test_compiled_exception_has_no_default_attribute(module: str) -> None:
    """mypyc leaves the defaults of classes away that extend a built-in one."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ClassDef) and any(
            re.search("Exception|Error|^dict|^list", ast.unparse(it)) for it in node.bases
        ):
            assert not defaults(node), node.name


@EACH
def test_module_runs_as_the_build_says(module: str) -> None:
    origin = str(importlib.import_module(module).__file__)
    assert origin.endswith(EXTENSION_SUFFIXES[0] if COMPILED else ".py")
    assert Path(origin).is_relative_to(ROOT)


def test_build_in_words_names_mypyc_where_modules_are_compiled() -> None:
    words = rf"compiled by mypyc {re.escape(pinned())}" if COMPILED else "pure Python"
    assert re.fullmatch(rf"{words}, Python 3\.\d+\.\d+\S*", build.describe())


def pinned() -> str:
    [version] = re.findall(r"^mypy==(\S+)$", (ROOT / "balancer/compile-requirements.txt").read_text(), re.MULTILINE)
    return str(version)


def test_version_of_mypy_that_compiles_is_the_one_that_checks_types() -> None:
    assert f"\nmypy=={pinned()}\n" in (ROOT / "constraints.txt").read_text()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one module in its list, compiled from what it has."""
    package = tmp_path / "balancer"
    package.mkdir()
    (package / "core.py").write_text("x = 1\n")
    (tmp_path / "pyproject.toml").write_text('[tool.balancer]\ncompiled = ["balancer.core"]\n')
    monkeypatch.setattr(build, "_PACKAGE", package)
    monkeypatch.setattr(build, "_PROJECT", tmp_path / "pyproject.toml")
    name = f"{build.PREFIX}1_2_3_{build.digest(build.sources())}__mypyc{EXTENSION_SUFFIXES[0]}"
    (package / name).touch()
    return package


def test_build_of_the_sources_as_they_are_is_taken(checkout: Path) -> None:
    build.check_fresh()
    assert build.kind() == "compiled by mypyc 1.2.3"


def test_build_of_other_sources_is_refused(checkout: Path) -> None:
    (checkout / "core.py").write_text("x = 2\n")
    with pytest.raises(ImportError, match="changed since `make compile`"):
        build.check_fresh()


def test_build_for_another_python_does_not_count(checkout: Path) -> None:
    (checkout / "core.py").write_text("x = 2\n")
    [library] = checkout.glob("*.so")
    library.rename(library.with_name(library.name.replace(EXTENSION_SUFFIXES[0], ".cpython-399-other.so")))
    build.check_fresh()
    assert build.kind() == "pure Python"


def test_installed_package_has_no_sources_to_compare_with(checkout: Path) -> None:
    (checkout / "core.py").write_text("x = 2\n")
    (checkout.parent / "pyproject.toml").unlink()
    build.check_fresh()
    assert build.kind() == "compiled by mypyc 1.2.3"
