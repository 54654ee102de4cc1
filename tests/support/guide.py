"""Files as a guide in ``docs`` gives them: indented blocks whose first line is a comment with the name of the file."""

from __future__ import annotations

import re

from tests.support.paths import DOCS


def blocks(page: str) -> list[str]:
    """The indented blocks of a page, without their indentation."""
    text = (DOCS / page).read_text()
    return [
        re.sub(r"^    ", "", found[0], flags=re.MULTILINE).rstrip() + "\n"
        for found in re.finditer(r"(?:^    .*\n(?:\n+(?=    ))?)+", text, flags=re.MULTILINE)
    ]


def files(page: str) -> dict[str, str]:
    """The files that a page gives, by name."""
    found: dict[str, str] = {}
    for block in blocks(page):
        if name := re.match(r"# ([\w.]+)\n", block):
            assert name[1] not in found, f"{page} gives {name[1]} twice"
            found[name[1]] = block
    return found
