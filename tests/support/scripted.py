"""Stand-ins for the outside world: a resolver that follows a script, a probe that says what it is told."""

from __future__ import annotations

import time
from collections.abc import Iterable

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.members.health import HealthEvent
from balancer.members.probe import Verdict
from balancer.types import Address


class ScriptedResolver:
    """Answers with whatever it was last told."""

    def __init__(self, *addresses: Address) -> None:
        self.calls = 0
        self.found(*addresses)

    def found(self, *addresses: Address) -> None:
        self._answer = Answer("A", Outcome.FOUND, frozenset(map(Endpoint, addresses)))

    def names_none(self) -> None:
        self._answer = Answer("A", Outcome.EMPTY, rcode="NXDOMAIN")

    def broken(self) -> None:
        self._answer = Answer("A", Outcome.UNKNOWN, rcode="SERVFAIL")

    async def __call__(self) -> Snapshot:
        self.calls += 1
        return Snapshot((self._answer,), time.monotonic())


class ScriptedProbe:
    """Every member is up, except that those in ``down`` refuse and those in ``silent`` do not answer."""

    def __init__(self, down: Iterable[Address] = ()) -> None:
        self.down = set(down)
        self.silent: set[Address] = set()

    async def __call__(self, address: Address) -> Verdict:
        if address in self.down:
            return HealthEvent.REFUSED, "connection refused"
        if address in self.silent:
            return HealthEvent.UNREACHABLE, "no answer in time"
        return HealthEvent.PROBE_OK, "accepts connections"
