"""``docs/reference/abuse.md`` from what was measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.abuse.attack import Tally
from bench.abuse.candidates import BALANCER, TITLES
from bench.abuse.honest import KEPT, PATIENCE, Latency
from bench.abuse.rows import ENOUGH_MS, ROWS, Row
from bench.abuse.run import AFTER_SECONDS, RATE
from bench.abuse.verdict import MOST_GROWTH_MIB, MOST_LEFT, TIMES, Figures, complaints
from bench.processes import ROOT

DOC = ROOT / "docs" / "reference" / "abuse.md"

DASH = "-"
# By row, then by candidate.
Cells = Mapping[str, Mapping[str, Figures]]

DOORS = {"h2": "HTTP/2", "plain": "HTTP/1.1", "tls": "TLS", "admin": "Admin port", "proxy": "PROXY protocol"}


def load(path: Path) -> dict[str, dict[str, Figures]]:
    """What was measured before and saved."""
    if not path.exists():
        return {}
    saved: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text())
    known = {row.name for row in ROWS}
    return {row: {name: _figures(it) for name, it in cells.items()} for row, cells in saved.items() if row in known}


def save(path: Path, cells: Cells) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({row: {name: asdict(it) for name, it in of.items()} for row, of in cells.items()}))


def _figures(saved: dict[str, Any]) -> Figures:
    return Figures(**{**saved, "latency": Latency(**saved["latency"]), "attack": Tally(**saved["attack"])})


def misses(row: Row, cells: Mapping[str, Figures]) -> list[str]:
    """What the balancer misses in a row."""
    if BALANCER not in cells:
        return ["not measured"]
    return list(complaints(row, cells[BALANCER], [it for name, it in cells.items() if name != BALANCER]))


def milliseconds(value: float) -> str:
    return "fails" if math.isinf(value) else f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def latency_cell(figures: Figures | None) -> str:
    if figures is None:
        return DASH
    it = figures.latency
    return milliseconds(it.p99_ms) + (f", {it.failures} of {it.requests} failed" if it.failures else "")


def memory_cell(figures: Figures | None) -> str:
    return DASH if figures is None else f"{figures.growth_mib:.0f}"


def shown_cell(figures: Figures | None) -> str:
    """What shows the attack to an operator."""
    if figures is None:
        return DASH
    counted = [f"`{_short(name)}` {value:.0f}" for name, value in figures.counted.items()]
    logged = ["log"] if figures.logged else []
    return ", ".join((*logged, *counted)) or ("nothing" if figures.attack.ended or figures.attack.refused else DASH)


def _short(name: str) -> str:
    """The label that tells a counter from the others of its kind."""
    found = re.search(r'(?:error|limit)="([^"]*)"', name)
    return found[1] if found else name


def text(cells: Cells, versions: Mapping[str, str]) -> str:
    return "\n".join(_lines(cells, versions)) + "\n"


def _lines(cells: Cells, versions: Mapping[str, str]) -> Iterator[str]:
    yield INTRODUCTION.format(
        versions=", ".join(f"{TITLES[name]} {version}" for name, version in versions.items()),
        rate=RATE,
        kept=KEPT,
        patience=PATIENCE,
        times=TIMES,
        enough=ENOUGH_MS,
        growth=MOST_GROWTH_MIB,
        left=100 * (MOST_LEFT - 1),
        after=AFTER_SECONDS,
    )
    for door, title in DOORS.items():
        yield f"## {title}\n"
        titles = " | ".join(TITLES.values())
        yield f"| attack | p99: {titles} | memory: {titles} | shown by | verdict |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
        for row in ROWS:
            if row.door == door:
                yield _row(row, cells.get(row.name, {}))
        yield ""
    late = max((it.latency.late_p99_ms for of in cells.values() for it in of.values()), default=0.0)
    yield LATE.format(late=milliseconds(late))
    yield SMUGGLING.format(
        reached=", ".join(
            f"{TITLES[name]} {it.reached} of {it.attack.visits}" for name, it in cells.get("smuggling", {}).items()
        )
    )


def _row(row: Row, cells: Mapping[str, Figures]) -> str:
    every = [cells.get(name) for name in TITLES]
    verdict = "; ".join(misses(row, cells)) or "holds"
    return " | ".join(
        (
            f"| {row.title}",
            *map(latency_cell, every),
            *map(memory_cell, every),
            shown_cell(cells.get(BALANCER)),
            f"{verdict} |",
        )
    )


INTRODUCTION = """# Abuse

Clients that mean harm take time, memory or places from others. These tables have the attacks that the balancer is held
to, and what honest clients of the balancer, nginx and HAProxy wait under each. They are written by `make abuse`, from
what it measures. The attacks stand in [bench/abuse](../../bench/abuse/attacks.py), and
[the bench](../../bench/README.md#abuse) says how to run them.

Measured: {versions}.

Each candidate has one core, with the same two members, the same certificate, limits of connections and of requests a
member; access logs are on. Time-outs are the defaults, but nginx and HAProxy have 10 s for a head, as the balancer has.
The attackers, from an address of their own, share the other core with the members and the honest clients. These send
{rate:.0f} requests a second, most on {kept} open connections, one in six on a new one, over the protocol that is
attacked; beside the admin port, over HTTP/1.1 to the data port. Where the candidates have a limit of connections, the
honest clients have theirs before, and open no others.

* *p99*: of the honest requests, each from when it was due until its response was complete. One that is not answered
  200 within {patience:.0f} s is infinitely late; *fails*: that are more than one in a hundred.
* *memory*: by how much the processes had grown at their peak, in MiB.
* *shown by*: what an operator sees where the balancer ended or refused something: lines of the log that name the
  attacker's address (*log*), and labels of `balancer_client_limits_total` and `balancer_errors_total` with their rise.
* *verdict*: *holds* where p99 is at most {times:.0f} times that of the better of nginx and HAProxy (one that fails
  is no yardstick), or {enough:.0f} ms if that is more; memory grows by at most {growth:.0f} MiB and is back within
  {left:.0f} % {after:.0f} s later; no member changes its state; what is ended or refused is shown; no line of
  the log is lost, and none a traceback; what is half sent, refused or too slow is ended in the end.
* A dash: nginx and HAProxy have no such port, or nothing was ended or refused.
"""

LATE = """The honest clients themselves were late by at most {late} at the 99th percentile, in the worst row: so much of
a p99 may be theirs.
"""

SMUGGLING = """Of the attempts at smuggling, members were given: {reached}.
[attacks_http2.py](../../bench/abuse/attacks_http2.py) has the cases; of the balancer's, none may arrive. What a peer
passes on once it has dropped or repaired what is wrong counts as well."""
