"""A pool whose members answer as a test says, on a clock that the test moves: no sockets, no event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from balancer.discovery.snapshot import Answer, Endpoint, Snapshot
from balancer.discovery.snapshot import Outcome as DnsOutcome
from balancer.http.request import Request
from balancer.members.ejector import STEP_SECONDS, Ejector
from balancer.members.health import HealthEvent
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.outcome import Outcome
from balancer.policies.round_robin import RoundRobin
from balancer.types import Address

REQUEST = Request("GET", b"/", [], "127.0.0.1")
GOOD = Outcome(200, "", 0.005, 0.005)
ERROR = Outcome(500, "", 0.005, 0.005)


class JudgedPool:
    """Members that are up, and their ejector. ``changes``: what it has done, as (time, member, stage) in order."""

    def __init__(self, members: int, max_share: float = 0.5, seed: int = 1, compares_latency: bool = True) -> None:
        self.now = 0.0
        self.membership = Membership()
        endpoints = frozenset(Endpoint(Address(f"10.0.{n // 250}.{n % 250 + 1}", 80)) for n in range(members))
        self.name(endpoints)
        self.ejector = Ejector(
            self.membership, Random(seed), lambda: self.now, self._changed, max_share, compares_latency
        )
        self.changes: list[tuple[float, Member, str]] = []
        self._policy = RoundRobin(Random(seed))
        self._built_for = -1
        self._step_at = STEP_SECONDS

    @property
    def members(self) -> list[Member]:
        """The members in order of address."""
        return list(self.membership.members.values())

    def name(self, endpoints: frozenset[Endpoint]) -> None:
        """Let DNS name these endpoints; what joins comes up."""
        change = self.membership.reconcile(Snapshot((Answer("A", DnsOutcome.FOUND, endpoints),), self.now))
        for member in change.joined:
            self.membership.observe(member, HealthEvent.PROBE_OK, self.now)

    def _changed(self, member: Member) -> None:
        stage = "restored" if member.ejection is None else "trial" if member.ejection.on_trial else "ejected"
        self.changes.append((self.now, member, stage))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self._step_at <= until:
            self.now = self._step_at
            self._step_at += STEP_SECONDS
            self.ejector.step()
        self.now = until

    def wait_for_step(self) -> None:
        """Let time pass until the ejector takes its next step, and that be done."""
        self.wait(self._step_at - self.now)

    def request(self) -> Member:
        """Give a request to a member, by turns, and return the member; ``finish`` ends the attempt."""
        if self._built_for != self.membership.generation:
            self._built_for = self.membership.generation
            self._policy.build(self.membership.available)
        member = self._policy.choose(REQUEST)
        assert member
        member.in_flight += 1
        member.requests += 1
        return member

    def finish(self, member: Member, outcome: Outcome) -> None:
        member.in_flight -= 1
        if 0 < outcome.status < 500:
            self.ejector.answered(member, outcome.first_byte)
        if outcome.failure or outcome.status >= 500:
            self.ejector.failed(member, outcome)

    def serve(self, seconds: float, per_second: float, answer: Callable[[Member], Outcome]) -> Counter[Member]:
        """Send requests at a steady rate, each answered at once; return how many each member got."""
        served: Counter[Member] = Counter()
        for _ in range(round(seconds * per_second)):
            self.wait(1 / per_second)
            member = self.request()
            served[member] += 1
            self.finish(member, answer(member))
        return served

    def stages(self, member: Member) -> list[str]:
        """What has happened to a member."""
        return [stage for _, changed, stage in self.changes if changed is member]


def only(bad: Member, outcome: Outcome) -> Callable[[Member], Outcome]:
    """Answers of a pool in which one member is bad."""
    return lambda member: outcome if member is bad else GOOD
