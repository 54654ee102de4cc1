"""A member and its place among those that may be chosen. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

from balancer.discovery.snapshot import Endpoint
from balancer.members.health import State
from balancer.types import Address

# Place of a member among those that may be chosen: first those that are up, then suspects; of these, by SRV priority.
Tier = tuple[int, int]


@dataclass(slots=True, eq=False)
class Member:
    """A container behind the alias. Times (``…since``, ``…_at``) are clock readings in seconds.

    Attributes:
        endpoint: Its place in DNS: address, and the priority and weight of SRV (RFC 2782).
        since: When it came into its state.
        in_flight: Requests that it has and has not finished.
        limit: Requests that it is given at a time.
        requests: Requests that it has been given so far.
        state: Whether it gets requests (docs/concepts/members.md).
        reason: Cause of its state; unless it is up, the result of the last probe.
        weight: Its share of requests, in proportion to the weights of the others.
        drained: Whether it gets no more requests, by hand.
        drained_since: When that was last changed.
        failed_at: When contact with it last failed.
        probes: Probes begun so far.
        probing: Probes under way.
        last_probe_answered: Number of the last probe that brought an answer.
        answered: Whether it has answered a request since it was last due for a probe.
        keeps_alive: Whether it has let a connection stay open after a response.
        closes: Responses in a row that announced the end of their connection.
        ejected: Whether it is down because requests failed to connect, and no probe has ended since.
        tier: Its place among those that may be chosen, or None.
    """

    endpoint: Endpoint
    since: float
    # Attributes of every request come first, next to those of Python itself: there may be thousands of members.
    in_flight: int = 0
    limit: float = inf
    requests: int = 0
    state: State = State.JOINING
    reason: str = "found in DNS"
    probe_at: float = 0.0
    probed_at: float = 0.0
    probe_failures: int = 0
    failed_at: float = -inf
    probing: int = 0
    probes: int = 0
    last_probe_answered: int = 0
    answered: bool = False
    keeps_alive: bool = False
    closes: int = 0
    ejected: bool = False
    drained: bool = False
    drained_since: float = 0.0
    warm_since: float = 0.0
    tier: Tier | None = None
    weight: float = field(init=False)

    def __post_init__(self) -> None:
        self.weight = float(self.endpoint.weight)

    @property
    def address(self) -> Address:
        """Address that it listens on: ``host`` and ``port``."""
        return self.endpoint.address


BY_ADDRESS = attrgetter("endpoint.address")
_RANKS = {State.UP: 0, State.SUSPECT: 1}


def tier_of(member: Member) -> Tier | None:
    """Return the member's place among those that may be chosen, or None."""
    rank = None if member.drained else _RANKS.get(member.state)
    return None if rank is None else (rank, member.endpoint.priority)
