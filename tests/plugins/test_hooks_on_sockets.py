"""Hooks between real clients and members, by every way that a request can take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from balancer.config.settings import Settings
from balancer.frontend import registry
from balancer.hooks import HeaderFields, HookRequest, HookResponse, Hooks, Refusal
from balancer.http.headers import Headers
from balancer.members.health import State
from balancer.members.member import Member as KnownMember
from balancer.policies import HashRing, LeastRequests, Policy, make_policy
from balancer.types import Address
from tests.support import tls
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.scripted import ScriptedResolver
from tests.support.wire import LIMIT, OK, Connection, Member, balance, eventually


def request_hook(act: Callable[[HookRequest], object]) -> Hooks:
    class Made(Hooks):
        def on_request(self, request: HookRequest) -> None:
            act(request)

    return Made()


def response_hook(act: Callable[[HookRequest, HookResponse], object]) -> Hooks:
    class Made(Hooks):
        def on_response(self, request: HookRequest, response: HookResponse) -> None:
            act(request, response)

    return Made()


class Counting(Hooks):
    """Numbers requests for members, and responses for clients."""

    def __init__(self) -> None:
        self.requests = self.responses = 0

    def on_request(self, request: HookRequest) -> None:
        self.requests += 1
        request.headers.set("X-Number", str(self.requests))
        request.notes["number"] = self.requests

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        self.responses += 1
        response.headers.set("X-Request-ID", request.id)
        response.headers.set("X-Answer", f"{request.notes['number']}/{self.responses}")
        response.headers.remove("server")


def fields_of(head: bytes, name: bytes) -> list[bytes]:
    lines = [it.partition(b": ") for it in head.split(b"\r\n")]
    return [value for key, _, value in lines if key.lower() == name]


async def ask(client: Connection, request: bytes = GET) -> bytes:
    """The head of the response; its body is "ok"."""
    await client.send(request)
    head = await client.head()
    await client.exactly(2)
    return head


async def answer_like_nginx(connection: Connection) -> None:
    """With the same bytes each time."""
    while True:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 2\r\n\r\nok")


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


async def test_request_known_by_its_bytes_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[registry.ClientRegistry] = []
    real = registry.ClientRegistry.__init__

    def noted(self: registry.ClientRegistry, *parts: Any) -> None:
        made.append(self)
        real(self, *parts)

    monkeypatch.setattr(registry.ClientRegistry, "__init__", noted)
    async with Member() as member, balance(member, hooks=[Counting()]) as running, running.client() as client:
        for _ in range(4):
            await ask(client)
        ((known,),) = [list(it.requests._values.values()) for it in made]
        assert known.headers == [(b"host", b"a")]
        assert known.head == b""


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
async def test_refusal_is_the_answer_and_the_connection_goes_on() -> None:
    def act(request: HookRequest) -> None:
        if "x-key" not in request.headers:
            raise Refusal(401, "no_key", "who are you?", 7, headers={"WWW-Authenticate": 'Basic realm="x"'})

    async with Member() as member, balance(member, hooks=[request_hook(act)]) as running:
        async with running.client() as client:
            for _ in range(3):
                await client.send(GET)
                head = await client.head()
                assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
                assert fields_of(head, b"x-balancer-error") == [b"no_key"]
                assert fields_of(head, b"www-authenticate") == [b'Basic realm="x"']
                assert fields_of(head, b"retry-after") == [b"7"]
                assert await client.exactly(int(fields_of(head, b"content-length")[0])) == b"401 who are you?\n"
            await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\n\r\n")
        await running.idle()
        assert len(member.received) == 1
        assert [(it.status, it.error) for it in running.records] == [(401, "no_key")] * 3 + [(200, "")]


LOG_IN = Refusal(302, "log_in", "log in first", headers={"Location": "/login?next=%2F"})


def send_to_log_in(request: HookRequest) -> None:
    if "cookie" not in request.headers:
        raise LOG_IN


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
async def test_refusal_may_be_a_redirect(method: bytes) -> None:
    async with Member() as member, balance(member, hooks=[request_hook(send_to_log_in)]) as running:
        async with running.client() as client:
            for _ in range(2):
                await client.send(method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
                head = await client.head()
                assert head.startswith(b"HTTP/1.1 302 Found\r\n")
                assert fields_of(head, b"location") == [b"/login?next=%2F"]
                assert fields_of(head, b"x-balancer-error") == [b"log_in"]
                assert fields_of(head, b"cache-control") == [b"no-store"]
                if method != b"HEAD":
                    assert await client.exactly(int(fields_of(head, b"content-length")[0])) == b"302 log in first\n"
            await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\n\r\n")
        await running.idle()
    assert len(member.received) == 1
    assert [(it.status, it.error) for it in running.records] == [(302, "log_in")] * 2 + [(200, "")]


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.usefixtures("each_front")
async def test_websocket_may_be_sent_elsewhere() -> None:
    hooks = [request_hook(send_to_log_in)]
    async with Member() as member, balance(member, hooks=hooks) as running, running.client() as client:
        await client.send(HANDSHAKE)
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 302 Found\r\n")
        assert fields_of(head, b"location") == [b"/login?next=%2F"]
        assert await client.exactly(17) == b"302 log in first\n"
    assert not member.received


class Guard(Hooks):
    """Fails for requests, or for responses, that say so."""

    fail_closed = True

    def on_request(self, request: HookRequest) -> None:
        if request.headers.get("x-fail") == "request":
            request.target.startswith(b"/admin")  # type: ignore[arg-type]

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        if request.headers.get("x-fail") == "response":
            raise LookupError("no such tenant")


def failing(where: str, method: bytes = b"GET") -> bytes:
    return method + b" / HTTP/1.1\r\nHost: a\r\nX-Fail: %b\r\nContent-Length: 0\r\n\r\n" % where.encode()


def assert_closed(head: bytes) -> None:
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert fields_of(head, b"x-balancer-error") == [b"hook_failed"]
    assert not fields_of(head, b"x-secret")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
@pytest.mark.parametrize("answer", ["Content-Length: 2\r\n\r\nok", "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"])
async def test_guard_that_fails_lets_neither_request_nor_response_through(
    answer: str, method: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            whole = b"Content-Length: 2\r\n\r\n" if head.startswith(b"HEAD") else answer.encode()
            await connection.send(
                OK if b"x-fail" not in head.lower() else b"HTTP/1.1 200 OK\r\nX-Secret: 1\r\n" + whole
            )

    limits: dict[str, Any] = {"max_requests_per_member": 1, "queue_timeout": 0}
    async with Member(script) as member, balance(member, hooks=[Guard()], **limits) as running:
        async with running.client() as client:
            for _ in range(2):
                for where in ("request", "response"):
                    await client.send(failing(where, method))
                    head = await client.head()
                    assert_closed(head)
                    if method != b"HEAD":
                        text = await client.exactly(int(fields_of(head, b"content-length")[0]))
                        assert text == b"503 a hook of the balancer has failed\n"
                await ask(client)
        await running.idle()
    assert b"".join(member.received).lower().count(b"x-fail: request") == 0
    told = [(it.status, it.error, it.member is None) for it in running.records]
    assert told == [(503, "hook_failed", True), (503, "hook_failed", False), (200, "", False)] * 2
    said = [it.getMessage() for it in caplog.records if it.levelno == logging.ERROR]
    assert ["on_request of " in said[0], "on_response of " in said[1], len(said)] == [True, True, 2]


async def test_response_that_a_guard_keeps_back_takes_no_connection_with_it() -> None:
    async with Member() as member, balance(member, hooks=[Guard()]) as running, running.client() as client:
        for _ in range(5):
            await client.send(failing("response"))
            assert_closed(await client.until(b"has failed\n"))
    assert len(member.received) == 1


@pytest.mark.usefixtures("each_front")
@pytest.mark.parametrize("where", ["request", "response"])
async def test_guard_that_fails_lets_no_websocket_through(where: str) -> None:
    left = asyncio.Event()

    async def switch(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        await connection.to_end()
        left.set()

    async with Member(switch) as member, balance(member, hooks=[Guard()]) as running, running.client() as client:
        await client.send(HANDSHAKE.replace(b"Host: a", b"Host: a\r\nX-Fail: " + where.encode()))
        assert_closed(await client.head())
        if where == "response":
            async with asyncio.timeout(LIMIT):
                await left.wait()
        await running.idle()
        assert [it.in_flight for it in running.balancer.members.values()] == [0]


@pytest.mark.usefixtures("each_way")
async def test_request_with_a_body_is_refused_as_well() -> None:
    def act(request: HookRequest) -> None:
        raise Refusal(403, "closed", "closed")

    async with Member() as member, balance(member, hooks=[request_hook(act)]) as running:
        for body in (b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"):
            got = await running.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + body)
            assert got.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert not member.received


async def test_client_that_waits_to_send_a_body_is_refused_without_it() -> None:
    def act(request: HookRequest) -> None:
        raise Refusal(403, "closed", "closed")

    async with Member() as member, balance(member, hooks=[request_hook(act)]) as running:
        got = await running.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert not member.received


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


class Seeing(Policy):
    """Leaves the choice to others, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[HookRequest] = []

    def build(self, members: Sequence[KnownMember]) -> None: ...

    def choose(self, request: HookRequest, exclude: Container[KnownMember] = ()) -> KnownMember | None:
        self.seen.append(request)
        return None

    def response_headers(self, request: HookRequest, member: KnownMember) -> Headers:
        self.seen.append(request)
        return [(b"x-marked", request.target.encode())]


@pytest.mark.usefixtures("each_way")
async def test_policy_sees_the_very_request_that_hooks_see() -> None:
    seen: list[HookRequest] = []

    def note(request: HookRequest) -> None:
        seen.append(request)
        request.headers.set("X-Tenant", request.target)
        request.notes["admin"] = request.target.startswith("/admin")

    policy, hooks = Seeing(), [request_hook(note), response_hook(lambda request, _: seen.append(request))]
    async with Member() as member, balance(member, own_policy=policy, hooks=hooks) as running:
        async with running.client() as client:
            for target in (b"/admin", b"/other"):
                for _ in range(2):
                    head = await ask(client, GET.replace(b"/ ", target + b" "))
                    assert fields_of(head, b"x-marked") == [target]
        assert len(seen) == len(policy.seen) == 8
        assert all(one is other for one, other in zip(seen, policy.seen, strict=True))
        assert [it.id.encode() for it in policy.seen[::2]] == [it.id for it in running.records]
    assert [(it.headers.get("x-tenant"), it.notes["admin"]) for it in policy.seen[::4]] == [
        ("/admin", True),
        ("/other", False),
    ]


@pytest.mark.usefixtures("each_way")
async def test_policy_without_hooks_sees_text_and_each_request_by_its_id() -> None:
    policy = Seeing()
    async with Member() as member, balance(member, own_policy=policy) as running, running.client() as client:
        for _ in range(4):
            await ask(client, b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-Tenant: blue\r\n\r\n")
        ids = [it.id.decode() for it in running.records]
    assert len(set(ids)) == 4 and [it.id for it in policy.seen[::2]] == ids
    assert {(it.target, it.host, it.headers.get("X-Tenant")) for it in policy.seen} == {("/a?b", "a", "blue")}


@pytest.mark.usefixtures("each_way")
async def test_request_is_changed_in_on_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Changing(Seeing):
        def choose(self, request: HookRequest, exclude: Container[KnownMember] = ()) -> KnownMember | None:
            request.headers.set("X-Late", "1")
            return None

    late = response_hook(lambda request, _: request.headers.remove("host"))
    for hooks in ([], [late], [late, Counting()]):
        async with Member() as member, balance(member, own_policy=Changing(), hooks=hooks) as running:
            async with running.client() as client:
                for _ in range(2):
                    await ask(client)
            assert b"x-late" not in member.received[0].lower()
    said = [it.getMessage() for it in caplog.records if it.levelno == logging.ERROR]
    assert len(said) == 5
    assert all("only on_request may change the fields of a request" in it for it in said)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("settings", [{}, {"sticky_cookie": "member"}], ids=["plain", "sticky"])
async def test_policy_may_extend_one_of_the_balancers_own(settings: dict[str, Any]) -> None:
    class ByTenant(HashRing):
        def __init__(self) -> None:
            super().__init__(lambda request: request.headers.get("x-tenant"), LeastRequests(Random(1)))

        def choose(self, request: HookRequest, exclude: Container[KnownMember] = ()) -> KnownMember | None:
            assert request.target == "/"
            return super().choose(request, exclude)

    async with Member() as one, Member() as other:
        async with balance(one, other, own_policy=ByTenant(), **settings) as running, running.client() as client:
            for tenant in range(20):
                for _ in range(2):
                    await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: %d\r\n\r\n" % tenant)
        found = [set(fields_of(b"".join(it.received), b"x-tenant")) for it in (one, other)]
    assert found[0] and found[1] and not found[0] & found[1]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ["header:X-Tenant", "cookie:session", "client"])
async def test_policy_of_the_balancers_own_may_be_given_as_an_object(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = make_policy(Settings.of(policy="hash", hash_key=kind), Random(1))
    async with (
        Member() as one,
        Member() as other,
        balance(one, other, own_policy=policy) as running,
        running.client() as client,
    ):
        for _ in range(6):
            await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\nCookie: session=1\r\n\r\n")
    assert sorted(len(it.received) for it in (one, other)) == [0, 1]
    assert not [it for it in caplog.records if it.levelno == logging.ERROR]


async def test_policies_see_what_hooks_have_changed() -> None:
    hook = request_hook(lambda request: request.headers.set("X-Tenant", request.headers.get("x-key")))
    settings: dict[str, Any] = {"policy": "hash", "hash_key": ("header", "X-Tenant")}
    async with Member() as one, Member() as other, balance(one, other, hooks=[hook], **settings) as running:
        async with running.client() as client:
            for key in range(20):
                for _ in range(2):
                    await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Key: %d\r\n\r\n" % key)
        found = [set(fields_of(b"".join(it.received), b"x-tenant")) for it in (one, other)]
    assert found[0] and found[1] and not found[0] & found[1]
    assert len(found[0] | found[1]) == 20


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


@pytest.mark.usefixtures("each_front")
async def test_websocket_can_be_refused() -> None:
    def act(request: HookRequest) -> None:
        if request.upgrade == "websocket":
            raise Refusal(403, "no_websockets", "no WebSockets here")

    async with Member() as member, balance(member, hooks=[request_hook(act)]) as running:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://{running.address}/", proxy=None).__aenter__()
        assert caught.value.response.status_code == 403
        assert caught.value.response.headers["X-Balancer-Error"] == "no_websockets"
        assert not member.received
        async with running.client() as client:
            await ask(client)


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


async def test_http_2_passes_redirects_and_guards_that_fail(tmp_path: Path) -> None:
    certificate = tls.issue(tmp_path, "127.0.0.1")
    hooks = [Guard(), request_hook(send_to_log_in)]
    async with (
        Member() as member,
        balance(member, hooks=hooks, http2=True, **certificate) as running,
        running.client(tls.trusting("h2")) as connection,
    ):
        client = Http2Client(connection)
        await client.begin()
        answer = await client.get("/")
        assert (answer.status, answer.body) == (302, b"302 log in first\n")
        assert (b"location", b"/login?next=%2F") in answer.headers
        for method in (b"GET", b"HEAD"):
            for where in (b"request", b"response"):
                stream = await client.ask((b"x-fail", where), (b"cookie", b"a=b"), method=method)
                answer = await client.answer(stream)
                assert (answer.status, answer.ended, answer.reset) == (503, True, None)
                assert (b"x-balancer-error", b"hook_failed") in answer.headers


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
