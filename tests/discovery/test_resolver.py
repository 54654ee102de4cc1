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

from balancer.config.settings import Settings
from balancer.demo.dns_server import Answerer, DnsServer, Zone
from balancer.discovery.dns_client import ask
from balancer.discovery.resolver import DnsResolver
from balancer.discovery.snapshot import Endpoint, Outcome, Snapshot
from balancer.discovery.srv_targets import REFRESHED
from balancer.members.membership import Membership
from balancer.types import Address
from tests.support.scripted import ScriptedResolver
from tests.support.wire import OK, Member, balance, eventually


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def resolver(answerer: Answerer, record: str = "a", alias: str = "apps") -> AsyncIterator[DnsResolver]:
    async with DnsServer(answerer) as server:
        yield DnsResolver(Settings(alias=alias, dns_record=record, resolver=server.address, upstream_port=8000))


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


async def test_nxdomain_for_aaaa_does_not_void_a() -> None:
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


async def test_unknown_name_is_empty() -> None:
    async with resolver(zone()) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.EMPTY, "NXDOMAIN")


async def test_empty_answer_is_empty() -> None:
    async with resolver(zone(apps=[])) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.EMPTY, "NOERROR")


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_failing_server_is_no_news(rcode: dns.rcode.Rcode) -> None:
    async def fail(query: dns.message.Message, response: dns.message.Message) -> None:
        response.set_rcode(rcode)

    async with resolver(fail) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.UNKNOWN, dns.rcode.to_text(rcode))


async def test_server_that_does_not_answer_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.discovery.dns_client.QUERY_TIMEOUT", 0.1)

    async def hang(query: dns.message.Message, response: dns.message.Message) -> None:
        await asyncio.Event().wait()

    async with resolver(hang) as resolve:
        (answer,) = (await resolve()).answers
    assert (answer.outcome, answer.rcode) == (Outcome.UNKNOWN, "timeout")


async def test_query_that_is_given_up_at_any_moment_leaves_no_socket_behind() -> None:
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


async def test_slow_answer_does_not_hide_the_next() -> None:
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


# What fits into a message over TCP, of 65,535 bytes: docs/performance/large-membership.md has the sum.
LARGEST_A = 4093
LARGEST_AAAA = 2339


def many(count: int) -> list[str]:
    return [f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}" for number in range(count)]


async def test_largest_answer_is_read_and_one_more_address_takes_no_member_away() -> None:
    records = zone(apps=[("A", host) for host in many(LARGEST_A)])
    membership = Membership()
    async with resolver(records) as resolve:
        membership.reconcile(await resolve())
        assert len(membership.members) == LARGEST_A
        records.records["apps"].append(("A", "192.0.2.1"))
        snapshot = await resolve()
        assert snapshot.answers[0].outcome is Outcome.UNKNOWN
        assert "cut short even over TCP" in snapshot.describe()
        assert not membership.reconcile(snapshot)
    assert len(membership.members) == LARGEST_A


async def test_largest_answer_with_ipv6_addresses() -> None:
    hosts = [("AAAA", f"fd00::{number:x}") for number in range(1, LARGEST_AAAA + 1)]
    async with resolver(records := zone(apps=hosts), record="aaaa") as resolve:
        assert len(addresses(await resolve())) == LARGEST_AAAA
        records.records["apps"].append(("AAAA", "fd01::"))
        assert (await resolve()).answers[0].outcome is Outcome.UNKNOWN


async def test_five_thousand_members_by_srv_with_two_targets() -> None:
    hosts = [("A", host) for host in many(5000)]
    records = zone(
        **{
            "_http._tcp.apps": [("SRV", "0 1 8001 one.apps."), ("SRV", "0 1 8002 two.apps.")],
            "one.apps": hosts[:2500],
            "two.apps": hosts[2500:],
        }
    )
    async with resolver(records, record="srv", alias="_http._tcp.apps") as resolve:
        membership = Membership()
        first = await resolve()
        assert len(membership.reconcile(first).joined) == 5000
        again = await resolve()
        assert again.answers[0].endpoints is first.answers[0].endpoints, "the same answer is not taken in again"
        records.records["one.apps"].pop()
        assert len(membership.reconcile(await resolve()).left) == 1


async def test_thousand_srv_targets_are_resolved_a_few_at_a_time_and_then_in_turn() -> None:
    count = 1000
    records = zone(**{f"w{number}.apps": [("A", host)] for number, host in enumerate(many(count))})
    records.records["_http._tcp.apps"] = [("SRV", f"0 1 80 w{number}.apps.") for number in range(count)]
    async with DnsServer(records) as server:
        resolve = DnsResolver(Settings(alias="_http._tcp.apps", dns_record="srv", resolver=server.address))
        assert len(addresses(await resolve())) == count
        before = server.udp_queries
        records.records["w0.apps"] = [("A", "192.0.2.1")]
        found: set[str] = set()
        rounds = 0
        while "192.0.2.1:80" not in found:
            found = addresses(await resolve())
            rounds += 1
        assert len(found) == count
        assert rounds <= count // REFRESHED + 1
        assert server.udp_queries - before <= rounds * (1 + REFRESHED)


async def test_srv_targets_that_fail_take_no_member_away() -> None:
    records = zone(
        **{
            "_http._tcp.apps": [("SRV", "0 1 80 one.apps."), ("SRV", "0 1 80 two.apps.")],
            "one.apps": [("A", "10.0.0.1")],
            "two.apps": [("A", "10.0.0.2")],
        }
    )
    failing: set[str] = set()

    async def some(query: dns.message.Message, response: dns.message.Message) -> None:
        if query.question[0].name.to_text() in failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        else:
            await records(query, response)

    async with resolver(some, record="srv", alias="_http._tcp.apps") as resolve:
        assert addresses(await resolve()) == {"10.0.0.1:80", "10.0.0.2:80"}
        failing = {"two.apps."}
        assert addresses(await resolve()) == {"10.0.0.1:80", "10.0.0.2:80"}


async def test_all_members_are_replaced_at_once_while_requests_go_on() -> None:
    """A thousand members on the addresses of loopback, then another thousand: no request fails, none waits for long."""

    async def everywhere() -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(OK)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        return await asyncio.start_server(serve, "0.0.0.0", 0, backlog=4096)

    server = await everywhere()
    port = server.sockets[0].getsockname()[1]

    def generation(number: int) -> list[Address]:
        return [Address(f"127.{number}.{it // 250}.{it % 250 + 1}", port) for it in range(1000)]

    scripted = ScriptedResolver(*generation(1))
    try:
        async with balance(resolve=scripted, wait=False, resolve_interval=0.1) as running:
            await running.available(1000)
            async with running.client() as client:
                for number in (2, 3):
                    scripted.found(*generation(number))
                    names: set[str] = set()
                    async with asyncio.timeout(10):
                        while not names or not all(it.startswith(f"127.{number}.") for it in names):
                            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                            await client.head()
                            await client.exactly(2)
                            member = running.records[-1].member
                            assert member
                            names = {member.host}
                    await running.available(1000)
            assert {it.status for it in running.records} == {200}
            assert max(it.queued for it in running.records) < 1.0
    finally:
        server.close()
