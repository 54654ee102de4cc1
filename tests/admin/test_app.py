"""The admin listener over real sockets: what it says, who may act, what open pages are sent."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.routing import Route

from balancer.admin import app, status_feed
from balancer.admin.app import admin_app
from balancer.admin.history import CHART
from balancer.admin.status_feed import StatusFeed
from balancer.admin.subscriber import Subscriber
from balancer.config.settings import Settings
from balancer.demo.dns_server import DnsServer, Zone
from balancer.discovery.container_names import AT_A_TIME, ContainerNames
from balancer.discovery.dns_message import Reply
from balancer.discovery.snapshot import Endpoint
from balancer.members.member import Member as PoolMember
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.admin import JSON, OPENAPI, AdminPort, Page, administer, check, opened
from tests.support.messages import LAST_GET as GET
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import LIMIT, OK, Connection, Member, balance, eventually

TOKEN = "correct-horse-battery"


async def until(page: Page, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first message of which ``wanted`` is true."""
    async with asyncio.timeout(LIMIT):
        while True:
            _, message = await page.next()
            if wanted(message):
                return message


def requests(member: Member) -> int:
    """How many the member was given."""
    return b"".join(member.received).count(b"GET / ")


async def test_every_route_is_documented_and_every_documented_one_is_there() -> None:
    async with balance() as running:
        made = StatusFeed(lambda: [running.balancer], ContainerNames([]))
        routes = admin_app(lambda: [running.balancer], Settings(), made).routes
    served = {it.path for it in routes if isinstance(it, Route)}
    page = {it for it in served if it.startswith("/static/")} | {"/", "/openapi.json"}
    assert served - page == set(OPENAPI["paths"])


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/api/status", "Status"), ("/api/events", "Events"), ("/api/settings", "Settings"), ("/members", "Members")],
)
async def test_answer_is_as_documented(path: str, schema: str) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running) as port:
        for _ in range(3):
            await running.exchange(GET)
        await running.idle()
        response = await port.get(path)
        assert response.status_code == 200
        documented = OPENAPI["paths"][path]["get"]["responses"]["200"]["content"]
        assert documented == {response.headers["content-type"]: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        check(schema, response.json())


async def test_status_before_the_first_dns_answer_is_as_documented() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    async with balance(resolve=never, stats=Stats()) as running, administer(running) as port:
        for path, schema in (("/api/status", "Status"), ("/members", "Members")):
            check(schema, (await port.get(path)).json())
        assert (await port.get("/readyz")).status_code == 503
        async with opened(port) as page:
            kind, _ = await page.next()
            assert kind == "whole"


async def test_status_says_what_a_member_has_done() -> None:
    async def fails(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    async with Member(fails) as one, balance(one, stats=Stats()) as running, administer(running) as port:
        for _ in range(4):
            await running.exchange(GET)
        member = await port.member(one.address)
        assert (member["state"], member["reason"], member["drained"]) == ("up", "accepts connections", False)
        assert (member["requests"], member["failed"], member["in_flight"]) == (4, 4, 0)
        # The rest is of samples, taken once a second.
        async with asyncio.timeout(5):
            while not (member := await port.member(one.address))["share"]:
                await asyncio.sleep(0.05)
        assert member["share"] == 1
        assert 0 < member["p50_ms"] <= member["p99_ms"]


async def test_member_that_dies_is_in_the_events_with_what_it_cost() -> None:
    async with (
        Member() as one,
        Member() as two,
        balance(one, two, stats=Stats(), health_interval=60.0) as running,
        administer(running) as port,
    ):
        await one.stop()
        for _ in range(4):
            assert b" 200 " in await running.exchange(GET)
        events = (await port.get("/api/events")).json()["events"]
        (died,) = (it for it in events if it["level"] == "bad")
        assert died["text"] == f"{one.address} down: connection refused, 1 request moved"
        assert (died["member"], died["moved"], died["pool"]) == (str(one.address), 1, "apps")


async def test_drained_member_finishes_what_it_has_and_gets_no_more() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.head()
        asked.set()
        await answer.wait()
        await connection.send(OK)

    async with (
        Member(slow) as one,
        Member() as two,
        balance(one, two, stats=Stats()) as running,
        administer(running) as port,
    ):
        first = asyncio.create_task(running.exchange(GET))
        second = asyncio.create_task(running.exchange(GET))
        await asked.wait()
        response = await port.act("drain", one.address)
        assert response.status_code == 200
        check("Drained", response.json())
        assert response.json() == {"address": str(one.address), "drained": True, "pools": ["apps"], "in_flight": 1}
        for _ in range(5):
            assert b" 200 " in await running.exchange(GET)
        assert (requests(one), requests(two)) == (1, 6)
        assert (await port.member(one.address))["drained"]
        answer.set()
        assert b" 200 " in await first
        assert b" 200 " in await second
        response = await port.act("undrain", one.address, {"pool": "apps"})
        assert response.json()["drained"] is False
        for _ in range(4):
            await running.exchange(GET)
        assert (requests(one), requests(two)) == (3, 8)
        texts = [it["text"] for it in (await port.get("/api/events")).json()["events"]]
        assert f"{one.address} drained by hand" in texts
        assert texts[-1] == f"{one.address} no longer drained"


async def test_actions_ask_for_the_token_and_the_page_for_none() -> None:
    async with (
        Member() as one,
        balance(one, stats=Stats()) as running,
        administer(running, admin_token=TOKEN) as port,
    ):
        for headers in ({}, {"Authorization": "Bearer wrong-token"}):
            response = await port.act("drain", one.address, None, **headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            check("Problem", response.json())
        assert not (await port.member(one.address))["drained"]
        response = await port.act("drain", one.address, None, Authorization=f"Bearer {TOKEN}")
        assert response.status_code == 200
        assert (await port.member(one.address))["drained"]
        settings = (await port.get("/api/settings")).text
        assert "BALANCER_ADMIN_TOKEN" in settings
        for path in ("/", "/api/settings", "/api/status", "/api/events"):
            assert TOKEN not in (await port.get(path)).text


@pytest.mark.parametrize(
    ("settings", "headers", "status", "error"),
    [
        ({}, {"Sec_Fetch_Site": "cross-site"}, 403, "cross_site"),
        ({}, {"Origin": "http://evil.example"}, 403, "cross_site"),
        ({}, {"Content_Type": "text/plain"}, 415, "not_json"),
        ({}, {"Host": "rebound.example"}, 403, "foreign_host"),
        ({"admin_bind": Address("0.0.0.0", 9000)}, {}, 403, "no_token_set"),
    ],
)
async def test_action_of_a_stranger_is_refused(
    settings: dict[str, Any], headers: dict[str, str], status: int, error: str
) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running, **settings) as port:
        response = await port.act("drain", one.address, None, **headers)
        assert (response.status_code, response.json()["error"]) == (status, error)
        check("Problem", response.json())
        assert not (await port.member(one.address))["drained"]


@pytest.mark.parametrize(
    ("path", "content", "status", "error", "words"),
    [
        ("/api/members/10.0.0.99:80/drain", b"", 404, "no_such_member", "named by ip:port: 127."),
        ("/api/members/everybody/drain", b"", 404, "no_such_member", "ip:port"),
        ("/api/members/{one}/drain", b'{"pool": "shops"}', 404, "no_such_pool", "there is apps"),
        ("/api/members/{one}/drain", b'{"pool": 7}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'{"poll": "apps"}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'{"name": 7}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'"apps"', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'null', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"[]", 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"{", 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"[" * 4000, 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"\xff", 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b" " * 5000, 413, "too_large", "4096 bytes"),
        ("/api/members/{one}/stop", b"", 404, "not_found", "/openapi.json says what there is"),
        ("/api/status", b"", 405, "method_not_allowed", "/api/status takes "),
        ("/api/stream", b"", 405, "method_not_allowed", "/api/stream takes GET"),
    ],
)  # fmt: skip
async def test_bad_input_is_told_what_is_accepted(
    path: str, content: bytes, status: int, error: str, words: str
) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running) as port:
        response = await port.post(path.format(one=one.address), content=content, headers=JSON)
        assert (response.status_code, response.json()["error"]) == (status, error)
        assert words in response.json()["reason"]
        check("Problem", response.json())
        assert not (await port.member(one.address))["drained"]


async def test_url_is_not_given_to_the_standard_librarys_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    split: list[str] = []
    monkeypatch.setattr("starlette.datastructures.urlsplit", split.append)
    async with balance(stats=Stats()) as running, administer(running) as port:
        for path in ("/api/status", "/api/stream", "/nowhere", "/healthz/"):
            await port.post(f"{path}?{'a' * 10_000}", content=b"", headers=JSON)
    assert split == []


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/openapi.json", "/api/status", "/healthz", "/nowhere"])
async def test_responses_cannot_be_framed_sniffed_or_made_to_run_foreign_scripts(path: str) -> None:
    async with balance(stats=Stats()) as running, administer(running) as port:
        headers = (await port.get(path)).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_page_needs_nothing_from_elsewhere() -> None:
    async with balance(stats=Stats()) as running, administer(running) as port:
        page = (await port.get("/")).text
        files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
        assert len(files) >= 3
        for name in files:
            response = await port.get(name)
            assert response.status_code == 200
            files = files | {f"/static/{it}" for it in re.findall(r'from "\./([^"]+)"', response.text)}
        for name in sorted(files):
            response = await port.get(name)
            assert response.status_code == 200
            text = response.text.replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//cdn|@import|url\(", text), name
            again = await port.get(name, headers={"If-None-Match": response.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert (await port.get("/openapi.json")).json() == OPENAPI


async def test_page_is_sent_everything_once_and_then_what_changes() -> None:
    async with (
        Member() as one,
        Member() as two,
        balance(one, two, stats=Stats()) as running,
        administer(running) as port,
        opened(port) as page,
    ):
        kind, whole = await page.next()
        assert kind == "whole"
        (pool,) = whole["pools"]
        assert [row[1] for row in pool["members"]] == sorted([str(one.address), str(two.address)])
        assert whole["access"] == "open"
        for _ in range(4):
            await running.exchange(GET)
        message = await until(page, lambda it: it["sample"] and it["pools"][0]["summary"]["recent"])
        rows = message["pools"][0]["values"]
        assert sorted(row[3] for row in rows) == [2, 2]
        # Who did nothing new is left out.
        message = await until(page, lambda it: it["sample"] and not any(row[2] for row in it["pools"][0]["values"]))
        message = await until(page, lambda it: it["sample"])
        assert message["pools"][0]["values"] == []
        assert message["pools"][0]["members"] == []


async def test_change_of_members_does_not_wait_for_the_second() -> None:
    resolver = ScriptedResolver()
    async with (
        Member() as one,
        Member() as two,
        balance(one, resolve=resolver, stats=Stats(), wait=False) as running,
        administer(running) as port,
        opened(port) as page,
    ):
        _, whole = await page.next()
        assert whole["pools"][0]["members"] == []
        resolver.found(one.address, two.address)
        numbers: dict[str, int] = {}
        while len(numbers) < 2:
            _, message = await page.next()
            numbers |= {row[1]: row[0] for row in message["pools"][0]["members"] if row[3] == "up"}
        await port.act("drain", two.address)
        message = await until(page, lambda it: it["pools"][0]["members"])
        assert message["sample"] is False
        assert message["events"][0]["text"] == f"{two.address} drained by hand"
        resolver.found(two.address)
        message = await until(page, lambda it: it["pools"][0]["left"])
        assert message["pools"][0]["left"] == [numbers[str(one.address)]]
        assert message["events"][-1]["text"] == f"{one.address} left DNS"


async def test_fresh_page_has_the_history_of_those_that_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_feed, "INTERVAL", 0.05)
    resolver = ScriptedResolver()
    async with Member() as one, Member() as two:
        resolver.found(one.address, two.address)
        async with balance(one, two, resolve=resolver, stats=Stats()) as running, administer(running) as port:
            for _ in range(6):
                await running.exchange(GET)
            resolver.found(two.address)
            await eventually(lambda: one.address not in running.balancer.membership.members)
            await asyncio.sleep(0.2)  # a few samples later
            async with opened(port) as page:
                _, whole = await page.next()
            (pool,) = whole["pools"]
            chart = {address: (ago, rates) for _, address, _, ago, rates in pool["chart"]}
            assert [row[1] for row in pool["members"]] == [str(two.address)]
            ago, rates = chart[str(one.address)]
            assert ago > 0
            assert any(rates)
            assert chart[str(two.address)][0] == 0
            # And no longer than the chart goes back.
            async with asyncio.timeout(CHART * 0.05 * 3):
                while len(pool["chart"]) > 1:
                    async with opened(port) as page:
                        _, whole = await page.next()
                    (pool,) = whole["pools"]
                    await asyncio.sleep(0.1)


async def test_page_that_does_not_read_is_sent_everything_anew_and_costs_no_memory() -> None:
    async with Member() as one, balance(one, stats=Stats()) as running:
        made = StatusFeed(lambda: [running.balancer], ContainerNames([]), access="open")
        with Subscriber(made) as slow, Subscriber(made) as quick:
            first = await slow.next()
            assert first == await quick.next()
            made._look(sample=True)
            assert (await quick.next()).startswith(b"event: delta\n")
            made._look(sample=True)
            assert (await quick.next()).startswith(b"event: delta\n")
            assert (await slow.next()).startswith(b"event: whole\n")
            made._look(sample=True)
            assert await slow.next() == await quick.next()
        assert made.viewers == 0


async def test_pages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_PAGES", 1)
    async with balance(stats=Stats()) as running, administer(running) as port:
        async with opened(port) as page:
            await page.next()
            response = await port.get("/api/stream")
            assert (response.status_code, response.json()["error"]) == (503, "too_many_pages")
        async with asyncio.timeout(5):
            while True:  # until it is noticed that the other has left
                async with port.stream("GET", "/api/stream") as response:
                    if response.status_code == 200:
                        break
                await asyncio.sleep(0.02)


async def test_end_of_the_balancer_ends_streams_at_once() -> None:
    async with balance(stats=Stats()) as running, administer(running) as port, opened(port) as page:
        await page.next()
        port.admin.stop()
        async with asyncio.timeout(2):
            async for _ in page._lines:
                pass


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
    assert all(map(names.asks, members))
    await eventually(lambda: under_way == AT_A_TIME)
    answer.set()
    await eventually(lambda: not any(map(names.asks, members)))
    assert most == AT_A_TIME


async def test_answer_from_before_a_rise_is_not_taken_for_one_after_it() -> None:
    zone = Zone()
    found: list[str] = []
    zone.records["1.0.0.127.in-addr.arpa"] = [("PTR", "web.backend.")]
    async with DnsServer(zone) as dns:
        names, member = ContainerNames([dns.address]), PoolMember(Endpoint(Address("127.0.0.1", 80)), 0.0)
        names.look_up(member, member.address.host, lambda name: found.append(f"{name} before"), lambda: True)
        names.look_up(member, member.address.host, lambda name: found.append(f"{name} after"), lambda: True)
        await eventually(lambda: not names.asks(member))
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


async def test_balancer_outlives_its_status_page(caplog: pytest.LogCaptureFixture) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running) as port:
        pool = port.admin._board
        with caplog.at_level(logging.ERROR):
            pool._views = lambda: None  # type: ignore[assignment, return-value]
            pool._look(sample=True)
        assert "the status page could not be brought up to date" in caplog.text
        assert b" 200 " in await running.exchange(GET)
        assert (await port.get("/healthz")).text == "ok\n"


async def test_liveness_and_readiness_are_as_they_were() -> None:
    probe = ScriptedProbe()
    async with Member() as one, balance(one, probe=probe, stats=Stats()) as running, administer(running) as port:
        assert (await port.get("/healthz")).text == "ok\n"
        ready = await port.get("/readyz")
        assert (ready.status_code, ready.text) == (200, "1 members are available\n")
        await port.act("drain", one.address)
        ready = await port.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "no member is available\n")
