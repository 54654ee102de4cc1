"""Requests that a member has answered with a status of RETRY_STATUS, and that others carry out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from balancer.dispatch import retry, status_retry
from balancer.dispatch.replay import REPLAY_BYTES
from balancer.hooks import HookRequest, HookResponse
from balancer.upstream import drain
from balancer.upstream.base import Upstream
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.native import NativeUpstream
from tests.support import wire
from tests.support.doors import Reply
from tests.support.hooked import response_hook
from tests.support.messages import LAST_GET as GET
from tests.support.routed import routed
from tests.support.ways import WAYS, Way
from tests.support.wire import LIMIT, OK, Connection, Member, Running, Script, balance, eventually

KEY = (b"Idempotency-Key", b"1")
RETRIED: dict[str, Any] = {"retry_status": frozenset({502, 503})}
BUSY = Reply(503, body=b"busy")

every_way = pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])


def answer(status: int, body: bytes = b"busy", lines: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Words\r\n%bContent-Length: %d\r\n\r\n%b" % (status, lines, len(body), body)


def post(size: int, *fields: tuple[bytes, bytes]) -> bytes:
    """A POST with a body of so many bytes."""
    lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    return b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%bContent-Length: %d\r\n\r\n%b" % (
        lines,
        size,
        b"x" * size,
    )


async def whole(connection: Connection) -> bytes:
    """The head of the next request, once its body has come too."""
    head = await connection.head()
    if b"transfer-encoding: chunked" in head:
        await connection.until(b"0\r\n\r\n")
    elif b"content-length: " in head:
        await connection.exactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return head


def says(*answers: bytes) -> Script:
    """A member that answers requests in this way, and after that always as the last time; HEAD without a body."""
    left = list(answers)

    async def script(connection: Connection) -> None:
        while True:
            head = await whole(connection)
            response = left.pop(0) if len(left) > 1 else left[0]
            await connection.send(
                response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if head[:5] == b"HEAD " else response
            )

    return script


def asked(*members: Member) -> int:
    """Requests that these members have got."""
    return sum(received.count(b" HTTP/1.1\r\n") for member in members for received in member.received)


def reasons(running: Any) -> list[str]:
    return [attempt.reason for record in running.records for attempt in record.attempts]


@every_way
async def test_member_that_answers_503_to_everything_costs_gets_nothing(way: Way, tmp_path: Path) -> None:
    async with (
        Member(says(answer(503))) as bad,
        Member(says(OK)) as good,
        way.open(tmp_path, bad, good, **RETRIED) as it,
    ):
        for method in (b"GET",) * 6 + (b"DELETE", b"OPTIONS", b"PUT"):
            assert await it.ask(method=method) == Reply(200)
        assert (asked(bad), asked(good)) == (len(reasons(it)), 9)
        assert set(reasons(it)) == {"status"}
        first = next(record for record in it.records if record.attempts)
        assert (str(first.attempts[0]), first.retries, first.status) == (f"{bad.address}: answered 503", 1, 200)
        assert first.member == good.address


@every_way
async def test_post_without_a_key_is_never_repeated(way: Way, tmp_path: Path) -> None:
    async with (
        Member(says(answer(503))) as bad,
        Member(says(OK)) as good,
        way.open(tmp_path, bad, good, **RETRIED) as it,
    ):
        replies = [await it.ask(method=b"POST", body=b"body") for _ in range(4)]
        assert sorted(reply.status for reply in replies) == [200, 200, 503, 503]
        assert all(reply.body == b"busy" for reply in replies if reply == BUSY)
        assert (asked(bad), asked(good), reasons(it)) == (2, 2, [])
        await it.ask(method=b"POST", body=b"body", fields=[(b"Idempotency-Key", b"")])
        await it.ask(method=b"POST", body=b"body", fields=[(b"Idempotency-Key", b"")])
        assert reasons(it) == []


@every_way
async def test_post_with_a_key_runs_once_where_it_succeeds(way: Way, tmp_path: Path) -> None:
    async with (
        Member(says(answer(503))) as bad,
        Member(says(OK)) as good,
        way.open(tmp_path, bad, good, **RETRIED) as it,
    ):
        for number in range(4):
            body = b"body %d" % number
            assert await it.ask(method=b"POST", body=body, fields=[KEY]) == Reply(200)
            assert b"".join(good.received).count(body) == 1
        assert asked(bad) == len(reasons(it)) > 1


async def test_header_of_the_key_has_the_name_of_the_setting() -> None:
    settings = {**RETRIED, "idempotency_header": "X-Request-Key"}
    async with Member(says(answer(503))) as bad, Member(says(OK)) as good, balance(bad, good, **settings) as running:
        for _ in range(2):
            assert b" 200 " in (await running.exchange(post(4, (b"x-request-key", b"1"))))[:15]
        answers = [await running.exchange(post(4, KEY)) for _ in range(2)]
        assert sorted(reply[9:12] for reply in answers) == [b"200", b"503"]


# What passes on.


async def all_bad(count: int, **settings: Any) -> tuple[bytes, list[int], Running]:
    """The answer to a GET of members that all answer 503, what each of them got, and the balancer."""
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(Member(says(answer(503)))) for _ in range(count)]
        async with balance(*members, **RETRIED | settings) as running:
            reply = await running.exchange(GET)
        return reply, sorted(asked(member) for member in members), running


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("count", "settings", "each"),
    [
        (1, {}, [1]),
        (2, {}, [1, 1]),
        (5, {}, [0, 0, 1, 1, 1]),
        (5, {"retries": 0}, [0, 0, 0, 0, 1]),
        (7, {"retries": 5}, [0, 1, 1, 1, 1, 1, 1]),
        (3, {"retry_status": frozenset({502})}, [0, 0, 1]),
    ],
)
async def test_last_response_passes_on_with_its_body(count: int, settings: dict[str, Any], each: list[int]) -> None:
    reply, got, running = await all_bad(count, **settings)
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert reply.endswith(b"\r\n\r\nbusy")
    assert got == each
    (record,) = running.records
    assert (len(record.attempts), record.retries, record.error) == (sum(each) - 1, sum(each) - 1, "")


async def test_response_passes_on_where_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.Budget, "has_room", lambda self, now: False)
    reply, got, _ = await all_bad(3)
    assert reply.endswith(b"busy")
    assert got == [0, 0, 1]


async def test_repeat_by_status_costs_the_budget_and_a_response_that_passes_on_does_not() -> None:
    for count in (1, 3):
        _, _, running = await all_bad(count)
        assert sum(running.balancer.dispatcher._budget._repeats) == count - 1


async def test_response_passes_on_where_the_body_is_gone() -> None:
    request = post(REPLAY_BYTES + 1, KEY).replace(b"POST", b"PUT")
    async with (
        Member(says(answer(503))) as one,
        Member(says(answer(503))) as two,
        balance(one, two, **RETRIED) as running,
    ):
        assert (await running.exchange(request)).endswith(b"busy")
        assert asked(one, two) == 1
        assert (await running.exchange(request.replace(b"%d" % (REPLAY_BYTES + 1), b"%d" % REPLAY_BYTES))).endswith(
            b"busy"
        )
        assert asked(one, two) == 3


async def test_early_response_passes_on_before_the_body_has_come() -> None:
    async def refuse(connection: Connection) -> None:
        await connection.head()
        await connection.send(answer(503))
        await connection.to_end()

    async with Member(refuse) as one, Member(refuse) as two, balance(one, two, **RETRIED) as running:
        async with running.client() as client:
            await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            assert (await client.head()).startswith(b"HTTP/1.1 503 ")
            assert await client.exactly(4) == b"busy"
        assert asked(one, two) == 1


async def test_response_passes_on_where_the_other_members_are_busy() -> None:
    go_on = asyncio.Event()

    async def busy(connection: Connection) -> None:
        await connection.head()
        await go_on.wait()
        await connection.send(OK)

    limit: dict[str, Any] = {"max_requests_per_member": 1}
    async with (
        Member(busy) as good,
        Member(says(answer(503))) as bad,
        balance(good, bad, **RETRIED, **limit) as running,
    ):
        first = [asyncio.create_task(running.exchange(GET)) for _ in range(2)]
        await eventually(lambda: asked(good) == 1)
        assert (await running.exchange(GET)).endswith(b"busy")
        go_on.set()
        await asyncio.gather(*first)


async def test_response_that_is_dropped_does_not_meet_hooks() -> None:
    seen: list[int] = []

    def note(request: HookRequest, response: HookResponse) -> None:
        seen.append(response.status)

    hooks = [response_hook(note)]
    async with (
        Member(says(answer(503))) as bad,
        Member(says(OK)) as good,
        balance(bad, good, hooks=hooks, **RETRIED) as it,
    ):
        async with it.client() as client:
            for _ in range(4):
                await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.head()
                await client.exactly(2)
        assert seen == [200] * 4
        assert asked(bad) > 1


# Retry-After.


@pytest.mark.parametrize("value", [b"0", b"Mon, 23 Nov 2026 08:00:00 GMT"])
@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.usefixtures("each_way")
async def test_member_that_is_back_in_time_is_asked_again(value: bytes, limit: int) -> None:
    script = says(answer(503, lines=b"Retry-After: %b\r\n" % value), OK)
    settings = {**RETRIED, "max_requests_per_member": limit}
    async with Member(script) as member, balance(member, **settings) as running:
        assert (await running.exchange(GET)).endswith(b"ok")
        assert reasons(running) == ["status"]


async def test_retry_after_is_waited_for_where_all_members_have_answered_so() -> None:
    later = answer(503, lines=b"Retry-After: 1\r\n")
    async with Member(says(later, OK)) as one, Member(says(later, OK)) as two, balance(one, two, **RETRIED) as running:
        began = monotonic()
        assert (await running.exchange(GET)).endswith(b"ok")
        assert monotonic() - began > 0.9
        assert asked(one, two) == 3


@pytest.mark.parametrize("lines", [b"", b"Retry-After: 2\r\n", b"Retry-After: soon\r\n", b"Retry-After: -1\r\n"])
async def test_response_passes_on_without_a_retry_after_of_a_second_at_most(lines: bytes) -> None:
    async with Member(says(answer(503, lines=lines), OK)) as member, balance(member, **RETRIED) as running:
        assert (await running.exchange(GET)).endswith(b"busy")
        assert asked(member) == 1


async def test_member_that_has_not_been_tried_gets_the_request_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_retry, "WAIT_MAX", 3600.0)
    later = says(answer(503, lines=b"Retry-After: 3600\r\n"))
    async with Member(later) as bad, Member(says(OK)) as good, balance(bad, good, **RETRIED) as running:
        for _ in range(4):
            assert (await running.exchange(GET)).endswith(b"ok")
        assert asked(bad) > 1


@pytest.mark.usefixtures("each_way")
async def test_client_that_leaves_in_the_pause_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_retry, "WAIT_MAX", 3600.0)
    async with (
        Member(says(answer(503, lines=b"Retry-After: 3600\r\n"))) as member,
        balance(member, **RETRIED) as running,
    ):
        async with running.client() as client:
            await client.send(GET)
            await eventually(lambda: asked(member) == 1)
        await running.idle()
        assert [it.in_flight for it in running.balancer.members.values()] == [0]
        assert [record.error for record in running.records] == ["client_gone"]
        assert (await running.exchange(post(4))).endswith(b"busy")


# What becomes of the response that is dropped, and of the repeat.


@pytest.mark.parametrize("upstream", [NativeUpstream, HttpxUpstream])
@pytest.mark.parametrize(
    ("response", "stays"),
    [
        (answer(503), True),
        (answer(503, b""), True),
        (b"HTTP/1.1 503 Words\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n", True),
        (answer(503, lines=b"Connection: close\r\n"), False),
        (answer(503, b"x" * 500_000), False),
        (b"HTTP/1.1 503 Words\r\nContent-Length: 9\r\n\r\nbusy", False),
        (b"HTTP/1.1 503 Words\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n", False),
    ],
    ids=["short", "empty", "chunks", "closing", "long", "incomplete", "incomplete chunks"],
)
async def test_connection_stays_where_the_dropped_response_is_short_and_there(
    response: bytes, stays: bool, upstream: type[Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "upstream_class", upstream)
    if stays:
        monkeypatch.setattr(drain, "DRAIN_SECONDS", LIMIT)  # A busy machine takes its time.
    async with Member(says(response)) as bad, Member(says(OK)) as good, balance(bad, good, **RETRIED) as running:
        for _ in range(6):
            assert (await running.exchange(GET)).endswith(b"ok")
            await eventually(lambda: not getattr(running.balancer.upstream, "_closing", None))
        assert asked(bad) > 1
        assert len(bad.received) == (1 if stays else asked(bad))
        assert len(good.received) == 1


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("request_bytes", [post(4, KEY), GET], ids=["POST", "GET"])
async def test_repeat_whose_connection_dies_goes_by_the_rules_for_that(request_bytes: bytes) -> None:
    async def die(connection: Connection) -> None:
        await whole(connection)
        connection.reset()

    async with Member(says(answer(503))) as bad, Member(die) as dying, balance(bad, dying, **RETRIED) as running:
        replies = [await running.exchange(request_bytes) for _ in range(2)]
        if request_bytes is GET:
            # It goes on as long as there are repeats, and what came last passes on.
            assert all(reply.endswith(b"busy") for reply in replies)
        else:
            assert all(b"x-balancer-error: member_failed\r\n" in reply for reply in replies)
            assert (asked(dying), asked(bad)) == (2, reasons(running).count("status"))


@pytest.mark.usefixtures("each_way")
async def test_interim_response_does_not_keep_the_status_from_being_repeated() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(503)
    async with Member(says(hints)) as bad, Member(says(OK)) as good, balance(bad, good, **RETRIED) as running:
        for _ in range(4):
            reply = await running.exchange(GET)
            assert reply.endswith(b"\r\n\r\nok")
            assert b" 503 " not in reply
        assert asked(bad) == len(reasons(running)) > 1


async def test_route_has_statuses_of_its_own(tmp_path: Path) -> None:
    text = '[one]\npath = "/one"\nretry_status = "502-504"\n[two]\n'
    async with (
        Member(says(answer(503))) as bad,
        Member(says(OK)) as good,
        routed(tmp_path, text, members={"one": bad, "two": bad}) as here,
    ):
        for name in ("one", "two"):
            here.resolvers[name].found(bad.address, good.address)
        await eventually(lambda: all(pool.available == 2 for pool in here.pools.current()))
        assert all([(await here.ask("/one/")).endswith("ok") for _ in range(4)])
        assert sorted([(await here.ask("/")).endswith("ok") for _ in range(2)]) == [False, True]
