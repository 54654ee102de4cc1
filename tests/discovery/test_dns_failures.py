"""DNS fails in every way it can, while requests go on: none of them notices.

Seconds here are a tenth of real ones, so that an outage of 20 s takes two, with queries ten times as often and a
tenth of the time to answer them. The real thing, by hand:
DNS_OUTAGE_SECONDS=20 pytest tests/discovery/test_dns_failures.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import dns.message
import dns.rcode
import pytest

from balancer.config.settings import Settings
from balancer.demo.dns_server import Answerer, DnsServer, Zone
from balancer.demo.system import free_port
from balancer.discovery import dns_client, pace
from balancer.discovery.resolver import DnsResolver, ResolverConfig
from tests.support.messages import GET as REQUEST
from tests.support.wire import Member, Running, balance, eventually, steady_requests

OUTAGE = float(os.environ.get("DNS_OUTAGE_SECONDS", "2"))
SECOND = OUTAGE / 20


@dataclass
class Site:
    """Three members with an address each, of which DNS names ``named``; the balancer in front of them."""

    members: list[Member]
    dns: DnsServer
    zone: Zone
    running: Running

    def name(self, *members: Member) -> None:
        self.zone.records["apps"] = [("A", it.address.host) for it in members]

    def state(self) -> set[str]:
        return {it.address.host for it in self.running.balancer.membership.available}


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Two of the members are named and available."""
    port = free_port("127.0.2.1")
    one, two, three = (Member(host=f"127.0.2.{number}", port=port) for number in (1, 2, 3))
    zone = Zone()
    zone.records["apps"] = [("A", "127.0.2.1"), ("A", "127.0.2.2")]
    async with one, two, three, DnsServer(zone) as server:
        resolve = DnsResolver(Settings(resolver=server.address, upstream_port=port))
        async with balance(resolve=resolve, resolve_interval=SECOND, health_interval=SECOND) as running:
            await running.available(2)
            yield Site([one, two, three], server, zone, running)


def answered(rcode: dns.rcode.Rcode) -> Answerer:
    async def answer(query: dns.message.Message, response: dns.message.Message) -> None:
        response.set_rcode(rcode)

    return answer


def delayed(zone: Zone, seconds: float) -> Answerer:
    async def answer(query: dns.message.Message, response: dns.message.Message) -> None:
        await asyncio.sleep(seconds)
        await zone(query, response)

    return answer


async def killed(site: Site) -> None:
    await site.dns.stop()


async def silent(site: Site) -> None:
    site.dns.answerer = delayed(site.zone, 1000)


async def servfail(site: Site) -> None:
    site.dns.answerer = answered(dns.rcode.SERVFAIL)


async def refused(site: Site) -> None:
    site.dns.answerer = answered(dns.rcode.REFUSED)


async def slower_than_the_limit(site: Site) -> None:
    site.dns.answerer = delayed(site.zone, 5 * SECOND * 1.1)


async def slow(site: Site) -> None:
    site.dns.answerer = delayed(site.zone, 5 * SECOND * 0.9)


async def truncated_and_tcp_refused(site: Site) -> None:
    site.dns.truncates = True
    site.dns.refuse_tcp()


async def truncated(site: Site) -> None:
    site.dns.truncates = True


Failure = Callable[[Site], Awaitable[None]]
# Those that hide the truth, and those that delay it or take it another way.
BLIND: list[Failure] = [killed, silent, servfail, refused, slower_than_the_limit, truncated_and_tcp_refused]
SIGHTED: list[Failure] = [slow, truncated]


async def restore(site: Site) -> None:
    site.dns.answerer, site.dns.truncates = site.zone, False
    await site.dns.stop()
    await asyncio.sleep(0)  # The event loop closes the sockets; only then is the port free again.
    await site.dns.start()


@pytest.fixture(autouse=True)
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_client, "QUERY_TIMEOUT", dns_client.QUERY_TIMEOUT * SECOND)


@pytest.mark.parametrize("fail", [*BLIND, *SIGHTED], ids=lambda it: it.__name__)
async def test_requests_go_on_while_dns_fails_and_members_are_found_afterwards(fail: Failure) -> None:
    async with site() as it:
        one, two, three = it.members
        async with steady_requests(it.running) as answers:
            await fail(it)
            await asyncio.sleep(OUTAGE)
            assert it.state() == {"127.0.2.1", "127.0.2.2"}
            during = answers.total()
            await restore(it)
            it.name(one, two, three)
            await eventually(lambda: len(it.state()) == 3)
            await eventually(lambda: len(three.received) > 0)
        assert set(answers) == {b"HTTP/1.1 200 OK"}
        assert during > OUTAGE * 20


@pytest.mark.parametrize("fail", BLIND, ids=lambda it: it.__name__)
async def test_member_that_dies_while_dns_fails_is_left_out_until_dns_names_it_again(fail: Failure) -> None:
    """Whatever answers at its address meanwhile may be another service."""
    async with site() as it:
        one, _, _ = it.members
        async with steady_requests(it.running) as answers:
            await fail(it)
            await asyncio.sleep(2 * SECOND)
            await one.stop()
            await eventually(lambda: it.state() == {"127.0.2.2"})
            await asyncio.sleep(3 * SECOND)
            await one.start_again()
            before = len(one.received)
            member = it.running.balancer.membership.members[one.address]
            await eventually(lambda: member.reason.endswith("DNS has not named it since it failed"))
            await asyncio.sleep(3 * SECOND)
            assert it.state() == {"127.0.2.2"}
            assert len(one.received) == before
            await restore(it)
            await eventually(lambda: len(it.state()) == 2)
        assert set(answers) == {b"HTTP/1.1 200 OK"}


@pytest.mark.parametrize("fail", [servfail, silent], ids=lambda it: it.__name__)
async def test_service_that_takes_over_the_address_of_the_last_member_while_dns_fails_gets_no_request(
    fail: Failure,
) -> None:
    async with site() as it:
        one, two, _ = it.members
        it.name(one)
        await eventually(lambda: it.state() == {"127.0.2.1"})
        await fail(it)
        await one.stop()
        await eventually(lambda: not it.state())
        async with Member(host=one.address.host, port=one.address.port) as other:
            request = asyncio.create_task(
                it.running.exchange(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            )
            await asyncio.sleep(10 * SECOND)
            assert not it.state()
            it.name(two)
            await restore(it)
            assert (await request).endswith(b"ok")
            assert not other.received
            assert two.received


@pytest.mark.parametrize(
    ("rcode", "asks_on"),
    [
        (dns.rcode.SERVFAIL, True),
        (dns.rcode.REFUSED, True),
        (dns.rcode.NOTIMP, True),
        (dns.rcode.NXDOMAIN, False),
        (None, True),
    ],
    ids=lambda it: dns.rcode.to_text(it) if isinstance(it, dns.rcode.Rcode) else str(it),
)
async def test_next_name_server_is_asked_where_the_first_knows_nothing(
    rcode: dns.rcode.Rcode | None, asks_on: bool
) -> None:
    zone = Zone()
    zone.records["apps"] = [("A", "127.0.2.1")]
    first = answered(rcode) if rcode is not None else delayed(zone, 1000)
    async with DnsServer(first) as one, DnsServer(zone) as two:
        snapshot = await DnsResolver(Settings(), system=ResolverConfig([one.address, two.address]))()
        assert [len(it.endpoints) for it in snapshot.answers] == [int(asks_on)]
        assert two.udp_queries == int(asks_on)
        both = await DnsResolver(Settings(), system=ResolverConfig([one.address, one.address]))()
        assert both.answers[0].rcode == ("timeout" if rcode is None else dns.rcode.to_text(rcode))


@pytest.mark.long
async def test_alias_without_members_is_asked_for_less_often_until_a_request_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("QUICK_SECONDS", "IDLE_SECONDS", "IDLE_INTERVAL"):
        monkeypatch.setattr(pace, name, getattr(pace, name) * SECOND)
    async with DnsServer(Zone()) as server:
        resolve = DnsResolver(Settings(resolver=server.address))
        async with balance(resolve=resolve, resolve_interval=SECOND, queue_timeout=20 * SECOND) as running:
            await asyncio.sleep(pace.IDLE_SECONDS + SECOND)
            before = server.udp_queries
            await asyncio.sleep(20 * SECOND)
            assert server.udp_queries - before <= 20 * SECOND / pace.IDLE_INTERVAL + 2
            before = server.udp_queries
            await running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert server.udp_queries - before >= 10


@pytest.mark.parametrize("fail", SIGHTED, ids=lambda it: it.__name__)
async def test_new_member_is_found_while_dns_is_slow_or_answers_over_tcp_only(fail: Failure) -> None:
    async with site() as it:
        async with steady_requests(it.running) as answers:
            await fail(it)
            it.name(*it.members)
            async with asyncio.timeout(10 * SECOND + 1):
                await eventually(lambda: len(it.state()) == 3)
        assert set(answers) == {b"HTTP/1.1 200 OK"}


@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN], ids=dns.rcode.to_text)
@pytest.mark.parametrize("times", [1, 2])
async def test_empty_answer_once_or_twice_is_not_believed(rcode: dns.rcode.Rcode, times: int) -> None:
    left = times

    async def say_nobody(query: dns.message.Message, response: dns.message.Message) -> None:
        nonlocal left
        if left:
            left -= 1
            response.set_rcode(rcode)
        else:
            await it.zone(query, response)

    async with site() as it:
        async with steady_requests(it.running) as answers:
            it.dns.answerer = say_nobody
            await eventually(lambda: not left)
            asked = it.dns.udp_queries
            await eventually(lambda: it.dns.udp_queries > asked + 2)
            assert it.state() == {"127.0.2.1", "127.0.2.2"}
        assert set(answers) == {b"HTTP/1.1 200 OK"}
        states = {member.reason for member in it.running.balancer.membership.members.values()}
        assert "address left DNS" not in states


@pytest.mark.parametrize("fail", [killed, servfail, truncated_and_tcp_refused], ids=lambda it: it.__name__)
async def test_balancer_that_starts_while_dns_fails_serves_as_soon_as_it_is_back(fail: Failure) -> None:
    async with Member(host="127.0.2.1") as member, DnsServer(zone := Zone()) as server:
        zone.records["apps"] = [("A", "127.0.2.1")]
        resolve = DnsResolver(Settings(resolver=server.address, upstream_port=member.address.port))
        async with balance(resolve=resolve, resolve_interval=SECOND, queue_timeout=30) as running:
            it = Site([member], server, zone, running)
            await fail(it)
            async with steady_requests(running) as answers:
                await asyncio.sleep(5 * SECOND)
                await restore(it)
                await eventually(lambda: answers.total() > 10)
            assert set(answers) == {b"HTTP/1.1 200 OK"}
