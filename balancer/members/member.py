"""A member and its place among those that may be chosen. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

from balancer.discovery.snapshot import Endpoint
from balancer.members.ejection import Ejection
from balancer.members.health import State
from balancer.members.tally import Tally
from balancer.types import Address

# Place of a member among those that may be chosen: first those that are up, then suspects, then the ejected, for an
# attempt is better than a refusal; of these, by SRV priority.
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
        probe_failures: Probes in a row that have failed.
        probe_successes: Probes in a row that have succeeded since it came into its state.
        been_up: Whether it has been up.
        probes: Probes begun so far.
        probing: Probes under way.
        last_probe_answered: Number of the last probe that brought an answer.
        answered: Whether it has answered a request since it was last due for a probe.
        keeps_alive: Whether it has let a connection stay open after a response.
        closes: Responses in a row that announced the end of their connection.
        down_by_requests: Whether it is down because requests failed to connect, and no probe has ended since.
        ejection: Why it is out for failing while it answers, or on trial after that; None for neither.
        ejection_changed: When that last changed.
        tally: What its attempts have come to lately; None until one is counted.
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
    probe_successes: int = 0
    been_up: bool = False
    failed_at: float = -inf
    probing: int = 0
    probes: int = 0
    last_probe_answered: int = 0
    answered: bool = False
    keeps_alive: bool = False
    closes: int = 0
    down_by_requests: bool = False
    ejection: Ejection | None = None
    ejection_changed: float = 0.0
    tally: Tally | None = None
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

    @property
    def is_returning(self) -> bool:
        """Whether it has been up, and is down or draining."""
        return self.been_up and self.state in (State.DOWN, State.DRAINING)


BY_ADDRESS = attrgetter("endpoint.address")
_RANKS = {State.UP: 0, State.SUSPECT: 1}
_EJECTED = 2


def tier_of(member: Member) -> Tier | None:
    """Return the member's place among those that may be chosen, or None."""
    rank = None if member.drained else _RANKS.get(member.state)
    if rank is None:
        return None
    if member.ejection and not member.ejection.on_trial:
        rank += _EJECTED
    return rank, member.endpoint.priority
