"""Bring files of the repository that pages link to into the site, and point the links there.

Pages in ``docs/`` link as GitHub needs it: ``../bench/RESULTS.md``, ``../../worker/drain.py``. MkDocs knows
``docs/`` alone. This hook adds what is linked below ``repository/``: Markdown as pages, which ``nav`` has
to list, other files as they are. The README is represented by the site's front page. A link
to a folder becomes plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = "repository/"
FRONT = "README.md"

# A link or a picture with a relative target: its opening, the target, the anchor.
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^\s()<>:#]+)(#[^\s()<>]*)?\)")
FENCE = re.compile(r"^ {0,3}```.*?^ {0,3}```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside of ``docs/`` that a page links to, and what these link to in turn."""
    waiting = [(f"docs/{it.src_uri}", it.content_string) for it in files.documentation_pages()]
    while waiting:
        source, text = waiting.pop()
        for found in LINK.finditer(FENCE.sub("", text)):
            path = resolve(source, found[3])
            uri = site_uri(path)
            if not uri.startswith(OUTSIDE) or files.get_file_from_path(uri) or not (ROOT / path).is_file():
                continue
            files.append(File.generated(config, uri, abs_src_path=os.fspath(ROOT / path)))
            if path.endswith(".md"):
                waiting.append((path, (ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that lead out of ``docs/``, or, of a page from outside, all of them."""
    here = page.file.src_uri
    source = here.removeprefix(OUTSIDE) if here.startswith(OUTSIDE) else f"docs/{here}"

    def point(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups()
        path = resolve(source, target)
        if (ROOT / path).is_dir():
            return text
        to = posixpath.relpath(site_uri(path), posixpath.dirname(here) or ".")
        return f"{picture}[{text}]({to}{anchor or ''})"

    parts = re.split(f"({FENCE.pattern})", markdown, flags=FENCE.flags)
    return "".join(part if FENCE.match(part) else LINK.sub(point, part) for part in parts)


def resolve(source: str, target: str) -> str:
    """The path in the repository of a target as a file at the path ``source`` writes it."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def site_uri(path: str) -> str:
    """Where the site has the file at a path of the repository."""
    if path == FRONT:
        return FRONT
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path
