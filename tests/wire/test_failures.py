"""Members that refuse, die, lie or say nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from balancer.config.settings import Settings
from balancer.demo.system import free_port
from balancer.dispatch import course
from balancer.members.health import HealthEvent, State
from balancer.members.probe import health_request
from balancer.types import Address
from tests.support.messages import LAST_GET as GET
from tests.support.scripted import ScriptedResolver
from tests.support.wire import LIMIT, OK, Connection, Member, Script, balance, eventually

pytestmark = pytest.mark.usefixtures("each_way")

POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"


async def hang_up(connection: Connection) -> None:
    await connection.head()
    connection.reset()


async def test_requests_on_one_connection_go_to_members_in_turn() -> None:
    async with Member() as one, Member() as two, balance(one, two) as running, running.client() as client:
        for _ in range(6):
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.head()
            await client.exactly(2)
        assert [member.received[0].count(b"GET /") for member in (one, two)] == [3, 3]


@pytest.mark.parametrize("request_bytes", [GET, POST])
async def test_member_that_is_gone_is_found_out_by_a_request_that_does_not_notice(request_bytes: bytes) -> None:
    async def script(connection: Connection) -> None:
        head = await connection.head()
        if head.startswith(b"POST"):
            await connection.exactly(4)
        await connection.send(OK)

    async with Member(script) as one, Member(script) as two, balance(one, two, health_interval=60) as running:
        await one.stop()
        for _ in range(3):
            assert (await running.exchange(request_bytes)).endswith(b"\r\n\r\nok")
        assert running.balancer.membership.members[one.address].state is State.DOWN
        assert sum(len(record.attempts) for record in running.records) == 1


async def test_member_that_comes_back_is_used_again() -> None:
    async with Member() as member, balance(member, health_interval=0.1) as running:
        await member.stop()
        await running.available(0)
        await member.start_again()
        assert (await running.exchange(GET)).endswith(b"ok")


async def test_get_that_a_member_dropped_is_repeated_once_elsewhere() -> None:
    async with Member(hang_up) as bad, Member() as good, balance(bad, good) as running:
        for _ in range(4):
            assert (await running.exchange(GET)).endswith(b"ok")
        assert sum(len(record.attempts) for record in running.records) == len(bad.received) > 0


async def test_get_that_a_member_dropped_late_is_repeated_all_the_same() -> None:
    async def drop_late(connection: Connection) -> None:
        await connection.head()
        await asyncio.sleep(0.4)
        connection.reset()

    limits: dict[str, Any] = {"queue_timeout": 0.1, "connect_timeout": 0.1}
    async with Member(drop_late) as bad, Member() as good, balance(bad, good, **limits) as running:
        for _ in range(2):
            assert (await running.exchange(GET)).endswith(b"ok")
        assert bad.received


@pytest.mark.parametrize(("settings", "count"), [({}, 3), *(({"retries": it}, 1 + it) for it in (0, 1, 5))])
async def test_get_is_repeated_as_often_as_retries_says(settings: dict[str, Any], count: int) -> None:
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(Member(hang_up)) for _ in range(7)]
        async with balance(*members, **settings) as running:
            answer = await running.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"x-balancer-error: member_failed\r\n" in answer
        assert sum(len(member.received) for member in members) == count
        assert (running.records[0].retries, len(running.records[0].attempts)) == (count - 1, count)


async def test_request_that_kills_a_member_over_a_connection_used_before_kills_no_other_without_retries() -> None:
    async def script(connection: Connection) -> None:
        while b"/crash" not in await connection.head():
            await connection.send(OK)

    async with Member(script) as one, Member(script) as two, balance(one, two, retries=0) as running:
        for _ in range(4):
            assert (await running.exchange(GET)).endswith(b"ok")
        answer = await running.exchange(GET.replace(b"/", b"/crash", 1))
        assert answer.startswith(b"HTTP/1.1 502")
        assert sum(it.count(b"/crash") for it in one.received + two.received) == 1
        for words in (answer.decode(), running.records[-1].attempts[0].words):
            assert "reused" not in words
            assert "before a response" in words or "without sending a response" in words


async def test_retries_do_not_count_attempts_at_members_that_never_had_the_request() -> None:
    async with Member() as gone, Member() as good, balance(gone, good, retries=0, health_interval=60) as running:
        await gone.stop()
        for _ in range(3):
            assert (await running.exchange(GET)).endswith(b"ok")
        assert sum(len(record.attempts) for record in running.records) == 1


async def test_post_that_a_member_dropped_is_not_repeated() -> None:
    async with Member(hang_up) as one, Member(hang_up) as two, balance(one, two) as running:
        answer = await running.exchange(POST)
        assert answer.startswith(b"HTTP/1.1 502")
        assert len(one.received + two.received) == 1


async def test_small_put_is_repeated_with_its_whole_body() -> None:
    async def take(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(4)
        await connection.send(OK)

    async def drop(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(4)
        connection.reset()

    async with Member(drop) as bad, Member(take) as good, balance(bad, good) as running:
        for _ in range(2):
            assert (await running.exchange(POST.replace(b"POST", b"PUT"))).endswith(b"ok")
        assert all(it.endswith(b"body") for it in good.received)


HEAD_ONLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NOT_HTTP = b"SSH-2.0-OpenSSH\r\n\r\n"
NOTHING_TO_PASS_ON = pytest.mark.parametrize(
    "sent",
    [HEAD_ONLY, CHUNKED_HEAD, CHUNKED_HEAD + b"2\r\n", HEAD_ONLY[:-2], HEAD_ONLY[:20], NOT_HTTP],
    ids=["head", "chunked head", "chunk size", "half head", "status line", "not HTTP"],
)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head waits longer for its body than a busy machine takes to say that the connection has ended."""
    monkeypatch.setattr(course, "HEAD_DELAY", LIMIT)


def fails_after(sent: bytes) -> Script:
    """A member that ends the connection behind these bytes of a response."""

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(sent)

    return script


@NOTHING_TO_PASS_ON
@pytest.mark.usefixtures("patient")
async def test_get_is_repeated_where_nothing_of_the_response_was_passed_on(sent: bytes) -> None:
    async with Member(fails_after(sent)) as bad, Member() as good, balance(bad, good) as running:
        for _ in range(4):
            assert (await running.exchange(GET)).endswith(b"\r\n\r\nok")
        assert sum(len(record.attempts) for record in running.records) == len(bad.received) > 0


@NOTHING_TO_PASS_ON
@pytest.mark.usefixtures("patient")
async def test_post_is_told_where_nothing_of_the_response_was_passed_on(sent: bytes) -> None:
    async with Member(fails_after(sent)) as one, Member(fails_after(sent)) as two, balance(one, two) as running:
        answer = await running.exchange(POST)
        assert answer.startswith(b"HTTP/1.1 502")
        assert len(one.received + two.received) == 1


async def test_head_of_a_response_whose_body_is_late_is_passed_on_before_it() -> None:
    go_on = asyncio.Event()

    async def take_time(connection: Connection) -> None:
        await connection.head()
        await connection.send(HEAD_ONLY)
        await go_on.wait()
        await connection.send(b"ok")

    async with Member(take_time) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200")
        go_on.set()
        assert await client.exactly(2) == b"ok"


async def test_answer_that_is_not_http_is_a_502() -> None:
    async def babble(connection: Connection) -> None:
        await connection.head()
        await connection.send(NOT_HTTP)

    async with Member(babble) as member, balance(member) as running:
        answer = await running.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"x-balancer-error: bad_response\r\n" in answer


async def test_silence_is_a_504() -> None:
    async def say_nothing(connection: Connection) -> None:
        await connection.to_end()

    async with Member(say_nothing) as member, balance(member, response_timeout=0.2) as running:
        answer = await running.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"x-balancer-error: response_timeout\r\n" in answer


async def test_silence_in_mid_body_breaks_the_response() -> None:
    async def stall(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await connection.to_end()

    async with Member(stall) as member, balance(member, stream_idle_timeout=0.2) as running:
        assert (await running.exchange(GET)).endswith(b"half")
        assert running.records[0].error == "truncated"


async def test_503_after_the_queue_time_out_says_why_no_member_is_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    nowhere = Address("127.0.0.1", free_port())
    async with balance(nowhere, queue_timeout=0.5, wait=False) as running:
        answer = await running.exchange(GET)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"x-balancer-error: no_member\r\n" in answer
    assert b"retry-after: 1\r\n" in answer
    words = b"503 no member became available in time (apps: 1 member, %s: connection refused)" % str(nowhere).encode()
    assert answer.partition(b"\r\n\r\n")[2].splitlines()[0] == words
    assert caplog.messages.count(f"{nowhere} joining: connection refused") == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "GET /ready: 400 is none of 200-299,503"),
        (b"HTTP/1.1 301 Moved\r\n\r\n", "GET /ready: 301 is none of 200-299,503"),
        (b"220 mail.example ESMTP\r\n", "GET /ready: not an HTTP answer"),
        (b"", "GET /ready: the connection was closed without an answer"),
        (None, "GET /ready: no answer within 0.3 s"),
    ],
    ids=lambda it: (it or b"nothing")[:12].decode() if not isinstance(it, str) else "",
)
async def test_reason_of_a_new_member_is_what_its_last_probe_came_to(answer: bytes | None, reason: str) -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        if answer is None:
            await connection.to_end()
        else:
            await connection.send(answer)

    settings: dict[str, Any] = {"health_path": "/ready", "health_timeout": 0.3, "queue_timeout": 0.1}
    async with Member(script) as member, balance(member, wait=False, **settings) as running:
        members = running.balancer.membership.members
        await eventually(lambda: [(it.state, it.reason) for it in members.values()] == [(State.JOINING, reason)])
        assert f"{member.address}: {reason})".encode() in await running.exchange(GET)


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, b"apps"),
        ({"alias": "shop.example."}, b"shop.example"),
        ({"alias": "_http._tcp.shop.example"}, b"shop.example"),
        ({"health_host": "www.shop.example:8443"}, b"www.shop.example:8443"),
    ],
    ids=lambda it: "-".join(it.values()) if isinstance(it, dict) else "",
)
async def test_probe_names_the_host_that_users_do_and_the_listeners_scheme(
    settings: dict[str, str], host: bytes
) -> None:
    async with Member() as member, balance(member, health_path="/ready", **settings):  # type: ignore[arg-type]
        (head,) = member.received[:1]
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"get /ready http/1.1"
    assert b"host: " + host in lines
    assert b"x-forwarded-proto: http" in lines


def test_probe_of_a_tls_listener_says_https() -> None:
    assert b"X-Forwarded-Proto: https\r\n" in health_request(Settings(tls_cert="a.pem", tls_key="a.key"))
    assert b"\r\nHost: [fd00::2]\r\n" in health_request(Settings(alias="fd00::2"))


async def test_queue_of_held_requests_is_bounded_and_served_when_a_member_comes() -> None:
    resolver = ScriptedResolver()
    async with Member() as member, balance(resolve=resolver, queue_timeout=30, queue_max=2) as running:
        held = [asyncio.create_task(running.exchange(GET)) for _ in range(2)]
        await eventually(lambda: len(running.balancer.dispatcher.queue) == 2)
        refused = await running.exchange(GET)
        assert b"x-balancer-error: queue_full\r\n" in refused
        resolver.found(member.address)
        assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*held))


async def test_health_path_decides_who_is_up() -> None:
    statuses = {"one": b"204 No Content", "two": b"500 Oops"}

    def member(name: str) -> Member:
        async def script(connection: Connection) -> None:
            while True:
                head = await connection.head()
                status = statuses[name] if head.startswith(b"GET /ready ") else b"200 OK"
                await connection.send(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)

        return Member(script)

    async with (
        member("one") as one,
        member("two") as two,
        balance(one, two, health_path="/ready", health_interval=0.1, wait=False) as running,
    ):
        await running.available(1)
        members = running.balancer.membership.members
        assert members[two.address].state is State.JOINING
        statuses["two"] = b"200 OK"
        await running.available(2)
        statuses["one"] = b"503 Draining"
        await eventually(lambda: members[one.address].state is State.DRAINING)
        assert members[one.address].reason == "GET /ready: 503"


async def test_member_that_begins_to_close_its_connections_is_avoided() -> None:
    draining = asyncio.Event()

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(
                OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if draining.is_set() else OK
            )

    async with Member(script) as one, Member() as two, balance(one, two, health_interval=60) as running:
        for _ in range(2):
            await running.exchange(GET)
        draining.set()
        for _ in range(6):
            await running.exchange(GET)
        assert running.balancer.membership.members[one.address].state is State.SUSPECT
        assert running.balancer.membership.available == (running.balancer.membership.members[two.address],)


async def test_member_that_always_closes_is_not_suspected() -> None:
    async def once(connection: Connection) -> None:
        await connection.head()
        await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async with Member(once) as member, balance(member) as running:
        for _ in range(5):
            await running.exchange(GET)
        assert running.balancer.membership.members[member.address].state is State.UP


@pytest.mark.parametrize(
    "status", [b"400 Bad Request", b"413 Content Too Large", b"431 Request Header Fields Too Large"]
)
async def test_member_that_closes_behind_requests_it_refuses_is_not_suspected(status: bytes) -> None:
    async def script(connection: Connection) -> None:
        while True:
            bad = b"x-bad" in await connection.head()
            refusal = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status
            await connection.send(refusal if bad else OK)

    async with Member(script) as one, Member() as two, balance(one, two, health_interval=60) as running:
        for _ in range(2):
            await running.exchange(GET)
        for _ in range(10):
            await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nX-Bad: 1\r\n\r\n"))
        assert running.balancer.membership.members[one.address].state is State.UP


@pytest.mark.parametrize("path", ["/ready", None])
async def test_member_that_refused_a_request_comes_back_after_rise_probes(path: str | None) -> None:
    """Its many probes that succeeded before it went do not count."""
    settings: dict[str, Any] = {"health_path": path, "health_interval": 0.1, "health_rise": 3}
    async with Member() as other, Member() as one, balance(one, other, **settings) as running:
        member = running.balancer.membership.members[one.address]
        before = member.probes
        await eventually(lambda: member.probes >= before + 5)
        reasons: list[str] = []
        running.balancer.membership.on_reason = lambda it: reasons.append(it.reason)
        running.balancer.membership.observe(
            member, HealthEvent.REFUSED, running.balancer.clock(), "refused", by_request=True
        )
        assert member.state is State.DOWN
        await eventually(lambda: member.state is State.UP)
        ok = "GET /ready: 200" if path else "accepts connections"
        assert [it for it in reasons if "DNS" not in it] == [f"{ok}, {count} of 3 probes in a row" for count in (1, 2)]


async def test_reason_of_a_member_whose_body_lacks_the_text_is_on_the_page_and_in_the_answer() -> None:
    bodies = {"text": b"starting"}

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            body = bodies["text"]
            await connection.send(b"HTTP/1.1 401 A\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    settings: dict[str, Any] = {"health_path": "/ready", "health_body": "ready", "health_status": frozenset({401})}
    words = "GET /ready: 401, but the body lacks 'ready'"
    async with (
        Member(script) as member,
        balance(member, wait=False, health_interval=0.1, queue_timeout=0.1, **settings) as running,
    ):
        members = running.balancer.membership.members
        await eventually(lambda: [it.reason for it in members.values()] == [words])
        assert f"{member.address}: {words})".encode() in await running.exchange(GET)
        bodies["text"] = b"ready"
        await running.available(1)
        assert members[member.address].reason == "GET /ready: 401"
        bodies["text"] = b"stopping"
        await eventually(lambda: members[member.address].state is State.DOWN)
        assert members[member.address].reason == words
