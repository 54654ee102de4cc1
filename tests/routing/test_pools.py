"""Several pools behind one listener: which of them gets a request, and what its members are told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from balancer.config.settings import Settings
from tests.support import wire
from tests.support.processes import serving
from tests.support.routed import TWO, named, routed
from tests.support.tls import issue, trusting
from tests.support.wire import Member

LIMIT = wire.LIMIT


@pytest.mark.usefixtures("each_way")
async def test_host_and_path_choose_the_pool(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO + "strip_prefix = true\n") as running:
        for host, target, name in (
            ("a", "/", "one"), ("A:80", "/two", "one"), ("x.a", "/", "one"), ("b", "/two/x", "two"),
            ("b", "/two", "two"),
        ):  # fmt: skip
            assert await running.name(target, host) == name
        assert [(it.pool, it.status) for it in running.records] == [
            (it, 200) for it in ("one", "one", "one", "two", "two")
        ]


@pytest.mark.usefixtures("each_way")
async def test_request_without_a_route_gets_404_with_a_token(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running:
        for method, more, body in (
            ("GET", "", b""),
            ("HEAD", "", b""),
            ("POST", "Content-Length: 5\r\n", b"12345"),
            ("POST", "Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\n0\r\n\r\n"),
        ):
            head, _, text = (await running.ask("/x", "b", method, more, body)).lower().partition("\r\n\r\n")
            assert head.startswith("http/1.1 404 ")
            assert "\r\nx-balancer-error: no_route" in head
            words = (
                f"404 no route leads from this host and path to a pool\nrequest id: {running.records[-1].id.decode()}\n"
            )
            assert text == ("" if method == "HEAD" else words)
        assert [(it.status, it.error, it.pool) for it in running.records] == [(404, "no_route", "")] * 4
        assert running.pools.stats
        assert running.pools.stats.errors == {"no_route": 4}


async def test_connection_goes_on_after_a_404(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running, running.client() as client:
        for _ in range(4):  # often enough to be known by its bytes
            for host, status in ((b"a", b"200"), (b"b", b"404")):
                await client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
                head = await client.head()
                assert head.startswith(b"HTTP/1.1 " + status)
                await client.until(b"\nrequest id: %b\n" % running.records[-1].id if status == b"404" else b"one")


async def test_body_that_is_not_read_ends_the_connection_after_the_404(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
        assert (await client.to_end()).endswith(b"to a pool\nrequest id: %b\n" % running.records[0].id)


@pytest.mark.usefixtures("each_front")
@pytest.mark.parametrize("target", ["/x/../two", "//two", "/x%2f..%2ftwo", "/two%2fx"])
async def test_path_that_leads_two_ways_is_refused(target: str, tmp_path: Path) -> None:
    async with routed(tmp_path, TWO + "[rest]\nalias = 'one'\n") as running:
        answer = (await running.ask(target, "b")).lower()
        assert answer.startswith("http/1.1 400 ")
        assert "\r\nx-balancer-error: malformed_request" in answer
        (record,) = running.records
        assert (record.error, record.member) == ("malformed_request", None)


async def test_absolute_target_of_another_host_is_refused(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running:
        assert await running.name("http://a/two", "a") == "one"
        assert (await running.name("http://a/two", "b")).startswith("400 ")
        assert await running.name("http://b/two?x", "b") == "two"


@pytest.mark.usefixtures("each_way")
async def test_prefix_is_taken_off_and_members_are_told(tmp_path: Path) -> None:
    async with Member(named("one")) as member:
        text = "[api]\nalias = 'one'\npath = '/api'\nstrip_prefix = true\n[one]\n"
        async with routed(tmp_path, text, members={"one": member}) as running:
            for target in ("/api/v1?x=1", "/api", "/api//evil.example/%2e%2e%2e", "/plain"):
                assert await running.name(target) == "one"
            await running.ask("/api/x", more="X-Forwarded-Prefix: /forged\r\n")
        received = b"".join(member.received).split(b"\r\n\r\n")[:-1]
        lines = [it.partition(b"\r\n")[0] for it in received]
        assert lines == [
            b"GET /v1?x=1 HTTP/1.1", b"GET / HTTP/1.1", b"GET /evil.example/%2e%2e%2e HTTP/1.1", b"GET /plain HTTP/1.1",
            b"GET /x HTTP/1.1",
        ]  # fmt: skip
        told = [[it for it in head.split(b"\r\n") if it.startswith(b"x-forwarded-prefix")] for head in received]
        assert told == [[b"x-forwarded-prefix: /api"]] * 3 + [[]] + [[b"x-forwarded-prefix: /api"]]
        assert [it.request.target for it in running.records][:2] == [b"/api/v1?x=1", b"/api"], (
            "the log has the client's"
        )


async def test_prefix_that_a_trusted_proxy_took_off_comes_first(tmp_path: Path) -> None:
    async with Member(named("one")) as member:
        text = "[one]\npath = '/api'\nstrip_prefix = true\n"
        networks = Settings.load({"BALANCER_TRUSTED_PROXIES": "127.0.0.0/8"}).trusted_proxies
        async with routed(tmp_path, text, members={"one": member}, trusted_proxies=networks) as running:
            await running.ask("/api/x", more="X-Forwarded-Prefix: /outer/\r\n")
        assert member.received[0].count(b"x-forwarded-prefix") == 1
        assert b"\r\nx-forwarded-prefix: /outer/api\r\n" in member.received[0]


async def test_each_pool_has_its_own_settings(tmp_path: Path) -> None:
    text = "[one]\nmax_body_bytes = 3\n[two]\npath = '/two'\nsticky_cookie = 'place'\n"
    async with routed(tmp_path, text) as running:
        large = "Content-Length: 5\r\n"
        assert "body_too_large" in await running.ask("/", method="POST", more=large, body=b"12345")
        answer = await running.ask("/two", method="POST", more=large, body=b"12345")
        assert answer.startswith("HTTP/1.1 200 ")
        assert "set-cookie: place=" in answer


async def test_routes_count_for_http2(tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    httpx = pytest.importorskip("httpx")
    async with Member(named("one")) as member:
        place = f"alias = 'one'\nupstream_port = {member.address.port}\n"
        (tmp_path / "routes.toml").write_text(f"[one]\nhost = 'localhost'\npath = '/one'\n{place}")
        files = issue(tmp_path)
        async with (
            serving(member, aliases=["one"], routes=str(tmp_path / "routes.toml"), http2="on", **files) as serve,
            httpx.AsyncClient(http2=True, verify=trusting(), trust_env=False) as client,
        ):
            found = await client.get(f"https://localhost:{serve.port}/one/x")
            assert (found.http_version, found.text) == ("HTTP/2", "one")
            for target, token in (("/x", "no_route"), ("/one%2fx", "malformed_request")):
                answer = await client.get(f"https://localhost:{serve.port}{target}")
                assert (answer.http_version, answer.headers["x-balancer-error"]) == ("HTTP/2", token)


async def test_log_lines_of_members_name_their_pool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with routed(tmp_path, TWO) as running:
        pool = running.pool("two")
        (member,) = pool.members.values()
        pool.drain(member)
        # A pool that comes with a change of routes says whose members these are before it gets requests.
        await running.reload(TWO + "[three]\nalias = 'two'\nhost = 'c'\npolicy = 'random'\n")
        await running.up()
    address = str(member.address)
    of_members = [line for line in caplog.messages if "DNS for" in line or "joining:" in line or address in line]
    assert all(line.startswith("pool ") for line in of_members)
    assert {
        "pool two: DNS for two: A: NOERROR, 1 endpoint",
        f"pool two: joining: {address}",
        f"pool two: {address} up: accepts connections",
        f"pool two: {address} drained by hand",
        "pool three: DNS for two: A: NOERROR, 1 endpoint",
        f"pool three: joining: {address}",
        f"pool three: {address} up: accepts connections",
    } <= set(of_members)
