"""Discovery against a real DNS server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import dns.name
import dns.rcode
import pytest

from balancer.demo.dnsserver import Answerer, DnsServer, Zone
from balancer.discovery import DnsResolver
from balancer.dnsquery import ask
from balancer.membership import Endpoint, Membership, Outcome, Snapshot
from balancer.settings import Address, Settings
from tests.support.wire import Member, balance, eventually


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def resolver(answerer: Answerer, record: str = "a", alias: str = "apps") -> AsyncIterator[DnsResolver]:
    async with DnsServer(answerer) as server:
        yield DnsResolver(Settings(alias=alias, record=record, resolver=server.address, upstream_port=8000))


def zone(**records: list[tuple[str, str]]) -> Zone:
    zone = Zone()
    zone.records.update(records)
    return zone


def addresses(snapshot: Snapshot) -> set[str]:
    return {str(it.address) for answer in snapshot.answers for it in answer.endpoints}


@pytest.mark.parametrize(("count", "over_tcp"), [(1, False), (31, False), (60, False), (76, False), (255, True)])
async def test_every_address_is_found_however_many(count: int, over_tcp: bool) -> None:
    hosts = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(count)]
    async with resolver(zone(apps=[("A", host) for host in hosts])) as resolve:
        snapshot = await resolve()
    assert addresses(snapshot) == {f"{host}:8000" for host in hosts}
    assert snapshot.answers[0].over_tcp is over_tcp


async def test_ipv6_members() -> None:
    async with resolver(zone(apps=[("AAAA", "fd00::1"), ("A", "10.0.0.1")]), record="aaaa") as resolve:
        assert addresses(await resolve()) == {"[fd00::1]:8000"}


async def test_both_families_at_once() -> None:
    async with resolver(zone(apps=[("AAAA", "fd00::1"), ("A", "10.0.0.1")]), record="a+aaaa") as resolve:
        assert addresses(await resolve()) == {"[fd00::1]:8000", "10.0.0.1:8000"}


async def test_an_nxdomain_for_aaaa_does_not_void_a() -> None:
    """Podman's DNS answers so for an IPv4-only name; Docker's sends an empty answer."""

    async def podman(query: dns.message.Message, response: dns.message.Message) -> None:
        if dns.rdatatype.to_text(query.question[0].rdtype) == "AAAA":
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            await zone(apps=[("A", "10.0.0.1")])(query, response)

    membership = Membership()
    async with resolver(podman, record="a+aaaa") as resolve:
        for _ in range(5):
            membership.reconcile(await resolve())
    assert list(membership.members) == [Address("10.0.0.1", 8000)]


async def test_srv_brings_ports_priorities_and_weights() -> None:
    records = zone(
        **{
            "_http._tcp.apps": [("SRV", "0 5 8001 one.apps."), ("SRV", "1 0 8002 two.apps.")],
            "one.apps": [("A", "10.0.0.1")],
            "two.apps": [("AAAA", "fd00::2")],
        }
    )
    async with resolver(records, record="srv", alias="_http._tcp.apps") as resolve:
        snapshot = await resolve()
    assert snapshot.answers[0].endpoints == {
        Endpoint(Address("10.0.0.1", 8001), 0, 5),
        Endpoint(Address("fd00::2", 8002), 1, 0),
    }


async def test_an_unknown_name_is_nobody() -> None:
    async with resolver(zone()) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.NOBODY, "NXDOMAIN")


async def test_an_empty_answer_is_nobody() -> None:
    async with resolver(zone(apps=[])) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.NOBODY, "NOERROR")


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_a_failing_server_is_no_news(rcode: dns.rcode.Rcode) -> None:
    async def fail(query: dns.message.Message, response: dns.message.Message) -> None:
        response.set_rcode(rcode)

    async with resolver(fail) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.UNKNOWN, dns.rcode.to_text(rcode))


async def test_a_server_that_does_not_answer_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.dnsquery.QUERY_TIMEOUT", 0.1)

    async def hang(query: dns.message.Message, response: dns.message.Message) -> None:
        await asyncio.Event().wait()

    async with resolver(hang) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.UNKNOWN, "timeout")


async def test_a_query_that_is_given_up_at_any_moment_leaves_no_socket_behind() -> None:
    async def hang(query: dns.message.Message, response: dns.message.Message) -> None:
        await asyncio.Event().wait()

    async with DnsServer(hang) as server:
        before = descriptors()
        for steps in range(8):
            query = asyncio.create_task(ask(server.address, dns.name.from_text("apps"), "A"))
            for _ in range(steps):
                await asyncio.sleep(0)
            query.cancel()
            await asyncio.gather(query, return_exceptions=True)
        await eventually(lambda: descriptors() == before)


async def test_a_slow_answer_does_not_hide_the_next() -> None:
    """While the first query hangs, a later one finds the member; the late answer then changes nothing."""
    release, asked = asyncio.Event(), 0

    async def slow_first(query: dns.message.Message, response: dns.message.Message) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await release.wait()
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            await records(query, response)

    async with Member() as member, DnsServer(slow_first) as server:
        records = zone(apps=[("A", "127.0.0.1")])
        resolve = DnsResolver(Settings(resolver=server.address, upstream_port=member.address.port))
        async with balance(resolve=resolve) as running:
            await running.available(1)
            release.set()
            await eventually(lambda: asked > 2)
            assert len(running.balancer.membership.available) == 1


async def test_membership_follows_dns_from_a_member_to_none_and_back() -> None:
    async with Member() as member, DnsServer(records := zone(apps=[("A", "127.0.0.1")])) as server:
        resolve = DnsResolver(Settings(resolver=server.address, upstream_port=member.address.port))
        async with balance(resolve=resolve, resolve_interval=0.1) as running:
            await running.available(1)
            del records.records["apps"]
            await running.available(0)
            records.records["apps"] = [("A", "127.0.0.1")]
            await running.available(1)
