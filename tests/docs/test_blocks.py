"""The fenced blocks of both READMEs: each is run by a test; those that need no Docker Engine are run here."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.demo.system import System, free_port
from balancer.watch import Loop
from tests.support.blocks import ENGLISH, PORTUGUESE, blocks, readme_block, shape
from tests.support.paths import ROOT

DEMO = readme_block("make demo")
WATCH = readme_block("$ .venv/bin/balancer watch http://localhost/ --count 9 --rate 20")
CONTRIBUTING = readme_block("make test")


def asked_for() -> Iterator[str]:
    """The first lines that tests ask for."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "readme_block" in (text := path.read_text()):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "readme_block":
                    yield ast.literal_eval(node.args[0])


async def shell(command: str) -> tuple[int | None, str]:
    """Exit status and output of a command in the repository."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("BALANCER_", "MAKE", "MFLAGS"))}
    process = await asyncio.create_subprocess_shell(
        command, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def all_up(system: System) -> None:
    """Wait until each worker of the system has answered."""
    names: set[str] = set()
    async with asyncio.timeout(10):
        async for result in Loop(f"http://127.0.0.1:{system.port}/", rate=50).results():
            names.add(result.worker)
            if len(names) == len(system.workers):
                return


async def recipe(command: str) -> list[str]:
    """The commands that a call of make would run."""
    status, out = await shell(command.replace("make ", "make --dry-run ", 1))
    assert status == 0, out
    return out.replace("\\\n", "").splitlines()


def test_each_readme_block_has_a_test_that_runs_it() -> None:
    asked, there = set(asked_for()), {it.first for it in blocks(ENGLISH)}
    assert there - asked == set(), "no test asks for these blocks"
    assert len(there) == len(blocks(ENGLISH)), "two blocks have the same first line"


def test_readmes_blocks_are_equal_apart_from_comments() -> None:
    english, portuguese = ([(it.language, it.bare) for it in blocks(document)] for document in (ENGLISH, PORTUGUESE))
    assert portuguese == english
    assert len(PORTUGUESE.read_text().splitlines()) <= 150


async def test_demo_command_of_the_readme_runs_the_system() -> None:
    # In place of port 8080 and 20 seconds, a free port and six.
    command = (await recipe(DEMO.commands))[-1]
    assert command.endswith("/balancer demo")
    status, out = await shell(f"{command} --seconds 6 --port {free_port()}")
    assert status == 0, out
    assert "answering: worker-1, worker-2, worker-3\n" in out
    assert re.search(r"^\d+ requests, 0 failed", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "ready", "installed"),
    [
        ("demo", False, ["'.[demo]'"]),
        (".venv/.demo", False, ["'.[demo]'"]),
        ("demo", True, []),
        ("types", False, ["'.[demo,dev,http2,otel]'"]),
    ],
)
def test_demo_target_installs_what_the_demo_needs_and_no_tools_of_tests(
    target: str, ready: bool, installed: list[str], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    parts = [
        *(ROOT / "balancer").rglob("*requirements.txt"),
        *(ROOT / it / "requirements.txt" for it in ("worker", "tests")),
    ]
    for part in (
        *map(Path, ("constraints.txt", "pyproject.toml", "setup.py")),
        *(it.relative_to(ROOT) for it in parts),
    ):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).touch()
    if ready:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / ".ready").touch()
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", target]
    done = subprocess.run(command, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True)
    assert re.findall(r"--editable (\S+)", done.stdout) == installed


async def test_watch_command_of_the_readme_prints_its_output() -> None:
    async with System(free_port()) as system:
        await system.scale(3)
        await all_up(system)
        status, out = await shell(WATCH.command(f"http://127.0.0.1:{system.port}"))
    assert status == 0, out
    assert shape(out[out.index("9 requests") :]) == shape(WATCH.output)


async def test_commands_for_contributors_call_programs_and_tests_that_exist() -> None:
    checked = set(shlex.split(" ".join(re.findall(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))))
    for line in CONTRIBUTING.bare.splitlines():
        assert set(line.split()[1:]) <= checked, "CI does not run it"
        for command in await recipe(line):
            words = [it for it in shlex.split(command) if it != "!"]
            assert shutil.which(words[0], path=f"{os.environ['PATH']}:{ROOT}") or (ROOT / words[0]).exists(), command
            assert [it for it in words if it.startswith("tests/") and not (ROOT / it).exists()] == []
