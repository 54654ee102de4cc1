"""Containers with an IPv4 and an IPv6 address, each of which is a member where both records are asked for.

Rules:
* Docker's DNS names the container behind an address (PTR) from the moment at which it names the address. Two addresses
  with the same name, one of each family, are one container. With more of a name, nothing is known.
* The IPv6 address of such a pair comes second, as a lower priority of SRV does (RFC 2782): it gets requests only while
  no first choice is up. So a container has one share and one limit. It is not left out altogether: a process may listen
  on IPv6 alone.
* A name is looked up when its address appears, and again every REFRESH_SECONDS, a few of them a round. Without an
  answer within PATIENCE seconds, both are members with the same rank.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from balancer.discovery.container_names import MAX_QUERIES
from balancer.discovery.snapshot import Answer, Endpoint, Outcome
from balancer.types import Clock

PATIENCE = 0.5
REFRESH_SECONDS = 30.0
REFRESHED = 8
SECOND = 1

# Returns the name of the container at an IP address, or "".
Find = Callable[[str], Awaitable[str]]


class DualStack:
    """The ranks of the addresses in answers for A and AAAA."""

    def __init__(self, find: Find, clock: Clock) -> None:
        self._find = find
        self._clock = clock
        # The last good answer of each record type.
        self._known: dict[str, frozenset[Endpoint]] = {}
        # By IP address: the name of its container, and when it was looked up.
        self._names: dict[str, str] = {}
        self._looked_up: dict[str, float] = {}

    async def rank(self, answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
        """Return the answers, with IPv6 addresses of containers that have an IPv4 address as second choices."""
        for answer in answers:
            if answer.outcome is not Outcome.UNKNOWN:
                self._known[answer.record] = answer.endpoints
        if not all(self._hosts(record) for record in ("A", "AAAA")):
            return answers
        await self._look_up()
        second = self._second_choices()
        return tuple(_with_second(answer, second) if answer.record == "AAAA" else answer for answer in answers)

    def _hosts(self, record: str) -> set[str]:
        return {endpoint.address.host for endpoint in self._known.get(record, ())}

    async def _look_up(self) -> None:
        """Look up the names of new addresses, and of some that were looked up long ago."""
        hosts = self._hosts("A") | self._hosts("AAAA")
        for gone in self._looked_up.keys() - hosts:
            self._names.pop(gone, None)
            del self._looked_up[gone]
        since = self._clock() - REFRESH_SECONDS
        # Those that were looked up longest ago come first.
        old = [host for host, when in self._looked_up.items() if when <= since][:REFRESHED]
        due = [*(host for host in hosts if host not in self._looked_up), *old]
        turn = asyncio.Semaphore(MAX_QUERIES)

        async def look_up(host: str) -> None:
            async with turn:
                name = await self._find(host)
            self._looked_up.pop(host, None)
            self._looked_up[host] = self._clock()
            self._names[host] = name

        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*map(look_up, due))
        except TimeoutError:
            pass  # The rest has its turn in the next round.

    def _second_choices(self) -> set[str]:
        """Return the IPv6 addresses whose container has one IPv4 address, and no other IPv6 address."""
        by_name: defaultdict[str, list[str]] = defaultdict(list)
        for host in self._hosts("A") | self._hosts("AAAA"):
            if name := self._names.get(host):
                by_name[name].append(host)
        pairs = [sorted(hosts, key=lambda host: ":" in host) for hosts in by_name.values() if len(hosts) == 2]
        return {later for first, later in pairs if ":" in later and ":" not in first}


def _with_second(answer: Answer, second: set[str]) -> Answer:
    if not any(endpoint.address.host in second for endpoint in answer.endpoints):
        return answer
    ranked = (
        endpoint._replace(priority=SECOND) if endpoint.address.host in second else endpoint
        for endpoint in answer.endpoints
    )
    return replace(answer, endpoints=frozenset(ranked))
