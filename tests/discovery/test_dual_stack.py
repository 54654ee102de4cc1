"""Containers with an address of each family: how many shares they have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.message
import dns.rcode
import dns.reversename
import pytest

from balancer.config.settings import Settings
from balancer.demo.dns_server import DnsServer, Zone
from balancer.discovery import dual_stack
from balancer.discovery.dual_stack import REFRESH_SECONDS
from balancer.discovery.resolver import DOCKER_DNS, DnsResolver
from balancer.discovery.snapshot import Snapshot
from balancer.members.health import HealthEvent
from balancer.members.membership import Membership


class Docker:
    """Docker's DNS with containers that have the alias. ``asked``: the types of queries, in their order."""

    def __init__(self) -> None:
        self.zone = Zone()
        self.zone.records["apps"] = []
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.slow: set[str] = set()
        self.now = 0.0

    def run(self, name: str, *hosts: str) -> None:
        for host in hosts:
            self.zone.records["apps"].append(("AAAA" if ":" in host else "A", host))
            reverse = dns.reversename.from_address(host).to_text(omit_final_dot=True)
            self.zone.records[reverse] = [("PTR", f"{name}.shop_backend.")]

    async def __call__(self, query: dns.message.Message, response: dns.message.Message) -> None:
        record = dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append(record)
        if record in self.slow:
            await asyncio.sleep(60)
        if record in self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        else:
            await self.zone(query, response)

    @asynccontextmanager
    async def resolver(self, record: str = "a+aaaa", host: str = DOCKER_DNS) -> AsyncIterator[DnsResolver]:
        async with DnsServer(self, host) as server:
            yield DnsResolver(Settings(dns_record=record, resolver=server.address), clock=lambda: self.now)


def ranks(snapshot: Snapshot) -> dict[str, int]:
    return {it.address.host: it.priority for answer in snapshot.answers for it in answer.endpoints}


async def test_container_with_both_families_has_one_share_and_its_other_address_in_reserve() -> None:
    docker, membership = Docker(), Membership()
    docker.run("one", "10.0.0.1", "fd00::1")
    docker.run("two", "10.0.0.2", "fd00::2")
    docker.run("three", "10.0.0.3")
    docker.run("four", "fd00::4")
    async with docker.resolver() as resolve:
        for _ in range(3):
            membership.reconcile(await resolve())
    for member in membership.members.values():
        membership.observe(member, HealthEvent.PROBE_OK, 1.0)

    def available() -> set[str]:
        return {it.address.host for it in membership.available}

    assert available() == {"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::4"}
    # Processes that listen on IPv6 alone: nothing else is there.
    for member in list(membership.available):
        membership.observe(member, HealthEvent.REFUSED, 2.0)
    assert available() == {"fd00::1", "fd00::2"}
    # Each name has been looked up once.
    assert docker.asked.count("PTR") == 6


async def test_names_of_addresses_are_not_looked_up_where_there_is_one_family_or_another_dns() -> None:
    docker = Docker()
    docker.run("one", "10.0.0.1")
    async with docker.resolver() as resolve:
        assert ranks(await resolve()) == {"10.0.0.1": 0}
    docker.run("one", "fd00::1")
    async with docker.resolver(host="127.0.0.1") as resolve:
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 0}
    async with docker.resolver("aaaa") as resolve:
        assert ranks(await resolve()) == {"fd00::1": 0}
    assert "PTR" not in docker.asked


async def test_name_of_more_than_two_addresses_says_nothing() -> None:
    docker = Docker()
    docker.run("one", "10.0.0.1", "fd00::1", "fd00::2")
    docker.run("two", "10.0.0.3", "10.0.0.4")
    async with docker.resolver() as resolve:
        assert set(ranks(await resolve()).values()) == {0}


async def test_failure_of_one_family_changes_no_rank() -> None:
    docker = Docker()
    docker.run("one", "10.0.0.1", "fd00::1")
    async with docker.resolver() as resolve:
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 1}
        docker.failing.add("A")
        assert ranks(await resolve()) == {"fd00::1": 1}
        docker.failing.clear()
        docker.zone.records["apps"].remove(("A", "10.0.0.1"))
        assert ranks(await resolve()) == {"fd00::1": 0}


@pytest.mark.parametrize("fault", ["failing", "slow"])
async def test_addresses_whose_names_are_not_known_are_members_of_the_same_rank(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_stack, "PATIENCE", 0.1)
    docker = Docker()
    docker.run("one", "10.0.0.1", "fd00::1")
    getattr(docker, fault).add("PTR")
    async with docker.resolver() as resolve:
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 0}
        getattr(docker, fault).clear()
        docker.now += REFRESH_SECONDS
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 1}


async def test_address_that_another_container_has_taken_over_is_looked_up_again() -> None:
    docker = Docker()
    docker.run("one", "10.0.0.1", "fd00::1")
    async with docker.resolver() as resolve:
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 1}
        docker.zone.records["apps"].clear()
        docker.run("two", "10.0.0.1")
        docker.run("three", "fd00::1")
        docker.now += REFRESH_SECONDS
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 0}
        # One that has been gone is new.
        docker.zone.records["apps"] = [("A", "10.0.0.1"), ("AAAA", "fd00::9")]
        await resolve()
        docker.zone.records["apps"].clear()
        docker.run("two", "10.0.0.1", "fd00::1")
        assert ranks(await resolve()) == {"10.0.0.1": 0, "fd00::1": 1}
