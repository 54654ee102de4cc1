"""The admin listener over real sockets: what it says, and which requests may act."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from balancer.admin.app import admin_app
from balancer.admin.status_feed import StatusFeed
from balancer.config.settings import Settings
from balancer.discovery.container_names import ContainerNames
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.admin import JSON, OPENAPI, administer, check, opened
from tests.support.gate import Gate
from tests.support.messages import LAST_GET as GET
from tests.support.scripted import ScriptedProbe
from tests.support.wire import Connection, Member, balance, eventually

TOKEN = "correct-horse-battery"


def requests(member: Member) -> int:
    """How many the member was given."""
    return b"".join(member.received).count(b"GET / ")


async def test_every_route_is_documented_and_every_documented_one_is_there() -> None:
    async with balance() as running:
        made = StatusFeed(lambda: [running.balancer], ContainerNames([]))
        routes = admin_app(lambda: [running.balancer], Settings, made).routes
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
    gate = Gate()
    async with (
        Member(gate) as one,
        Member() as two,
        balance(one, two, stats=Stats()) as running,
        administer(running) as port,
    ):
        first = asyncio.create_task(running.exchange(GET))
        second = asyncio.create_task(running.exchange(GET))
        await eventually(lambda: gate.waiting == 1)
        response = await port.act("drain", one.address)
        assert response.status_code == 200
        check("Drained", response.json())
        assert response.json() == {"address": str(one.address), "drained": True, "pools": ["apps"], "in_flight": 1}
        for _ in range(5):
            assert b" 200 " in await running.exchange(GET)
        assert (requests(one), requests(two)) == (1, 6)
        assert (await port.member(one.address))["drained"]
        gate.let(3)
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


async def test_ejected_member_gets_no_more_while_another_is_up_until_it_is_restored() -> None:
    async with (
        Member() as one,
        Member() as two,
        balance(one, two, stats=Stats()) as running,
        administer(running) as port,
    ):
        response = await port.act("eject", one.address, {"seconds": 30})
        check("Ejected", response.json())
        assert response.json() == {
            "address": str(one.address), "ejected": True, "seconds": 30, "pools": ["apps"], "in_flight": 0
        }  # fmt: skip
        for _ in range(5):
            await running.exchange(GET)
        assert (requests(one), requests(two)) == (0, 5)
        status = (await port.get("/api/status")).json()
        check("Status", status)
        ejection = (await port.member(one.address))["ejection"]
        assert (ejection["kind"], ejection["reason"], ejection["on_trial"]) == ("manual", "by hand", False)
        response = await port.act("restore", one.address)
        check("Restored", response.json())
        assert response.json()["ejected"] is False
        assert (await port.member(one.address))["ejection"] is None
        for _ in range(4):
            await running.exchange(GET)
        assert requests(one) == 2
        texts = [it["text"] for it in (await port.get("/api/events")).json()["events"]]
        assert texts[-2:] == [f"{one.address} ejected for 30 s: by hand", f"{one.address} restored"]


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
    "path",
    ["/", "/members", "/metrics", "/healthz", "/readyz", "/api/settings", "/api/stream", "/openapi.json", "/none"],
)
async def test_listener_on_loopback_tells_nothing_under_another_name(path: str) -> None:
    async with balance(stats=Stats()) as running, administer(running) as port:
        response = await port.get(path, headers={"Host": "rebound.example:9000"})
        assert (response.status_code, response.json()["error"]) == (403, "foreign_host")
    async with (
        balance(stats=Stats()) as running,
        administer(running, admin_bind=Address("0.0.0.0", 9000)) as port,
    ):
        assert (await port.get("/api/settings", headers={"Host": "balancer:9000"})).status_code == 200


@pytest.mark.parametrize("hosts", [("localhost", "rebound.example"), ("rebound.example", "localhost")])
async def test_request_with_two_hosts_of_which_one_is_foreign_is_not_served(hosts: tuple[str, str]) -> None:
    async with balance(stats=Stats()) as running:
        feed = StatusFeed(lambda: [running.balancer], ContainerNames([]))
        settings = Settings(admin_bind=Address("127.0.0.1", 9000))
        app = admin_app(lambda: [running.balancer], lambda: settings, feed)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            response = await client.get("/api/settings", headers=[("Host", host) for host in hosts])
        assert (response.status_code, response.json()["error"]) == (403, "foreign_host")


async def test_settings_show_no_password_of_a_url() -> None:
    endpoint = "http://user:secret-word@collector:4318/v1/traces"
    async with balance(stats=Stats()) as running, administer(running, otel_endpoint=endpoint) as port:
        text = (await port.get("/api/settings")).text
        assert "http://(not shown)@collector:4318/v1/traces" in text
        assert "secret-word" not in text


@pytest.mark.parametrize(
    ("path", "content", "status", "error", "words"),
    [
        ("/api/members/10.0.0.99:80/drain", b"", 404, "no_such_member", "named by ip:port: 127."),
        ("/api/members/everybody/drain", b"", 404, "no_such_member", "ip:port"),
        ("/api/members/{one}/drain", b'{"pool": "shops"}', 404, "no_such_pool", "there is apps"),
        ("/api/members/{one}/drain", b'{"pool": 7}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'{"poll": "apps"}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'{"name": 7}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", rb'{"name": "\ud800"}', 400, "bad_body", '"name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", rb'{"pool": "\udfff"}', 400, "bad_body", '"name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'"apps"', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b'null', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"[]", 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"{", 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"[" * 4000, 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b"\xff", 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/drain", b" " * 5000, 413, "too_large", "4096 bytes"),
        ("/api/members/{one}/drain", b'{"seconds": 5}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/restore", b'{"seconds": 5}', 400, "bad_body", '{"pool": "apps", "name": "shop-worker-1"}'),
        ("/api/members/{one}/eject", b'{"seconds": 0}', 400, "bad_body", "seconds takes a number from 1 to 3600"),
        ("/api/members/{one}/eject", b'{"seconds": "5"}', 400, "bad_body", "seconds takes a number from 1 to 3600"),
        ("/api/members/{one}/eject", b'{"seconds": true}', 400, "bad_body", "seconds takes a number from 1 to 3600"),
        ("/api/members/{one}/eject", b'{"seconds": NaN}', 400, "bad_body", "seconds takes a number from 1 to 3600"),
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
        member = await port.member(one.address)
        assert (member["drained"], member["ejection"]) == (False, None)


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


async def test_liveness_and_readiness_are_as_they_were() -> None:
    probe = ScriptedProbe()
    async with Member() as one, balance(one, probe=probe, stats=Stats()) as running, administer(running) as port:
        assert (await port.get("/healthz")).text == "ok\n"
        ready = await port.get("/readyz")
        assert (ready.status_code, ready.text) == (200, "1 member is available\n")
        await port.act("drain", one.address)
        ready = await port.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "no member is available\n")


async def test_readiness_counts_the_members_that_are_up_where_asked_to() -> None:
    async with (
        Member() as one,
        Member() as two,
        balance(one, two, stats=Stats()) as running,
        administer(running) as port,
    ):
        for up, status in ((1, 200), (2, 200), (3, 503)):
            ready = await port.get(f"/readyz?up={up}")
            assert (ready.status_code, ready.text) == (status, f"2 of {up} members are up, of 2 that DNS names\n")
        await port.act("drain", one.address)
        ready = await port.get("/readyz?up=2&pool=apps")
        assert (ready.status_code, ready.text) == (503, "1 of 2 members are up, of 2 that DNS names\n")
        assert (await port.get("/readyz?up=1")).status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("up=0", 400, "up='0' cannot be used: it takes a whole number from 1 to 1000000"),
        ("up=1000001", 400, "up='1000001' cannot be used"),
        ("up=" + "9" * 5000, 400, "cannot be used: it takes"),
        ("up=-1", 400, "up='-1' cannot be used"),
        ("up=six", 400, "up='six' cannot be used"),
        ("up=", 400, "up='' cannot be used"),
        ("up=1&up=2", 400, "one of them is there twice"),
        ("ups=6", 400, "the query takes up=<number> and pool=<name>: 'ups' is none"),
        ("pool=shop", 404, "there is no pool 'shop'; there is apps"),
        ("up=1&pool=shop", 404, "there is no pool 'shop'; there is apps"),
    ],
)
async def test_query_of_readiness_that_cannot_be_used_says_what_it_takes(query: str, status: int, words: str) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running) as port:
        ready = await port.get(f"/readyz?{query}")
        assert ready.status_code == status
        assert words in ready.text
        assert len(ready.text) < 300
