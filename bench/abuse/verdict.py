"""Figures of one candidate under one attack, and whether the balancer's are good enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bench.abuse.attack import Tally
from bench.abuse.honest import Latency
from bench.abuse.rows import Row

# What the balancer is held to: so many times the better peer's p99 or so much, whichever is more; growth of memory at
# its peak; and all of it ten seconds later, in proportion to all of it before.
TIMES = 3.0
MOST_GROWTH_MIB = 64.0
MOST_LEFT = 1.2


@dataclass(frozen=True)
class Figures:
    """``after_kib`` and what follows it are of the balancer alone.

    ``changes``: changes of state of members. ``counted``: counters of refusals that rose, by how much. ``logged``:
    lines of its log that name the attacker. ``lost``: lines that it dropped. ``operator``: whether an operator got in,
    if that was tried. ``tracebacks``: in its log. ``reached``: requests of the attacker that a member was given, where
    none is to be.
    """

    latency: Latency
    attack: Tally
    before_kib: int
    peak_kib: int
    after_kib: int = 0
    changes: int = 0
    counted: dict[str, float] = field(default_factory=dict)
    logged: int = 0
    lost: int = 0
    tracebacks: int = 0
    operator: bool = True
    reached: int = 0
    alive: bool = True

    @property
    def growth_mib(self) -> float:
        return (self.peak_kib - self.before_kib) / 1024


def allowed_ms(row: Row, peers: Iterable[Figures]) -> float:
    """The p99 that the balancer may have. A peer that fails its own clients is no yardstick."""
    finite = [it.latency.p99_ms for it in peers if not math.isinf(it.latency.p99_ms)]
    return max(TIMES * min(finite), row.enough_ms) if finite else row.enough_ms


def complaints(row: Row, ours: Figures, peers: Iterable[Figures]) -> Iterator[str]:
    """What the balancer misses, in words."""
    allowed = allowed_ms(row, peers)
    if not ours.alive:
        yield "it ended"
    if not ours.latency.requests or ours.latency.p99_ms > allowed:
        yield f"p99 above {allowed:.0f} ms"
    if ours.growth_mib > MOST_GROWTH_MIB:
        yield f"memory grew by {ours.growth_mib:.0f} MiB"
    if ours.after_kib > MOST_LEFT * ours.before_kib:
        yield f"{(ours.after_kib - ours.before_kib) / 1024:.0f} MiB are kept"
    if ours.changes:
        yield f"members changed their state ({ours.changes})"
    if (ours.attack.ended or ours.attack.refused) and not (ours.counted or ours.logged):
        yield "unlogged"
    if row.ends and not ours.attack.ended:
        yield "never ended"
    if ours.lost:
        yield f"lines of the log were dropped ({ours.lost})"
    if ours.tracebacks:
        yield f"tracebacks in the log ({ours.tracebacks})"
    if not ours.operator:
        yield "an operator is locked out"
    if row.smuggles and ours.reached:
        yield f"a member was given {ours.reached}"
