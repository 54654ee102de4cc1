"""The documents hang together: links lead somewhere, and the README in Portuguese keeps to the one in English."""

from __future__ import annotations

import pydoc
import re
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from balancer.config.display import variable
from balancer.config.settings import Settings
from balancer.routing.table_builder import _OWN as PER_ROUTE
from tests.support.paths import ROOT

SKIPPED = {".venv", ".cache", ".git", ".pytest_cache", "node_modules"}
DOCUMENTS = sorted(it for it in ROOT.rglob("*.md") if not SKIPPED & set(it.relative_to(ROOT).parts))

ENGLISH = ROOT / "README.md"
PORTUGUESE = ROOT / "README.pt-BR.md"
PAGES = [it for it in DOCUMENTS if it.is_relative_to(ROOT / "docs")]
ENGLISH_PAGES = [it for it in PAGES if not it.name.endswith(".pt-BR.md")]
DRILL_PORTUGUESE = ROOT / "docs" / "concepts" / "zero-downtime.pt-BR.md"
DRILL = ROOT / "docs" / "concepts" / "zero-downtime.md"

_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_HEADING = re.compile(r"#{1,6} +(.*?)(?: +#+)? *")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^\s()<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_LIST = re.compile(r" *(?:[*+-]|\d+[.)]) ")


def split(text: str) -> tuple[list[str], list[str]]:
    """The lines of prose, and those of code: fenced, or indented after an empty line, in a list by two blanks more."""
    prose, code = [], []
    fence, before, in_code, in_list = "", "", False, False
    for line in text.splitlines():
        if fence:
            if line.strip().startswith(fence):
                fence = ""
            else:
                code.append(line)
        elif found := _FENCE.match(line):
            fence = found[1]
        elif line.startswith("      " if in_list else "    ") and (in_code or not before.strip()):
            in_code = True
            code.append(line)
        else:
            if line.strip():
                in_code = False
                in_list = bool(_LIST.match(line)) or (in_list and line.startswith(" "))
            prose.append(line)
        before = line
    return prose, code


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them; the second of the same name gets ``-1``."""
    found: set[str] = set()
    for line in split(text)[0]:
        if heading := _HEADING.fullmatch(line):
            title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            number = 0
            while (name if not number else f"{name}-{number}") in found:
                number += 1
            found.add(name if not number else f"{name}-{number}")
    return found


def links(text: str) -> list[str]:
    """The targets of links and pictures in the prose. What stands in backticks is no link."""
    return _LINK.findall(re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", "\n".join(split(text)[0])))


def problem(document: Path, target: str) -> str:
    """Why a link of ``document`` leads nowhere, or "". What is on the web is not looked up."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return ""
    path = (document.parent / unquote(parts.path)).resolve() if parts.path else document
    if not path.is_relative_to(ROOT):
        return f"{target} leads out of the repository"
    if not path.exists():
        return f"{target} is not there"
    if parts.fragment and (path.suffix != ".md" or parts.fragment not in anchors(path.read_text())):
        return f"{target}: no such heading"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda it: str(it.relative_to(ROOT)))
def test_every_link_and_anchor_leads_somewhere(document: Path) -> None:
    assert [it for target in links(document.read_text()) if (it := problem(document, target))] == []


def test_every_document_is_listed() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / urlsplit(it).path).resolve() for it in links(index.read_text())}
    assert [it for it in PAGES if it != index and it not in listed] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# One `two`, three\n## One\n## One\n    # no\n", {"one-two-three", "one", "one-1"}),
        ("```\n# no\n```\n# Fim: já, [não](x.md)!\n", {"fim-já-não"}),
        ("a\n\n    # no\n\n### `--x_y` / z\n", {"--x_y--z"}),
    ],
)
def test_anchors_are_those_of_github(text: str, expected: set[str]) -> None:
    assert anchors(text) == expected


def test_links_are_found_in_prose_alone() -> None:
    text = '[a](b.md) ![c](d.svg "e") `[f](g.md)` [`h`](i.md#j)\n\n    [k](l.md)\n'
    text += "\n* [m [n]](o.md)\n\n```\n[p](q.md)\n```\n"
    assert links(text) == ["b.md", "d.svg", "i.md#j", "o.md"]


def test_link_that_leads_nowhere_is_told() -> None:
    assert problem(ENGLISH, "docs/nothing.md") == "docs/nothing.md is not there"
    assert problem(ENGLISH, "#nothing") == "#nothing: no such heading"
    assert problem(ENGLISH, "docs/reference/tls.md#nothing") == "docs/reference/tls.md#nothing: no such heading"
    assert problem(ENGLISH, "../elsewhere.md") == "../elsewhere.md leads out of the repository"
    assert problem(ENGLISH, "docs/reference/tls.md#proxy-protocol") == ""


def code_lines(*documents: Path) -> set[str]:
    return {line.strip() for it in documents for line in split(it.read_text())[1] if line.strip()}


def test_commands_in_portuguese_stand_in_english_too() -> None:
    there = code_lines(PORTUGUESE, DRILL_PORTUGUESE)
    assert len(there) > 10
    assert sorted(there - code_lines(ENGLISH, *ENGLISH_PAGES)) == []


def test_code_is_told_from_prose() -> None:
    text = "a\n    b\n\n    $ c\n\n    d\n* e\n    f\n\n    g\n\n      h\n\ni\n```sh\nj\n```\n"
    assert split(text)[1] == ["    $ c", "    d", "      h", "j"]


def inline_commands(document: Path) -> set[str]:
    """Commands in backticks that have blanks: those that somebody may copy."""
    prose = " ".join(split(document.read_text())[0])
    return {it for it in re.findall(r"`([^`]+)`", prose) if re.match(r"(HTTP_PORT=\S+ .*)?(docker|make|pip) [a-z]", it)}


def test_commands_in_the_text_are_the_same_as_well() -> None:
    known = "\n".join(re.sub(r"\s+", " ", it.read_text()) for it in (ENGLISH, *ENGLISH_PAGES))
    there = inline_commands(PORTUGUESE) | inline_commands(DRILL_PORTUGUESE)
    assert there
    assert sorted(it for it in there if it not in known and it != "docker container run --rm") == []


def figures(document: Path, heading: int) -> list[list[str]]:
    """The numbers of a table, row by row; ``heading`` is its place among the tables of figures of the document."""
    lines = split(document.read_text())[0]
    tables = [list(rows) for is_row, rows in groupby(lines, lambda it: it.startswith("|")) if is_row]
    rows = [it for it in tables if "---:" in it[1]][heading][2:]
    return [re.findall(r"\d+(?:\.\d+)?", re.sub(r"(\d),(\d)", r"\1.\2", row)) for row in rows]


def test_drill_has_the_same_figures_in_both() -> None:
    there = figures(DRILL_PORTUGUESE, 0)
    assert len(there) == 14
    # (A row says of how many, or for how long, in words in the one and in digits in the other.)
    assert [row[-5:] for row in there] == [row[-5:] for row in figures(DRILL, 0)]


def test_readmes_lead_to_each_other() -> None:
    assert "README.pt-BR.md" in links("\n".join(ENGLISH.read_text().splitlines()[:4]))
    assert "README.md" in links("\n".join(PORTUGUESE.read_text().splitlines()[:4]))


@pytest.mark.parametrize("document", [it for it in DOCUMENTS if it.name != "CHANGELOG.md"], ids=str)
def test_setting_named_in_a_document_exists(document: Path) -> None:
    known = {variable(it.name) for it in fields(Settings)} | {
        "BALANCER_IMAGE",
        "BALANCER_CHECK_STATES",
        "BALANCER_COMPILE",
    }
    named = set(re.findall(r"\bBALANCER_[A-Z0-9_]*[A-Z0-9]", document.read_text()))
    # The one that the setting's own page and the troubleshooting show as an example of a misspelt name.
    assert named - known - {"BALANCER_POLICI"} == set()


@pytest.mark.parametrize("name", ["from-traefik.md", "from-the-nginx-trick.md"])
def test_guide_for_those_who_change_over_denies_nothing_that_is_there(name: str) -> None:
    text = (ROOT / "docs" / "guides" / name).read_text()
    there = ("processes", "http2", "otel_endpoint", "access_log", "sticky_cookie", "health_path", "proxy_protocol")
    assert [it for it in there if variable(it) not in text] == []
    leads = {it.partition("#")[0] for it in links(text)}
    assert {"swarm.md", "kubernetes.md", "plugins.md", "routes.md", "../performance/scaling.md"} <= leads
    assert "strip_prefix" in PER_ROUTE and "`strip_prefix`" in text
    denied = [
        it for it in re.split(r"\n(?=[|*])", text) if re.search(r"not there|one process|nothing:", it, re.IGNORECASE)
    ]
    assert [it for it in denied if re.search(r"Swarm|Kubernetes|process|core|auth_basic|return 301", it)] == []


def test_module_named_in_a_page_exists() -> None:
    named = {
        (page.name, name) for page in PAGES for name in re.findall(r"`([a-z_]+/[a-z_0-9]+\.py)`", page.read_text())
    }
    assert len(named) > 20
    missing = [
        (page, name) for page, name in named if not any((ROOT / top / name).exists() for top in ("balancer", ""))
    ]
    assert missing == []


def test_definition_on_the_python_page_exists() -> None:
    page = ROOT / "docs" / "reference" / "python-api.md"
    named = re.findall(r"^::: (balancer\.[\w.]+)$", page.read_text(), re.MULTILINE)
    assert len(named) > 20
    missing = [name for name in named if pydoc.locate(name) is None]
    assert missing == []
