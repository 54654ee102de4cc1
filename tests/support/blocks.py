"""The fenced blocks of the README, for the tests that run them.

A test that runs a block asks for it by its first line: ``readme_block("make demo")``. ``tests/docs/test_blocks.py``
compares these calls with the README, so that each block has a test.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

ENGLISH = ROOT / "README.md"
PORTUGUESE = ROOT / "README.pt-BR.md"

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language and its lines."""

    language: str
    text: str

    @property
    def first(self) -> str:
        """The first line without a comment."""
        return self.bare.partition("\n")[0]

    @property
    def bare(self) -> str:
        """The text without comments, which each language has in its own words."""
        return re.sub(r"[ \t]+# .*$", "", self.text, flags=re.MULTILINE)

    @property
    def commands(self) -> str:
        """What a reader types: of a console the lines with a prompt, without it; else all of the text."""
        if self.language != "console":
            return self.text
        return "\n".join(re.findall(r"^\$ (.*)$", self.text, re.MULTILINE))

    @property
    def output(self) -> str:
        """What a console shows beside the commands."""
        return re.sub(r"^\$ .*\n", "", self.text, flags=re.MULTILINE)

    def command(self, url: str) -> str:
        """The commands on this machine: the system at ``url``, and programs of the environment that runs the tests."""
        programs = f"{Path(sys.executable).parent}/"
        return self.commands.replace("http://localhost/", f"{url}/").replace(".venv/bin/", programs)


def blocks(document: Path) -> list[Block]:
    """The blocks of a document, in order."""
    return [Block(*found) for found in _FENCED.findall(document.read_text())]


def readme_block(first: str) -> Block:
    """The block of the README with this first line. Raises ValueError unless there is exactly one."""
    (found,) = (it for it in blocks(ENGLISH) if it.first == first)
    return found


def shape(output: str) -> str:
    """An output without its numbers and without the names of containers."""
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\b[0-9a-f]{12}\b", "ID", output))
