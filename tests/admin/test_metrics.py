"""/metrics over its own socket, beside a balancer that serves requests: what was sent is what is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import dns.message
import dns.rcode
import httpx
import pytest

from balancer import __version__
from balancer.config.settings import Settings
from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from balancer.discovery import dns_client
from balancer.discovery.resolver import DnsResolver
from balancer.errors import LOG_ONLY, TOKENS
from balancer.frontend import client_registry
from balancer.telemetry.access_log import as_json
from balancer.types import Address
from tests.support.explained import CASES, POST
from tests.support.messages import LAST_GET as GET
from tests.support.metrics import Scrape, admin, lint
from tests.support.processes import serving
from tests.support.scripted import ScriptedResolver
from tests.support.wire import OK, Connection, Member, balance, eventually

KEPT = GET.replace(b"Connection: close\r\n", b"")


async def silent(connection: Connection) -> None:
    """A member that reads requests and says nothing."""
    await connection.to_end()


async def take(connection: Connection) -> None:
    """A member that takes bodies of four bytes and answers, on a connection that stays open."""
    while True:
        if (await connection.head()).startswith(b"POST"):
            await connection.exactly(4)
        await connection.send(OK)


async def test_bytes_sent_are_the_bytes_counted() -> None:
    async with Member(take) as one, Member(take) as two, balance(one, two) as running, admin(running) as scrape:
        async with running.client() as client:
            for request in [*8 * [KEPT], *4 * [POST.replace(b"Connection: close\r\n", b"")]]:
                await client.send(request)
                await client.until(b"\r\n\r\nok")
            await running.idle()
            it = await scrape()
            assert it.get("balancer_client_connections") == 1
        for member in (one, two):
            name = str(member.address)
            assert it.sum("balancer_member_requests_total", pool="apps", member=name, code="2xx") == 6
            assert it.get("balancer_member_request_duration_seconds_count", pool="apps", member=name) == 6
            assert it.get("balancer_member_state", pool="apps", member=name, state="up") == 1
        assert it.get("balancer_requests_total", pool="apps", method="GET", code="2xx") == 8
        assert it.get("balancer_requests_total", pool="apps", method="POST", code="2xx") == 4
        assert it.get("balancer_request_body_bytes_total", pool="apps") == 16
        assert it.get("balancer_response_body_bytes_total", pool="apps") == 24
        assert it.get("balancer_request_duration_seconds_count", pool="apps") == 12
        assert it.get("balancer_request_duration_seconds_sum", pool="apps") > 0
        assert it.get("balancer_upstream_requests_total", pool="apps") == 12
        assert it.get("balancer_upstream_connections_opened_total", pool="apps") == 2
        assert it.get("balancer_upstream_connections", pool="apps", state="idle") == 2
        assert it.get("balancer_members_available", pool="apps") == 2
        assert it.get("process_open_fds") > 5
        assert lint(it.text) == []


async def test_command_serves_them_on_its_admin_port() -> None:
    admin_port = free_port()
    async with (
        Member() as member,
        serving(member, admin=f"127.0.0.1:{admin_port}", access_log="off") as serve,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        for _ in range(3):
            assert (await client.get(f"http://127.0.0.1:{serve.port}/")).text == "ok"
        scraped = Scrape((await client.get(f"http://127.0.0.1:{admin_port}/metrics")).text)
    assert scraped.get("balancer_requests_total", pool="apps", method="GET", code="2xx") == 3
    assert scraped.get("balancer_client_connections") == 1
    assert scraped.labels("balancer_build_info", "version") == {__version__}


async def test_large_upload_is_counted_to_the_byte() -> None:
    body = bytes(200_000)

    async def swallow(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(len(body))
        await connection.send(OK)

    request = POST.replace(b"Content-Length: 4", b"Content-Length: %d" % len(body)).removesuffix(b"body")
    async with Member(swallow) as member, balance(member) as running, admin(running) as scrape:
        assert (await running.exchange(request + body)).endswith(b"ok")
        await running.idle()
        assert (await scrape()).get("balancer_request_body_bytes_total", pool="apps") == len(body)


async def test_request_that_waits_is_seen_waiting_and_counted_when_it_has_waited() -> None:
    resolver = ScriptedResolver()
    async with Member() as member, balance(resolve=resolver) as running, admin(running) as scrape:
        answer = asyncio.create_task(running.exchange(GET))
        await eventually(lambda: len(running.balancer.dispatcher.queue) == 1)
        it = await scrape()
        assert it.get("balancer_queued_requests", pool="apps") == 1
        assert it.get("balancer_requests_in_flight", pool="apps") == 1
        assert it.get("balancer_members_available", pool="apps") == 0
        resolver.found(member.address)
        assert (await answer).endswith(b"ok")
        await running.idle()
        it = await scrape()
        assert it.get("balancer_queued_requests", pool="apps") == 0
        assert it.get("balancer_queue_duration_seconds_count", pool="apps") == 1
        held = running.records[0].queued
        assert it.get("balancer_queue_duration_seconds_sum", pool="apps") == pytest.approx(held)


async def test_member_that_is_gone_is_a_retry_and_a_state_and_no_error() -> None:
    async with (
        Member() as one,
        Member() as two,
        balance(one, two, health_interval=60) as running,
        admin(running) as scrape,
    ):
        await one.stop()
        for _ in range(3):
            assert (await running.exchange(GET)).endswith(b"ok")
        await running.idle()
        it = await scrape()
        gone = str(one.address)
        assert it.get("balancer_failed_attempts_total", pool="apps", reason="refused") == 1
        assert it.get("balancer_member_failed_attempts_total", pool="apps", member=gone, reason="refused") == 1
        assert it.get("balancer_member_state", pool="apps", member=gone, state="down") == 1
        assert it.get("balancer_state_changes_total", pool="apps", state="down", event="refused") == 1
        assert it.sum("balancer_errors_total", pool="apps") == 0
        assert it.sum("balancer_requests_total", pool="apps", code="2xx") == 3


@pytest.mark.usefixtures("each_way")
async def test_latency_of_a_member_is_without_the_queue_and_attempts_at_others() -> None:
    async def die_late(connection: Connection) -> None:
        await connection.head()
        await asyncio.sleep(0.6)
        connection.reset()

    resolver = ScriptedResolver()
    async with (
        Member(die_late) as bad,
        Member() as good,
        balance(resolve=resolver, resolve_interval=0.1) as running,
        admin(running) as scrape,
    ):
        waiting = asyncio.create_task(running.exchange(GET))
        await eventually(lambda: running.balancer.queued == 1)
        await asyncio.sleep(0.6)
        resolver.found(good.address)
        assert (await waiting).endswith(b"ok")
        resolver.found(bad.address, good.address)
        await running.available(2)
        while not bad.received:
            assert (await running.exchange(GET)).endswith(b"ok")
        await running.idle()
        it = await scrape()
        name = "balancer_member_request_duration_seconds"
        assert it.get("balancer_request_duration_seconds_sum", pool="apps") > 1.2, "clients have waited"
        assert it.get(f"{name}_count", pool="apps", member=str(good.address)) == len(running.records)
        assert it.get(f"{name}_sum", pool="apps", member=str(good.address)) < 0.6
        assert it.get(f"{name}_count", pool="apps", member=str(bad.address)) == 0


async def test_member_that_answers_late_has_that_in_its_latency_however_the_request_ends() -> None:
    async with Member(silent) as member, balance(member, response_timeout=0.5) as running:
        assert (await running.exchange(GET)).startswith(b"HTTP/1.1 504")
        assert running.records[0].attempt_duration > 0.4
    async with Member() as member, balance(member, health_interval=60, queue_timeout=0.0) as running:
        await member.stop()
        assert (await running.exchange(GET)).startswith(b"HTTP/1.1 503")
        assert (running.records[0].member, running.records[0].attempt_duration) == (member.address, 0.0)


async def test_tunnel_is_a_request_and_no_latency() -> None:
    async def switch(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nhello")
        await connection.to_end()

    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"
    async with Member(switch) as member, balance(member) as running, admin(running) as scrape:
        async with running.client() as client:
            await client.send(request)
            await client.until(b"hello")
            assert (await scrape()).get("balancer_upstream_connections", pool="apps", state="active") == 1
        await running.idle()
        it = await scrape()
        assert it.get("balancer_requests_total", pool="apps", method="GET", code="1xx") == 1
        assert it.get("balancer_request_duration_seconds_count", pool="apps") == 0
        assert it.get("balancer_response_body_bytes_total", pool="apps") == len(b"hello")


async def test_members_that_have_left_leave_no_series() -> None:
    resolver = ScriptedResolver()
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(Member()) for _ in range(3)]
        running = await stack.enter_async_context(balance(resolve=resolver, resolve_interval=0.1))
        scrape = await stack.enter_async_context(admin(running))
        for member in members:
            resolver.found(member.address)
            await eventually(lambda: list(running.balancer.membership.members) == [member.address])  # noqa: B023
            await running.available(1)
            assert (await running.exchange(GET)).endswith(b"ok")
            await running.idle()
            it = await scrape()
            assert it.labels("balancer_member_requests_total", "member") == {str(member.address)}
            assert it.labels("balancer_member_state", "member") == {str(member.address)}
        assert it.sum("balancer_requests_total", pool="apps", code="2xx") == 3


@pytest.mark.parametrize("token", sorted(CASES))
async def test_every_failure_is_known_by_its_token_its_member_and_its_tries(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    case = CASES[token]
    async with AsyncExitStack() as stack:
        members: list[Member | Address] = []
        if case.script:
            members.append(await stack.enter_async_context(Member(case.script)))
        running = await stack.enter_async_context(balance(*members, **case.settings))
        scrape = await stack.enter_async_context(admin(running))
        answer = await case.act(running)
        await eventually(lambda: any(it.error == token for it in running.records))
        record = next(it for it in running.records if it.error == token)
        it = await scrape()
    if token in TOKENS:
        assert answer.startswith(b"HTTP/1.1 %d " % case.status)
        assert b"x-balancer-error: %s\r\n" % token.encode() in answer
    line = json.loads(as_json(record, 0.0))
    if token in TOKENS:
        assert f"\r\nx-request-id: {line['request_id']}\r\n".encode() in answer
        assert answer.endswith(f"\nrequest id: {line['request_id']}\n".encode())
    assert (line["error"], line["member"]) == (token, str(record.member or ""))
    assert bool(line.get("reason")) == (token in TOKENS)
    assert all(it.startswith(f"{record.member}: ") for it in line.get("attempts", ()))
    assert record.status == case.status
    assert tuple(attempt.reason for attempt in record.attempts) == case.attempts
    assert (record.member is not None) == case.member
    assert [str(attempt.member) for attempt in record.attempts] == [str(record.member)] * len(case.attempts)
    assert (record.queued > 0) == case.queued
    assert it.get("balancer_errors_total", pool="apps", error=token) == 1
    assert it.sum("balancer_errors_total", pool="apps") == 1
    for reason in case.attempts:
        assert it.get("balancer_failed_attempts_total", pool="apps", reason=reason) == 1
        assert (
            it.get("balancer_member_failed_attempts_total", pool="apps", member=str(record.member), reason=reason) == 1
        )
    assert it.get("balancer_queue_duration_seconds_count", pool="apps") == case.queued


def test_every_failure_is_tried() -> None:
    # (Without routes there is always one.)
    assert CASES.keys() | {"no_route"} == TOKENS | LOG_ONLY


async def until(scrape: Callable[[], Awaitable[Scrape]], true: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape for which something is true."""
    async with asyncio.timeout(10):
        while not true(it := await scrape()):
            await asyncio.sleep(0.02)
    return it


async def refuse(query: dns.message.Message, response: dns.message.Message) -> None:
    response.set_rcode(dns.rcode.SERVFAIL)


async def say_nothing(query: dns.message.Message, response: dns.message.Message) -> None:
    await asyncio.Event().wait()


async def test_every_outcome_of_dns_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_client, "QUERY_TIMEOUT", 0.1)
    zone = Zone()
    async with AsyncExitStack() as stack:
        member = await stack.enter_async_context(Member())
        zone.records["apps"] = [("A", member.address.host)]
        server = await stack.enter_async_context(DnsServer(zone))
        resolve = DnsResolver(Settings(resolver=server.address, upstream_port=member.address.port))
        running = await stack.enter_async_context(balance(resolve=resolve, resolve_interval=0.1))
        scrape = await stack.enter_async_context(admin(running))

        async def comes(outcome: str, times: int = 1) -> Scrape:
            labels = {"pool": "apps", "record": "A", "outcome": outcome}
            before = (await scrape()).get("balancer_dns_answers_total", **labels)
            return await until(scrape, lambda it: it.get("balancer_dns_answers_total", **labels) >= before + times)

        await running.available(1)
        it = await comes("NOERROR")
        assert it.get("balancer_dns_answer_age_seconds", pool="apps", record="A") < 1
        assert it.get("balancer_dns_addresses", pool="apps", record="A") == 1
        assert it.get("balancer_dns_truncated_answers_total", pool="apps", record="A") == 0

        server.truncates = True
        name = "balancer_dns_truncated_answers_total"
        await until(scrape, lambda it: it.get(name, pool="apps", record="A") > 0)
        server.truncates = False

        server.answerer = refuse
        await comes("SERVFAIL")
        server.answerer = say_nothing
        it = await comes("timeout", 3)
        age = it.get("balancer_dns_answer_age_seconds", pool="apps", record="A")
        it = await comes("timeout", 3)
        assert it.get("balancer_dns_answer_age_seconds", pool="apps", record="A") > age
        await server.stop()
        it = await comes("error")
        # Nothing of this has taken the member away.
        assert it.get("balancer_members_available", pool="apps") == 1
        assert it.get("balancer_dns_changes_total", pool="apps") == 1

        await server.start()
        server.answerer = zone
        zone.records["apps"] = []
        await comes("empty", 3)
        it = await until(scrape, lambda it: it.get("balancer_dns_changes_total", pool="apps") == 2)
        assert it.get("balancer_state_changes_total", pool="apps", state="leaving", event="left_dns") == 1
        assert it.sum("balancer_members", pool="apps") == 0
        del zone.records["apps"]
        await comes("NXDOMAIN")


async def test_every_way_out_and_back_is_told_apart() -> None:
    status = b"204 No Content"

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)

    async with (
        Member(script) as member,
        balance(member, health_path="/ready", health_interval=0.1) as running,
        admin(running) as scrape,
    ):
        name = str(member.address)

        async def comes(state: str, event: str) -> None:
            def true(it: Scrape) -> bool:
                return (
                    it.get("balancer_state_changes_total", pool="apps", state=state, event=event) >= 1
                    and it.get("balancer_member_state_changes_total", pool="apps", member=name, state=state) >= 1
                )

            await until(scrape, true)

        await comes("up", "probe_ok")
        status = b"503 Draining"
        await comes("draining", "probe_draining")
        status = b"204 No Content"
        await running.available(1)
        status = b"500 Oops"
        await comes("suspect", "probe_failed")
        await comes("down", "probes_failed")
        status = b"204 No Content"
        await running.available(1)
        await member.stop()
        await comes("down", "refused")
        it = await scrape()
        assert it.get("balancer_member_state", pool="apps", member=name, state="down") == 1
        assert it.get("balancer_members", pool="apps", state="down") == 1
