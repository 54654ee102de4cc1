"""``docs/reference/strictness.md`` from what was measured, and where the balancer is not as strict as it should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.processes import ROOT
from bench.strictness.timed import DOCUMENTED, WATCH
from tests.support.hostile import OPEN, REQUESTS, Case
from tests.support.hostile_answers import CUT, PASSES, RESPONSES, Answer
from tests.support.hostile_bounds import BOUNDS

DOC = ROOT / "docs" / "reference" / "strictness.md"

# The candidates of the bench that are columns, in this order; ours is the last.
COLUMNS = {"nginx-keepalive": "nginx", "haproxy": "HAProxy", "caddy": "Caddy", "balancer": "balancer"}
BALANCER = "balancer"

# By candidate, then by case.
Cells = Mapping[str, Mapping[str, str]]


@dataclass
class Results:
    date: str
    versions: dict[str, str]
    cells: dict[str, dict[str, str]] = field(default_factory=dict)


def laxness(cell: str) -> int:
    """0: nothing came through. 1: a part, which nobody takes for the whole. Then: repaired, as it was, as several."""
    if "next request with it" in cell:
        return 5
    if "passed" in cell:
        return 4 if "requests" in cell else 2 if "repaired" in cell else 3
    return 1 if any(words in cell for words in ("in part", CUT, "takes it all", "goes on")) else 0


def as_expected(case: Case | Answer, cell: str) -> bool:
    """Whether that is what the balancer has to do."""
    if isinstance(case, Case):
        if not case.status:
            return cell == "passed"
        return cell == str(case.status) or (case.in_body and cell == f"{case.status}, in part")
    if case.becomes == PASSES:
        return cell == "passed"
    return cell == case.becomes or (case.becomes == CUT and cell == "closes")


def complaints(cells: Cells) -> Iterator[str]:
    """Where the balancer is not what the table asks for, or laxer than all of its peers."""
    for case in (*_all(REQUESTS), *_all(RESPONSES)):
        row = {name: cells[name][case.name] for name in cells if case.name in cells[name]}
        ours = row.pop(BALANCER, None)
        if ours is None:
            continue
        refused = case.status if isinstance(case, Case) else case.becomes != PASSES
        if not as_expected(case, ours):
            known = " (known)" if case.name in OPEN else ""
            yield f"{case.name}{known}: {ours}; others: {row}"
        elif refused and row and laxness(ours) > max(map(laxness, row.values())):
            yield f"{case.name}: the laxest: {ours}; others: {row}"


def _all(tables: Mapping[str, tuple[Case, ...]] | Mapping[str, tuple[Answer, ...]]) -> Iterator[Case | Answer]:
    for cases in tables.values():
        yield from cases


def text(results: Results) -> str:
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    versions = ", ".join(f"{title} {results.versions[name]}" for name, title in COLUMNS.items())
    yield INTRODUCTION.format(date=results.date, versions=versions)
    yield "## Requests\n"
    yield REQUEST_LEGEND
    for section, cases in REQUESTS.items():
        yield from _table(section, "request", "RFC", ((case.name, case.rule) for case in cases), results.cells)
    yield "## Responses of members\n"
    yield RESPONSE_LEGEND
    for section, answers in RESPONSES.items():
        yield from _table(section, "response", "RFC", ((answer.name, answer.rule) for answer in answers), results.cells)
    yield "## Time and number\n"
    yield TIME_LEGEND.format(watch=f"{WATCH:.0f}")
    yield from _rows("client", "promise", ((bound.name, bound.promise) for bound in BOUNDS), results.cells)


def _table(section: str, what: str, second: str, rows: Iterable[tuple[str, str]], cells: Cells) -> Iterator[str]:
    yield f"### {section}\n"
    yield from _rows(what, second, rows, cells)
    yield ""


def _rows(what: str, second: str, rows: Iterable[tuple[str, str]], cells: Cells) -> Iterator[str]:
    yield f"| {what} | {second} | {' | '.join(COLUMNS.values())} |"
    yield "| --- " * (2 + len(COLUMNS)) + "|"
    for name, rule in rows:
        found = (_cell(cells[candidate].get(name, ""), DOCUMENTED.get((name, candidate), "")) for candidate in COLUMNS)
        yield f"| {name} | {rule} | {' | '.join(found)} |"


def _cell(measured: str, documented: str) -> str:
    return "; ".join(filter(None, (measured, documented))) or "not measured"


INTRODUCTION = """# Strictness

Two servers in a row that read the same bytes differently can be played off against each other, and a server that
waits or stores without bound can be brought down. These tables have every case that the balancer's tests send, and
what nginx, HAProxy and Caddy do with the same bytes. They are written by `make strictness`, from what it measures.
The bytes are in [tests/support/hostile.py](../../tests/support/hostile.py). Every row is a test that sends them to the
balancer (`tests/frontend/test_connection.py`, `tests/upstream/test_hostile_members.py`);
`tests/bench/test_strictness.py` compares the rows with the cases.

Measured {date}: {versions}.

Everybody stands on loopback before the same member, which writes down what reaches it, and has the configuration
of the bench ([bench/configs.py](../../bench/configs.py)), otherwise its defaults. That means for nginx:
`proxy_http_version 1.1`, a `Host` of its own to the member, request bodies of any size; for HAProxy: `timeout client
75s`, `timeout server 60s`, `http-reuse always`. Caddy takes any `Host` here. Rows with *bounded* for a section
are limits of this project that no RFC sets: there, others may just have larger ones.
"""

REQUEST_LEGEND = """Behind each request, unless it has no end, another one is sent in the same packet. Each is sent five
times, unless it is waited for, and the laxest of what was seen is given: some depends on what arrives first.

* A status: that answer; nothing of the request reached the member, and the connection is closed. *goes on*: it is
  not, and the next request was answered too.
* *closes*: the connection is closed without a refusal. *waits*: neither within 2 s. Nothing reached the member.
* *in part*: the member got the request, but not its end.
* *passed*: the member got it, and with it what makes the case. *repaired*: the member got it, but not as it was: the
  fault was replaced, dropped or brought into form. *changed*: so was what has no fault.
* *passed as n requests*: what was sent as one.
"""

RESPONSE_LEGEND = """The member sends this; then the client asks once more. This, too, is the laxest of five.

* A status of 500 or more: that in place of the response. *closes*: nothing, and the connection is closed. *cut off*:
  the response has begun and is broken off, so that it cannot be taken for the whole.
* *passed*, *repaired*: as above. *takes it all*: of a response without end, 16 MiB are taken, and nothing is done about
  it within 5 s.
* *waits, then …*: no whole response within 2 s; after that the member closes its connection. *nothing*: not even then.
* *connection used again*: the next request went to the member on the same connection.
"""

TIME_LEGEND = """Each client was watched for {watch} s. *x after n s*: the answer, or just the close, and how long
after the client had sent the beginning it came; what trickles in gets a byte a second. What is linked is documented,
not measured. *not measured*: it takes a setting that is not everybody's default, or is a bound of this
project's own; of the balancer, its tests show it.
"""
