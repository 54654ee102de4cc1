"""A headless Service of Kubernetes: what its DNS does, and that no request notices.

A second of a TTL is a twentieth of a real one here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from balancer.config.settings import Settings, SettingsError
from balancer.demo.dns_server import Answerer, DnsServer, Zone
from balancer.demo.system import free_port
from balancer.discovery.resolver import DnsResolver, ResolverConfig, read_system
from balancer.discovery.search_list import LOOK_ROUNDS, RECHECK_ROUNDS
from balancer.discovery.snapshot import Outcome, Snapshot
from balancer.members.health import State
from balancer.types import Address
from tests.support.cluster import NAMESPACE, NDOTS, SEARCH, SERVICE, Cache, Headless, Pod
from tests.support.messages import GET as REQUEST
from tests.support.wire import OK, Running, balance, eventually, steady_requests

SECOND = 0.05
TTL = 30
LONG = REQUEST.replace(b"/ ", b"/long ", 1)


@asynccontextmanager
async def resolver(
    answerer: Answerer, alias: str = "worker", record: str = "a", search: list[str] = SEARCH, ndots: int = NDOTS
) -> AsyncIterator[DnsResolver]:
    async with DnsServer(answerer) as server:
        system = ResolverConfig([server.address], search, ndots)
        yield DnsResolver(Settings(alias=alias, dns_record=record, upstream_port=8080), system=system)


def addresses(snapshot: Snapshot) -> set[str]:
    return {it.address.host for answer in snapshot.answers for it in answer.endpoints}


def outcomes(snapshot: Snapshot) -> list[Outcome]:
    return [it.outcome for it in snapshot.answers]


async def servfail(query: dns.message.Message, response: dns.message.Message) -> None:
    response.set_rcode(dns.rcode.SERVFAIL)


@pytest.mark.parametrize("record", ["a", "a+aaaa"])
async def test_short_name_is_found_through_the_search_list_and_asked_for_alone(record: str) -> None:
    service = Headless(published=["10.1.2.3", "10.1.2.4"])
    async with resolver(service, record=record) as resolve:
        for _ in range(2 * RECHECK_ROUNDS):
            snapshot = await resolve()
            assert addresses(snapshot) == {"10.1.2.3", "10.1.2.4"}
            assert snapshot.name == SERVICE
    assert service.asked == {SERVICE: 2 * RECHECK_ROUNDS * len(record.split("+"))}


@pytest.mark.parametrize(
    ("alias", "found", "first"),
    [
        # The namespace's own domain comes first; "worker.default" is found through the second.
        ("worker.default", SERVICE, 2),
        ("worker.default.svc", SERVICE, 3),
        # Four dots are less than five: all of the search list is asked before the name as it is.
        (SERVICE.removesuffix("."), SERVICE, 5),
        (SERVICE, "", 1),
    ],
)
async def test_longer_and_whole_names_are_found_too(alias: str, found: str, first: int) -> None:
    service = Headless(published=["10.1.2.3"])
    async with resolver(service, alias) as resolve:
        snapshot = await resolve()
        assert (addresses(snapshot), snapshot.name) == ({"10.1.2.3"}, found)
        assert service.asked.total() == first
        for _ in range(RECHECK_ROUNDS - 1):
            assert addresses(await resolve()) == {"10.1.2.3"}
    assert service.asked.total() == first + RECHECK_ROUNDS - 1


async def test_service_that_appears_late_is_found() -> None:
    service = Headless()
    async with resolver(service) as resolve:
        assert outcomes(await resolve()) == [Outcome.EMPTY]
        service.published = ["10.1.2.3"]
        assert addresses(await resolve()) == {"10.1.2.3"}


async def test_alias_is_empty_when_every_name_says_so() -> None:
    service = Headless(published=["10.1.2.3"])
    async with resolver(service) as resolve:
        await resolve()
        service.published = []
        said = [outcomes(await resolve())[0] for _ in range(4)]
    assert said == [Outcome.UNKNOWN, *[Outcome.EMPTY] * 3]


async def test_name_that_cannot_be_asked_for_yet_is_not_empty() -> None:
    service = Headless(elsewhere=servfail)
    async with resolver(service) as resolve:
        assert outcomes(await resolve()) == [Outcome.UNKNOWN]


async def test_cluster_without_a_way_out_can_still_say_that_there_are_no_members() -> None:
    """Names outside of its zone always fail there."""
    service = Headless(published=["10.1.2.3"], elsewhere=servfail)
    async with resolver(service) as resolve:
        await resolve()
        service.published = []
        said = [outcomes(await resolve())[0] for _ in range(3)]
    assert said[1:] == [Outcome.EMPTY, Outcome.EMPTY]


async def test_wildcard_in_the_company_s_domain_does_not_keep_the_service_out() -> None:
    wildcard = Zone()
    wildcard.records["worker.corp.example"] = [("A", "192.0.2.1")]
    service = Headless(elsewhere=wildcard)
    async with resolver(service) as resolve:
        assert addresses(await resolve()) == {"192.0.2.1"}
        service.published = ["10.1.2.3"]
        found = [addresses(await resolve()) for _ in range(RECHECK_ROUNDS)]
    assert found[-1] == {"10.1.2.3"}


async def test_failing_cluster_dns_does_not_lead_to_the_wildcard() -> None:
    wildcard = Zone()
    wildcard.records["worker.corp.example"] = [("A", "192.0.2.1")]
    service = Headless(published=["10.1.2.3"], elsewhere=wildcard)
    async with DnsServer(service) as server:
        system = ResolverConfig([server.address], SEARCH, NDOTS)
        resolve = DnsResolver(Settings(alias="worker"), system=system)
        await resolve()

        async def zone_fails(query: dns.message.Message, response: dns.message.Message) -> None:
            name = query.question[0].name.to_text()
            await (servfail if name.endswith("cluster.local.") else wildcard)(query, response)

        server.answerer = zone_fails
        assert {outcomes(await resolve())[0] for _ in range(2 * LOOK_ROUNDS)} == {Outcome.UNKNOWN}


async def test_resolver_of_one_s_own_has_no_search_list() -> None:
    service = Headless(published=["10.1.2.3"])
    async with DnsServer(service) as server:
        resolve = DnsResolver(Settings(alias="worker", resolver=server.address))
        assert outcomes(await resolve()) == [Outcome.EMPTY]
        assert service.asked == {"worker.": 1}


KUBELET = f"search {' '.join(SEARCH)}\nnameserver 10.96.0.10\noptions ndots:5\n"
DOCKER = "# Generated by Docker Engine.\nnameserver 127.0.0.11\nsearch corp.example\noptions edns0 trust-ad ndots:0\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KUBELET, ResolverConfig([Address("10.96.0.10", 53)], SEARCH, 5)),
        (DOCKER, ResolverConfig([Address("127.0.0.11", 53)])),
        # A host that has ndots itself hands it on to its containers.
        (DOCKER.replace("ndots:0", "ndots:1"), ResolverConfig([Address("127.0.0.11", 53)])),
        ("search dns.podman\nnameserver 10.89.0.1\n", ResolverConfig([Address("10.89.0.1", 53)], ["dns.podman."])),
        (
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\n",
            ResolverConfig([Address("192.0.2.1", 53), Address("192.0.2.2", 53)]),
        ),
    ],
)
def test_resolv_conf_is_read_as_the_resolver_reads_it(text: str, expected: ResolverConfig, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    system = read_system(path)
    assert (system.servers, list(system.search), system.ndots) == (expected.servers, [*expected.search], expected.ndots)


@pytest.mark.parametrize("text", [None, "search corp.example\n"])
def test_system_without_a_name_server_cannot_be_used(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match="BALANCER_RESOLVER is not set"):
        read_system(path)


async def test_alias_in_a_docker_container_is_the_only_name_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(DOCKER)
    monkeypatch.setattr("balancer.discovery.resolver.RESOLV_CONF", path)
    service = Headless()
    async with DnsServer(service) as server:
        resolve = DnsResolver(Settings(alias="apps"), system=read_system()._replace(servers=[server.address]))
        for _ in range(3):
            assert outcomes(await resolve()) == [Outcome.EMPTY]
    assert service.asked == {"apps.": 3}


@pytest.mark.parametrize("glue", [True, False])
async def test_srv_of_the_named_port(glue: bool) -> None:
    service = Headless(published=["10.1.2.3", "10.1.2.4", "10.1.2.5"], port=8081, glue=glue)
    async with resolver(service, "_http._tcp.worker", "srv") as resolve:
        snapshot = await resolve()
        await resolve()
    (answer,) = snapshot.answers
    assert {(str(it.address), it.weight) for it in answer.endpoints} == {
        ("10.1.2.3:8081", 33),
        ("10.1.2.4:8081", 33),
        ("10.1.2.5:8081", 33),
    }
    pods = {} if glue else {f"10-1-2-{number}.{SERVICE}": 2 for number in (3, 4, 5)}
    assert service.asked == {f"_http._tcp.{SERVICE}": 2} | pods


@pytest.mark.parametrize("record", ["a", "srv"])
async def test_many_pods_come_over_tcp(record: str) -> None:
    hosts = [f"10.1.{number // 250}.{number % 250 + 1}" for number in range(300)]
    service = Headless(published=hosts)
    async with resolver(service, "worker" if record == "a" else "_http._tcp.worker", record) as resolve:
        for _ in range(2):
            snapshot = await resolve()
            assert addresses(snapshot) == set(hosts)
            assert snapshot.answers[0].over_tcp


async def test_pod_whose_address_cannot_be_asked_for_has_not_gone() -> None:
    service = Headless(published=["10.1.2.3", "10.1.2.4"], glue=False)
    failing = False

    async def one_fails(query: dns.message.Message, response: dns.message.Message) -> None:
        one = query.question[0].name.to_text().startswith("10-1-2-3.")
        await (servfail if one and failing else service)(query, response)

    async with resolver(one_fails, "_http._tcp.worker", "srv") as resolve:
        await resolve()
        failing = True
        for _ in range(5):
            assert addresses(await resolve()) == {"10.1.2.3", "10.1.2.4"}


async def test_pod_that_is_gone_from_dns_but_not_from_the_srv_answer_is_left_out() -> None:
    service = Headless(published=["10.1.2.3", "10.1.2.4"], glue=False)

    async def one_is_gone(query: dns.message.Message, response: dns.message.Message) -> None:
        if query.question[0].name.to_text().startswith("10-1-2-3."):
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            await service(query, response)

    async with resolver(one_is_gone, "_http._tcp.worker", "srv") as resolve:
        assert addresses(await resolve()) == {"10.1.2.4"}


@dataclass
class Site:
    """Pods that run, by address; the Service that publishes them, and the balancer that asks for it."""

    stack: AsyncExitStack
    port: int
    service: Headless
    pods: dict[str, Pod]
    running: Running

    async def start(self, host: str) -> Pod:
        """A pod's process begins to listen."""
        self.pods[host] = pod = await self.stack.enter_async_context(Pod(host, self.port))
        return pod

    async def end(self, host: str) -> None:
        """SIGTERM: a pod drains, and is gone a moment later."""
        pod = self.pods.pop(host)
        pod.drain()
        await asyncio.sleep(2 * SECOND)
        await pod.stop()

    @property
    def available(self) -> set[str]:
        return {it.address.host for it in self.running.balancer.membership.available}

    async def has(self, *hosts: str) -> None:
        await eventually(lambda: self.available == set(hosts))

    async def has_too(self, host: str) -> None:
        await eventually(lambda: host in self.available)

    async def in_service(self, host: str) -> None:
        """Wait until requests reach a pod."""
        pod = self.pods[host]
        before = pod.served
        await eventually(lambda: pod.served > before)


ONE, TWO, THREE, FOUR = (f"127.0.3.{number}" for number in range(1, 5))


@asynccontextmanager
async def site(*hosts: str, cached: bool = False, publish_not_ready: bool = True) -> AsyncIterator[Site]:
    """Pods that are published and up, and four clients that send one request after the other.

    At the end every answer must have been a 200.
    """
    port = free_port(ONE)
    async with AsyncExitStack() as stack:
        service = Headless(port, list(hosts), publish_not_ready=publish_not_ready, ttl=TTL)
        server = await stack.enter_async_context(DnsServer(Cache(service, SECOND) if cached else service))
        resolve = DnsResolver(
            Settings(alias="worker", upstream_port=port), system=ResolverConfig([server.address], SEARCH, NDOTS)
        )
        pods = {it: await stack.enter_async_context(Pod(it, port)) for it in hosts}
        running = await stack.enter_async_context(
            balance(resolve=resolve, resolve_interval=0.1, health_interval=0.1, health_path="/healthz", queue_timeout=8)
        )
        it = Site(stack, port, service, pods, running)
        await it.has(*hosts)
        async with steady_requests(running) as answers:
            yield it
        assert set(answers) == {b"HTTP/1.1 200 OK"}


async def test_pod_that_is_published_before_it_listens_gets_no_request_until_it_does() -> None:
    async with site(ONE) as it:
        it.service.published.append(TWO)
        it.service.unready.add(TWO)
        await eventually(lambda: len(it.running.balancer.membership.members) == 2)
        await asyncio.sleep(10 * SECOND)
        assert it.available == {ONE}
        await it.start(TWO)
        await it.in_service(TWO)


async def test_pod_that_terminates_stays_published_and_finishes_its_requests() -> None:
    async with site(ONE, TWO) as it, it.running.client() as client:
        for host in (ONE, TWO):
            await it.in_service(host)
        await client.send(LONG)
        await eventually(lambda: any(pod.in_work for pod in it.pods.values()))
        leaving = next(pod for pod in it.pods.values() if pod.in_work)
        (other,) = {ONE, TWO} - {leaving.address.host}
        leaving.drain()
        await it.has(other)
        assert it.service.published == [ONE, TWO]
        member = it.running.balancer.membership.members[leaving.address]
        await eventually(lambda: member.state is State.DRAINING)
        served = leaving.served
        await it.in_service(other)
        assert leaving.served == served
        await leaving.in_work[0].send(OK)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        await leaving.stop()
        await eventually(lambda: member.state is State.DOWN)


async def test_pod_that_leaves_dns_without_not_ready_addresses_finishes_its_requests() -> None:
    async with site(ONE, TWO, publish_not_ready=False) as it, it.running.client() as client:
        await client.send(LONG)
        await eventually(lambda: any(pod.in_work for pod in it.pods.values()))
        leaving = next(pod for pod in it.pods.values() if pod.in_work)
        it.service.unready.add(leaving.address.host)
        await eventually(lambda: leaving.address not in it.running.balancer.membership.members)
        await leaving.in_work[0].send(OK)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_pod_that_is_gone_but_still_in_a_cached_answer_costs_no_request() -> None:
    async with site(ONE, TWO, cached=True) as it:
        await it.end(TWO)
        it.service.published.remove(TWO)
        await it.has(ONE)
        assert Address(TWO, it.port) in it.running.balancer.membership.members
        await it.in_service(ONE)
        await eventually(lambda: Address(TWO, it.port) not in it.running.balancer.membership.members)


async def test_pod_that_is_new_is_found_when_the_cached_answer_has_run_out() -> None:
    async with site(ONE, cached=True) as it:
        await it.start(TWO)
        it.service.published.append(TWO)
        async with asyncio.timeout(TTL * SECOND + 2):
            await it.in_service(TWO)


async def test_rolling_update_behind_a_cache_loses_nothing() -> None:
    """``minReadySeconds`` above the TTL: an old pod goes when the new one is known to everybody."""
    async with site(ONE, TWO, cached=True) as it:
        for old, new in ((ONE, THREE), (TWO, FOUR)):
            it.service.published.append(new)
            await it.start(new)
            await asyncio.sleep((TTL + 5) * SECOND)
            await it.has_too(new)
            await it.end(old)
            it.service.published.remove(old)
        await it.has(THREE, FOUR)


async def test_pods_that_are_all_replaced_within_a_ttl_are_waited_for() -> None:
    """``minReadySeconds: 0``: the cached answer names nobody who is still there. Requests are held, if they may be."""
    async with site(ONE, TWO, cached=True) as it:
        it.service.published = [THREE, FOUR]
        for host in (THREE, FOUR):
            await it.start(host)
        await asyncio.gather(it.end(ONE), it.end(TWO))
        await it.has()
        await it.has(THREE, FOUR)
        await it.in_service(THREE)


@pytest.mark.parametrize("publish_not_ready", [True, False])
async def test_service_without_pods_for_a_moment_is_waited_for_through_the_negative_cache(
    publish_not_ready: bool,
) -> None:
    async with site(ONE, cached=True, publish_not_ready=publish_not_ready) as it:
        it.service.published = []
        await it.end(ONE)
        await eventually(lambda: not it.running.balancer.membership.members)
        it.service.published, it.service.unready = [TWO], {TWO}
        if publish_not_ready:
            await eventually(lambda: len(it.running.balancer.membership.members) == 1)
        await it.start(TWO)
        it.service.unready.clear()
        await it.in_service(TWO)


async def test_srv_names_the_port_that_the_pods_have() -> None:
    port = free_port(ONE)
    service = Headless(port, [ONE, TWO], glue=False)
    async with Pod(ONE, port), Pod(TWO, port), DnsServer(service) as server:
        resolve = DnsResolver(
            Settings(alias="_http._tcp.worker", dns_record="srv"),
            system=ResolverConfig([server.address], [NAMESPACE], NDOTS),
        )
        async with balance(resolve=resolve, resolve_interval=0.1, health_path="/healthz") as running:
            await running.available(2)
            for _ in range(4):
                answer = await running.exchange(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                assert answer.startswith(b"HTTP/1.1 200 ")
