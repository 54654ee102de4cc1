"""Results of DNS queries: endpoints, answers by record type, and one round of answers as a snapshot. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from balancer.types import Address
from balancer.words import counted


class Outcome(Enum):
    """The outcome of a DNS query.

    ``FOUND``: there are addresses. ``EMPTY``: NXDOMAIN or none, which counts once a few rounds confirm it. ``UNKNOWN``:
    no answer, or SERVFAIL or REFUSED, which changes nothing.
    """

    FOUND = "found"
    EMPTY = "empty"
    UNKNOWN = "unknown"


class Endpoint(NamedTuple):
    """A place that DNS names.

    Attributes:
        address: IP address and port.
        priority: Priority of SRV (RFC 2782): lower is preferred.
        weight: Weight of SRV (RFC 2782): the share of requests, in proportion to the others.
    """

    address: Address
    priority: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one query.

    Attributes:
        record: The record type: ``A``, ``AAAA`` or ``SRV``.
        outcome: Whether it has addresses.
        endpoints: The places that the answer names, in no order.
        rcode: Response code in words (RFC 1035 section 4.1.1), or ``timeout`` or another reason.
        over_tcp: Whether the answer came over TCP.
        source: Where it came from if not from DNS, in words, else "".
    """

    record: str
    outcome: Outcome
    endpoints: frozenset[Endpoint] = frozenset()
    rcode: str = "NOERROR"
    over_tcp: bool = False
    source: str = ""

    @property
    def words(self) -> str:
        """Where it came from, or else what DNS said."""
        return self.source or self.rcode


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The answers to one round of queries.

    Attributes:
        answers: One for each record type.
        when: When the round ended, a clock reading in seconds.
        name: The name that had the addresses, where a search list makes several of the alias.
        asked: When the round began, a clock reading in seconds; None stands for ``when``.
    """

    answers: tuple[Answer, ...]
    when: float
    name: str = ""
    asked: float | None = None

    def describe(self) -> str:
        """Return words for a log line: ``A: NOERROR, 3 endpoints``."""
        text = "; ".join(
            f"{answer.record}: {answer.words}, {counted(len(answer.endpoints), 'endpoint')}"
            + (", over TCP" if answer.over_tcp else "")
            for answer in self.answers
        )
        return f"{text} ({self.name})" if self.name else text
