"""The contents of the wheel, built as ``make dist`` builds it."""

from __future__ import annotations

import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built from the sdist, so that files that the sdist lacks are missing here too."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or done.stdout
    [path] = target.glob("*.whl")
    return ZipFile(path)


def names(wheel: ZipFile, suffix: str) -> set[str]:
    return {name for name in wheel.namelist() if name.endswith(suffix)}


def test_wheel_top_level_is_the_package_and_its_metadata(wheel: ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    [metadata] = top - {"balancer"}
    assert metadata.endswith(".dist-info")


def test_wheel_modules_are_those_of_the_repository(wheel: ZipFile) -> None:
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "balancer").rglob("*.py")}
    expected |= {f"balancer/demo/worker/{path.name}" for path in (ROOT / "worker").glob("*.py")}
    assert names(wheel, ".py") == expected


def test_wheel_data_is_the_status_page_and_the_type_marker(wheel: ZipFile) -> None:
    static = {str(path.relative_to(ROOT)) for path in (ROOT / "balancer/admin/static").iterdir() if path.is_file()}
    data = {name for name in wheel.namelist() if name.startswith("balancer/") and not name.endswith(".py")}
    assert data == static | {"balancer/py.typed", "balancer/admin/openapi.json"}


def test_wheel_metadata_names_licence_authors_and_extras(wheel: ZipFile) -> None:
    [path] = names(wheel, ".dist-info/METADATA")
    metadata = Parser().parsestr(wheel.read(path).decode())
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Author"] == "the balancer contributors"
    assert metadata.get_all("Provides-Extra") == ["compile", "demo", "http2", "otel", "dev"]
    assert len(names(wheel, ".dist-info/licenses/LICENSE")) == 1
