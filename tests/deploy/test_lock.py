"""The lock files: what the images install, by version and by the hashes of its files."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted(
    path.relative_to(ROOT).as_posix() for part in ("balancer", "worker") for path in (ROOT / part).glob("*.lock")
)
PIN = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?P<marker> ; [^\\]*?)?(?: \\)?$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def pins(path: Path) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package; every other line is a comment."""
    found: dict[str, tuple[str, int]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if pin := PIN.match(line):
            name = pin["name"]
            found[name] = (pin["version"], 0)
        elif HASH.match(line):
            version, count = found[name]
            found[name] = (version, count + 1)
        else:
            assert line.startswith("#"), line
    return found


def needed(name: str, seen: set[str]) -> None:
    """Add what a package that is installed here needs, and what that needs, on this Python."""
    seen.add(name)
    for text in requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            other = canonicalize_name(requirement.name)
            if other not in seen:
                needed(other, seen)


def test_every_part_of_an_image_is_locked() -> None:
    assert LOCKS == [
        "balancer/compile-requirements.lock", "balancer/http2-requirements.lock", "balancer/otel-requirements.lock",
        "balancer/requirements.lock", "worker/requirements.lock",
    ]  # fmt: skip


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_the_versions_of_the_constraints_each_with_hashes(lock: str) -> None:
    locked = pins(ROOT / lock)
    versions = {name: version for name, (version, _) in pins(ROOT / "constraints.txt").items()}
    assert locked
    assert {name: version for name, (version, _) in locked.items()}.items() <= versions.items()
    assert [name for name, (_, count) in locked.items() if not count] == []
    assert "://" not in (ROOT / lock).read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_all_that_its_requirements_need(lock: str) -> None:
    seen: set[str] = set()
    for line in (ROOT / lock).with_suffix(".txt").read_text().split():
        needed(canonicalize_name(Requirement(line).name), seen)
    assert seen <= set(pins(ROOT / lock))


@pytest.mark.parametrize("part", ["balancer", "worker"])
def test_image_installs_what_is_locked_and_nothing_else(part: str) -> None:
    dockerfile = (ROOT / part / "Dockerfile").read_text().replace("\\\n", " ")
    commands = re.findall(r"^RUN .*\bpip install .*", dockerfile, re.MULTILINE)
    assert [it for it in commands if " --require-hashes " not in it] == []
    installed = {name for it in commands for name in re.findall(r"--requirement (\S+?)[};]?(?= |$)", it)}
    copied = re.findall(rf"^COPY ({part}/\S+\.lock(?: {part}/\S+\.lock)*) \./$", dockerfile, re.MULTILINE)
    assert (
        {f"{part}/{name}" for name in installed}
        == set(" ".join(copied).split())
        == {it for it in LOCKS if it.startswith(part)}
    )
    # One base, which a build argument names, in every stage.
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert "\nARG PYTHON_IMAGE=python:3.13-slim\n" in dockerfile


def test_make_lock_writes_every_lock() -> None:
    (parts,) = re.findall(r"^LOCKED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(f"{part}.lock" for part in parts.split()) == LOCKS
