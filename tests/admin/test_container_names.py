"""The names of containers: looked up by DNS, shown, and kept apart when addresses change hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from balancer.admin import status_feed
from balancer.demo.dns_server import DnsServer, Zone
from balancer.discovery.container_names import MAX_QUERIES, ContainerNames
from balancer.discovery.dns_message import Reply
from balancer.discovery.snapshot import Endpoint
from balancer.members.member import Member as PoolMember
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.admin import AdminPort, administer, check, opened, until
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import LIMIT, Member, balance, eventually


async def test_containers_have_the_names_that_dns_gives_them() -> None:
    zone = Zone()
    zone.records["1.0.0.127.in-addr.arpa"] = [("PTR", "shop-worker-1.shop_backend.")]
    async with (
        DnsServer(zone) as dns,
        Member() as one,
        balance(one, stats=Stats()) as running,
        administer(running, resolver=dns.address) as port,
        opened(port) as page,
    ):
        message = await until(page, lambda it: any(row[2] for row in it["pools"][0]["members"]))
        assert message["pools"][0]["members"][0][2] == "shop-worker-1"
        assert (await port.member(one.address))["name"] == "shop-worker-1"


@dataclass
class Named:
    """Two members and the DNS server that has the names of their containers."""

    dns: DnsServer
    point: Callable[[str, str], None]
    probe: ScriptedProbe
    port: AdminPort
    addresses: list[Address]

    async def shown(self, *names: str) -> None:
        """Wait until the status has these names."""
        async with asyncio.timeout(LIMIT):
            while [(await self.port.member(it))["name"] for it in self.addresses] != [*names]:
                await asyncio.sleep(0.02)

    async def swap(self) -> None:
        """The containers stop, and start at each other's address; DNS names the same addresses all the time."""
        self.probe.down = set(self.addresses)
        async with asyncio.timeout(LIMIT):
            while [(await self.port.member(it))["state"] for it in self.addresses] != ["down", "down"]:
                await asyncio.sleep(0.02)
        self.point("two", "one")
        self.probe.down = set()

    async def events(self) -> list[dict[str, Any]]:
        body = (await self.port.get("/api/events")).json()
        check("Events", body)
        return list(body["events"])


@asynccontextmanager
async def named_members() -> AsyncIterator[Named]:
    """The containers ``one`` and ``two``, whose names are known."""
    zone, probe = Zone(), ScriptedProbe()

    def point(*names: str) -> None:
        """Say whose the addresses are."""
        for number, name in enumerate(names, 1):
            zone.records[f"{number}.0.0.127.in-addr.arpa"] = [("PTR", f"{name}.shop_backend.")]

    point("one", "two")
    async with (
        DnsServer(zone) as dns,
        Member() as one,
        Member(host="127.0.0.2", port=one.address.port) as two,
        balance(one, two, probe=probe, stats=Stats(), health_interval=0.05) as running,
        administer(running, resolver=dns.address) as port,
    ):
        it = Named(dns, point, probe, port, [one.address, two.address])
        await it.shown("one", "two")
        yield it


async def test_containers_that_swap_addresses_have_their_own_names_when_they_are_up_again() -> None:
    async with named_members() as it, opened(it.port) as page:
        _, whole = await page.next()
        numbers = {row[0] for row in whole["pools"][0]["members"]}
        await it.swap()
        await it.shown("two", "one")
        names: dict[int, str] = {}
        left: set[int] = set()
        while left != numbers or sorted(names.values()) != ["one", "two"]:
            (pool,) = (await page.next())[1]["pools"]
            names |= {row[0]: row[2] for row in pool["members"] if row[0] not in numbers}
            left |= {*pool["left"]}
        one, two = map(str, it.addresses)
        before, after = [(one, "one"), (two, "two")], [(one, "two"), (two, "one")]
        told = {level: [it for it in await it.events() if it["level"] == level] for level in ("good", "bad")}
        assert sorted((it["member"], it["name"]) for it in told["bad"]) == before
        assert sorted((it["member"], it["name"]) for it in told["good"][:2]) == before
        assert sorted((it["member"], it["name"]) for it in told["good"][2:]) == after


async def test_drain_ends_with_the_container_that_it_was_meant_for() -> None:
    async with named_members() as it:
        assert (await it.port.act("drain", it.addresses[0], {"name": "one"})).status_code == 200
        assert (await it.port.member(it.addresses[0]))["drained"]
        await it.swap()
        await it.shown("two", "one")
        assert [(await it.port.member(address))["drained"] for address in it.addresses] == [False, False]


async def test_action_on_a_container_that_has_another_address_by_now_changes_nothing() -> None:
    async with named_members() as it:
        it.point("two", "one")
        one, two = it.addresses
        for what in ("drain", "undrain"):
            response = await it.port.act(what, one, {"name": "one"})
            assert (response.status_code, response.json()["error"]) == (409, "another_name")
            assert response.json()["reason"] == f"{one} is two by now, not one: nothing changes"
            check("Problem", response.json())
        assert not (await it.port.member(one))["drained"]
        # What was learnt by the way is shown; programs that give no name, or the right one, go on.
        assert (await it.port.member(one))["name"] == "two"
        assert (await it.port.act("drain", one, {"name": "two"})).status_code == 200
        assert (await it.port.act("drain", two)).status_code == 200


async def test_action_while_dns_is_silent_is_held_to_the_known_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_feed, "CONFIRM_SECONDS", 0.1)

    async def silent(query: object, response: object) -> None:
        await asyncio.Event().wait()

    async with named_members() as it:
        it.dns.answerer = silent
        response = await it.port.act("drain", it.addresses[0], {"name": "two"})
        assert (response.status_code, response.json()["error"]) == (409, "another_name")
        assert (await it.port.act("drain", it.addresses[0], {"name": "one"})).status_code == 200


async def test_name_that_changes_without_a_pause_is_noticed_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_feed, "INTERVAL", 0.02)
    async with named_members() as it:
        it.point("two", "one")
        await it.shown("two", "one")


@pytest.mark.parametrize(
    ("pointer", "name"),
    [("web.", "web"), ("shop-worker-1.shop_backend.", "shop-worker-1"), ("host.example.com.", "host.example.com")],
)
async def test_name_is_shown_without_its_network(pointer: str, name: str) -> None:
    assert await looked_up([("PTR", pointer)]) == name


@pytest.mark.parametrize("records", [[], [("A", "127.0.0.1")]])
async def test_member_name_unknown_to_dns_is_empty(records: list[tuple[str, str]]) -> None:
    assert await looked_up(records) == ""


async def test_name_of_a_member_that_has_left_is_not_asked_for() -> None:
    async with DnsServer(Zone()) as dns:
        found: list[str] = []
        await asked(ContainerNames([dns.address]), found, lambda: False)
        assert (found, dns.udp_queries) == ([], 0)


async def test_few_names_are_asked_for_at_a_time_and_each_member_once() -> None:
    under_way, most, answer = 0, 0, asyncio.Event()

    async def ask(*question: object) -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await answer.wait()
        under_way -= 1
        raise OSError("nothing to say")

    names = ContainerNames([Address("127.0.0.1", 1)], ask)
    members = [PoolMember(Endpoint(it), 0.0) for it in (Address(f"10.0.0.{number}", 80) for number in range(40))]
    for member in [*members, *members]:
        names.look_up(member, member.address.host, lambda name: None, lambda: True)
    assert all(map(names.is_looking_up, members))
    await eventually(lambda: under_way == MAX_QUERIES)
    answer.set()
    await eventually(lambda: not any(map(names.is_looking_up, members)))
    assert most == MAX_QUERIES


async def test_answer_from_before_a_rise_is_not_taken_for_one_after_it() -> None:
    zone = Zone()
    found: list[str] = []
    zone.records["1.0.0.127.in-addr.arpa"] = [("PTR", "web.backend.")]
    async with DnsServer(zone) as dns:
        names, member = ContainerNames([dns.address]), PoolMember(Endpoint(Address("127.0.0.1", 80)), 0.0)
        names.look_up(member, member.address.host, lambda name: found.append(f"{name} before"), lambda: True)
        names.look_up(member, member.address.host, lambda name: found.append(f"{name} after"), lambda: True)
        await eventually(lambda: not names.is_looking_up(member))
        assert found == ["web after"]


async def looked_up(records: list[tuple[str, str]]) -> str:
    zone = Zone()
    if records:
        zone.records["1.0.0.127.in-addr.arpa"] = records
    async with DnsServer(zone) as dns:
        found: list[str] = []
        await asked(ContainerNames([dns.address]), found, lambda: True)
        return "".join(found)


async def asked(names: ContainerNames, found: list[str], wanted: Callable[[], bool]) -> None:
    """Look the name of 127.0.0.1 up, to the end."""
    resolver = ScriptedResolver(Address("127.0.0.1", 80))
    answer = (await resolver()).answers[0]
    (endpoint,) = answer.endpoints
    names.look_up(PoolMember(endpoint, 0.0), endpoint.address.host, found.append, wanted)
    async with asyncio.timeout(5):
        await asyncio.gather(*names._tasks.values())
    await names.close()
