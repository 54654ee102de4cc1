"""What DNS has said: endpoints, answers by record type, and one round of answers as a snapshot. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from balancer.types import Address


class Outcome(Enum):
    """What a DNS query came to."""

    FOUND = "found"
    EMPTY = "empty"
    UNKNOWN = "unknown"


class Endpoint(NamedTuple):
    """A place that DNS names. Priority (lower is preferred) and weight come from SRV (RFC 2782)."""

    address: Address
    priority: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one query: ``rcode`` is DNS's word for it, or "timeout" or another reason."""

    record: str
    outcome: Outcome
    endpoints: frozenset[Endpoint] = frozenset()
    rcode: str = "NOERROR"
    over_tcp: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The answers to one round of queries, one for each record type. ``when``: clock reading in seconds.

    ``name``: what had the addresses, where the alias may stand for several names (``balancer.discovery.search_list``).
    ``asked``: the clock when the round began; ``when`` if it is not given.
    """

    answers: tuple[Answer, ...]
    when: float
    name: str = ""
    asked: float | None = None

    def describe(self) -> str:
        """For a log line: ``A: NOERROR, 3 endpoints``."""
        said = "; ".join(
            f"{it.record}: {it.rcode}, {len(it.endpoints)} endpoints{', over TCP' if it.over_tcp else ''}"
            for it in self.answers
        )
        return f"{said} ({self.name})" if self.name else said
