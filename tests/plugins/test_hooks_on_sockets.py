"""Hooks between real clients and members, by every way that a request can take."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from balancer.hooks import HeaderFields, Hooks
from balancer.members.health import State
from balancer.members.member import Member as KnownMember
from balancer.types import Address
from tests.support import tls
from tests.support.hooked import Counting, answer_like_nginx, ask, fields_of, request_hook, response_hook
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.scripted import ScriptedResolver
from tests.support.wire import OK, Connection, Member, balance, eventually


@pytest.mark.usefixtures("each_way")
async def test_each_of_many_equal_requests_gets_what_its_own_hook_said() -> None:
    async with Member(answer_like_nginx) as member, balance(member, hooks=[Counting()]) as running:
        async with running.client() as client:
            heads = [await ask(client) for _ in range(6)]
        assert [fields_of(it, b"x-answer") for it in heads] == [[b"%d/%d" % (it, it)] for it in range(1, 7)]
        assert not any(fields_of(it, b"server") for it in heads)
        (received,) = member.received
        assert fields_of(received, b"x-number") == [b"%d" % it for it in range(1, 7)]
        ids = [it.id for it in running.records]
        assert len(set(ids)) == 6
        assert [fields_of(it, b"x-request-id") for it in heads] == [[it] for it in ids]
        assert fields_of(received, b"x-request-id") == ids


@pytest.mark.usefixtures("each_way")
async def test_clients_own_id_is_kept() -> None:
    async with Member() as member, balance(member, hooks=[Counting()]) as running, running.client() as client:
        head = await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\n\r\n")
        assert fields_of(head, b"x-request-id") == fields_of(member.received[0], b"x-request-id") == [b"mine"]


@pytest.mark.usefixtures("each_way")
async def test_requests_that_are_equal_share_a_head_where_hooks_see_responses_alone() -> None:
    seen: list[str] = []
    hook = response_hook(lambda request, _: seen.append(request.headers.get("host")))
    async with Member() as member, balance(member, hooks=[hook]) as running, running.client() as client:
        for _ in range(4):
            await ask(client)
        assert len(member.received[0].split(b"\r\n\r\n")) == 5
    assert seen == ["a"] * 4


@pytest.mark.usefixtures("each_way")
async def test_client_cannot_take_away_what_a_hook_says() -> None:
    hook = request_hook(lambda request: request.headers.set("X-Tenant", "blue"))
    async with Member() as member, balance(member, hooks=[hook]) as running, running.client() as client:
        await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: red\r\nConnection: X-Tenant\r\n\r\n")
        await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: red\r\nConnection: keep-alive, x-TENANT\r\n\r\n")
        assert fields_of(member.received[0], b"x-tenant") == [b"blue", b"blue"]


async def test_fields_that_are_for_this_hop_alone_are_not_shown() -> None:
    seen: list[bool] = []
    hook = request_hook(lambda request: seen.append("x-hop" in request.headers))
    async with Member() as member, balance(member, hooks=[hook]) as running, running.client() as client:
        await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Hop: 1\r\nConnection: x-hop\r\n\r\n")
    assert seen == [False]


@pytest.mark.usefixtures("each_way")
async def test_hooks_cannot_break_the_framing(caplog: pytest.LogCaptureFixture) -> None:
    def act(fields: HeaderFields) -> None:
        for name in ("content-length", "transfer-encoding", "connection", "host"):
            with pytest.raises(ValueError):
                fields.set(name, "1")
            with pytest.raises(ValueError):
                fields.add(name, "1")
            with pytest.raises(ValueError):
                fields.remove(name)
        fields.set("x-said", "1")
        fields.set("x", "a\r\nContent-Length: 0")  # raises

    hooks = [request_hook(lambda it: act(it.headers)), response_hook(lambda _, it: act(it.headers))]
    async with Member() as member, balance(member, hooks=hooks) as running, running.client() as client:
        for _ in range(2):
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            assert b"content-length: 2" in (await client.head()).lower()
            assert await client.exactly(2) == b"ok"
        assert b"x-said" not in b"".join(member.received) + client.received
    assert len([it for it in caplog.records if it.levelno == logging.ERROR]) == 2


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        (b"GET", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"),
        (b"HEAD", b"200 OK\r\nContent-Length: 5\r\n\r\n", b""),
        (b"GET", b"304 Not Modified\r\nETag: x\r\n\r\n", b""),
        (b"GET", b"204 No Content\r\n\r\n", b""),
        (b"GET", b"200 OK\r\nConnection: close\r\n\r\nok", b"2\r\nok\r\n0\r\n\r\n"),
    ],
)
async def test_responses_of_every_framing_pass_hooks(method: bytes, answer: bytes, body: bytes) -> None:
    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(b"HTTP/1.1 " + answer)
            if b"close" in answer:
                return

    hook = response_hook(lambda _, response: response.headers.set("x-said", str(response.status)))
    async with Member(script) as member, balance(member, hooks=[hook]) as running:
        for _ in range(3):
            got = await running.exchange(method + b" / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            head, _, rest = got.partition(b"\r\n\r\n")
            assert fields_of(head, b"x-said") == [answer[:3]]
            assert rest == body


async def test_request_that_is_sent_again_passes_hooks_once() -> None:
    async def die(connection: Connection) -> None:
        await connection.head()
        connection.close()

    async with Member(die) as dying, Member() as member:
        counting = Counting()
        async with balance(dying, member, hooks=[counting]) as running, running.client() as client:
            for _ in range(2):
                head = await ask(client)
        assert fields_of(head, b"x-answer") == [b"2/2"]
        assert (counting.requests, counting.responses) == (2, 2)
        assert dying.received
        assert fields_of(b"".join(member.received), b"x-number") == [b"1", b"2"]


@pytest.mark.usefixtures("each_way")
async def test_hook_that_raises_is_logged_once_and_requests_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def act(*seen: object) -> None:
        raise LookupError("no such tenant")

    hooks = [request_hook(act), response_hook(act), Counting()]
    async with Member() as member, balance(member, hooks=hooks) as running, running.client() as client:
        heads = [await ask(client) for _ in range(5)]
    assert [fields_of(it, b"x-answer") for it in heads] == [[b"%d/%d" % (it, it)] for it in range(1, 6)]
    said = [it.getMessage() for it in caplog.records if it.levelno == logging.ERROR]
    assert ["raised LookupError: no such tenant" in it for it in said] == [True, True]


@pytest.mark.usefixtures("each_front")
async def test_websockets_pass_hooks() -> None:
    paths: list[str | None] = []

    async def echo(connection: ServerConnection) -> None:
        assert connection.request
        paths.append(connection.request.headers.get("X-Number"))
        async for message in connection:
            await connection.send(message)

    seen: list[tuple[str, int]] = []
    hooks = [Counting(), response_hook(lambda request, it: seen.append((request.upgrade, it.status)))]
    async with serve(echo, "127.0.0.1", 0) as server:
        address = Address("127.0.0.1", next(iter(server.sockets)).getsockname()[1])
        async with balance(address, hooks=hooks) as running:
            for number in (1, 2):
                async with connect(f"ws://{running.address}/", proxy=None) as client:
                    assert client.response
                    assert client.response.headers["X-Answer"] == f"{number}/{number}"
                    await client.send("hello")
                    assert await client.recv() == "hello"
    assert paths == ["1", "2"]
    assert seen == [("websocket", 101)] * 2


async def test_http_2_passes_hooks(tmp_path: Path) -> None:
    certificate = tls.issue(tmp_path, "127.0.0.1")
    async with (
        Member() as member,
        balance(member, hooks=[Counting()], http2=True, **certificate) as running,
        running.client(tls.trusting("h2")) as connection,
    ):
        client = Http2Client(connection)
        await client.begin()
        for number in (1, 2):
            answer = await client.get("/")
            assert (b"x-answer", b"%d/%d" % (number, number)) in answer.headers
    assert fields_of(b"".join(member.received), b"x-number") == [b"1", b"2"]


async def test_hooks_are_told_of_members(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []

    class Watching(Hooks):
        def on_member_added(self, member: KnownMember) -> None:
            events.append(f"joined {member.address}")
            raise ValueError("one that raises is in nobody's way")

        def on_member_removed(self, member: KnownMember) -> None:
            events.append(f"left {member.address}")

        def on_member_state_changed(self, member: KnownMember, before: State) -> None:
            events.append(f"{member.address} {before.value} {member.state.value}")

    async with Member() as one, Member() as other:
        resolve = ScriptedResolver(one.address)
        async with balance(one, resolve=resolve, hooks=[Watching()], resolve_interval=0.1) as running:
            resolve.found(one.address, other.address)
            await running.available(2)
            resolve.found(other.address)
            await running.available(1)
    expected = [f"joined {one.address}", f"{one.address} joining up"]
    expected += [f"joined {other.address}", f"{other.address} joining up", f"left {one.address}"]
    assert events == expected
    assert len([it for it in caplog.records if it.levelno == logging.ERROR]) == 1


async def test_answer_that_comes_in_pieces_passes_hooks_once() -> None:
    going_on = asyncio.Event()

    async def slow(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(OK[:20])
            await going_on.wait()
            await connection.send(OK[20:])

    counting = Counting()
    async with Member(slow) as member, balance(member, hooks=[counting]) as running, running.client() as client:
        for number in (1, 2):
            going_on.clear()
            await client.send(GET)
            await eventually(lambda number=number: counting.requests == number)  # type: ignore[misc]
            going_on.set()
            assert fields_of(await client.head(), b"x-answer") == [b"%d/%d" % (number, number)]
            await client.exactly(2)
