"""One of something is said in the singular, wherever a message has a count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from balancer.dispatch.refusals import too_large
from balancer.watch import Tally
from balancer.words import counted
from tests.support.paths import ROOT

SOURCES = [it for top in ("balancer", "worker") for it in (ROOT / top).rglob("*.py")]
# Numbers that are constants of more than one, or that are in the plural whatever they are.
PLURALS = re.compile(
    r"MAX|LIMIT|ANSWER_BYTES|limits\.|processes|counter\.|== 1 else|count\} times|{count} options|of \{wanted\}"
)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 requests"), (1, "1 request"), (2, "2 requests"), (1000, "1000 requests")]
)
def test_number_has_its_noun_in_the_singular_for_one_alone(number: int, words: str) -> None:
    assert counted(number, "request") == words
    assert counted(number, "address", "addresses") == words.replace("requests", "addresses").replace(
        "request", "address"
    )


def test_refusal_with_a_limit_of_one_is_in_the_singular() -> None:
    assert too_large(1).reason == "the body of a request may have 1 byte"
    assert too_large(2).reason == "the body of a request may have 2 bytes"


def test_watch_without_a_request_has_dashes() -> None:
    assert Tally().figures() == {"median": None, "p99": None, "longest": None}


@pytest.mark.parametrize("path", SOURCES, ids=lambda it: str(it.relative_to(ROOT)))
def test_message_with_a_count_takes_its_noun_from_counted(path: Path) -> None:
    nouns = "requests|endpoints|members|connections|bytes|processes|workers|addresses|pools|routes|fields|seconds|times"
    found = [
        line.strip()
        for line in path.read_text().splitlines()
        if re.search(rf"(\{{[^{{}}]*\}}|%d) ({nouns})\b", line) and '"' in line and not PLURALS.search(line)
    ]
    assert found == []
