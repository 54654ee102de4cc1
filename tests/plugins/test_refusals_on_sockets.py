"""Refusals of hooks, and guards that fail, by every way that a request can take."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from balancer.hooks import HookRequest, HookResponse, Hooks, Refusal
from tests.support import tls
from tests.support.hooked import ask, fields_of, request_hook
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.wire import LIMIT, OK, Connection, Member, balance


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
                text = await client.exactly(int(fields_of(head, b"content-length")[0]))
                assert text == b"401 who are you?\nrequest id: %b\n" % fields_of(head, b"x-request-id")[0]
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
                    text = await client.exactly(int(fields_of(head, b"content-length")[0]))
                    assert text.startswith(b"302 log in first\nrequest id: ")
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
        text = await client.exactly(int(fields_of(head, b"content-length")[0]))
        assert text.startswith(b"302 log in first\nrequest id: ")
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
                        assert text.startswith(b"503 a hook of the balancer has failed\nrequest id: ")
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
            head = await client.head()
            assert_closed(head)
            await client.exactly(int(fields_of(head, b"content-length")[0]))
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
        assert answer.status == 302
        assert answer.body.startswith(b"302 log in first\nrequest id: ")
        assert (b"location", b"/login?next=%2F") in answer.headers
        for method in (b"GET", b"HEAD"):
            for where in (b"request", b"response"):
                stream = await client.ask((b"x-fail", where), (b"cookie", b"a=b"), method=method)
                answer = await client.answer(stream)
                assert (answer.status, answer.ended, answer.reset) == (503, True, None)
                assert (b"x-balancer-error", b"hook_failed") in answer.headers
