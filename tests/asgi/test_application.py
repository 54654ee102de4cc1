"""An ASGI application behind the own front end: bodies, failures, clients that leave, and turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from balancer.asgi.application import App, ApplicationRequests
from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.frontend import client_registry
from balancer.frontend.client_registry import ClientRegistry
from balancer.http.request import Request
from balancer.process.data_listener import DataListener
from balancer.process.sockets import listen
from balancer.types import Address, Message, Receive, Scope, Send
from tests.support.wire import Connection, connected, eventually

HEAD = b"%b /a%%20b?c=d HTTP/1.1\r\nHost: localhost\r\n"
GET = HEAD % b"GET" + b"\r\n"
LAST_GET = HEAD % b"GET" + b"Connection: close\r\n\r\n"


class Served:
    def __init__(self, address: Address) -> None:
        self.address = address
        self.refused: list[str] = []

    def client(self) -> AbstractAsyncContextManager[Connection]:
        return connected(self.address)

    async def exchange(self, request: bytes) -> bytes:
        async with self.client() as client:
            await client.send(request)
            return await client.to_end()


@asynccontextmanager
async def served(
    app: App, is_preferred: Callable[[Request], bool] = lambda request: False, **settings: Any
) -> AsyncIterator[Served]:
    sock = listen("BIND", Address("127.0.0.1", 0))
    it = Served(Address("127.0.0.1", sock.getsockname()[1]))

    def on_refused(request: Request, refusal: Refusal) -> None:
        it.refused.append(refusal.token)

    limits = Settings(**settings)
    clients = ClientRegistry(ApplicationRequests(app, on_refused, is_preferred), limits)
    listener = DataListener(limits, sock, clients, app)
    await listener.start()
    try:
        yield it
    finally:
        await listener.close()
        await listener.wait_closed(1.0)


async def answer(send: Send, body: bytes = b"ok", status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body as it came."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await answer(send, body)


async def test_application_gets_the_request_as_its_client_wrote_it() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer(send)

    async with served(app) as it:
        assert (await it.exchange(LAST_GET)).endswith(b"\r\n\r\nok")
    (scope,) = scopes
    assert (scope["method"], scope["path"], scope["raw_path"], scope["query_string"]) == (
        "GET", "/a b", b"/a%20b", b"c=d",
    )  # fmt: skip
    assert (scope["client"][0], scope["scheme"], scope["type"]) == ("127.0.0.1", "http", "http")
    assert (b"host", b"localhost") in scope["headers"]


@pytest.mark.parametrize("framing", ["at once", "late", "chunked", "expected"])
async def test_application_gets_the_body_however_it_comes(framing: str) -> None:
    head = HEAD % b"POST" + b"Connection: close\r\n"
    async with served(echo) as it, it.client() as client:
        match framing:
            case "at once":
                await client.send(head + b"Content-Length: 6\r\n\r\nabcdef")
            case "late":
                await client.send(head + b"Content-Length: 6\r\n\r\nabc")
                await asyncio.sleep(0.02)
                await client.send(b"def")
            case "chunked":
                await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
            case "expected":
                await client.send(head + b"Expect: 100-continue\r\nContent-Length: 6\r\n\r\n")
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
                await client.send(b"abcdef")
        assert (await client.to_end()).endswith(b"\r\n\r\nabcdef")


async def test_head_request_gets_no_body_and_the_connection_goes_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    async with served(app) as it:
        answers = await it.exchange(HEAD % b"HEAD" + b"\r\n" + LAST_GET)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.count(b"ok") == 1


async def test_application_that_fails_breaks_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"] == b"c=d":
            raise LookupError("a fault")
        await answer(send)

    async with served(app) as it:
        assert await it.exchange(GET) == b""
        assert (await it.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).endswith(b"ok")
    assert caplog.messages == ["/a%20b?c=d failed"]


async def test_client_that_leaves_ends_its_request() -> None:
    ended: list[type[BaseException]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await receive()  # There is no more to come.
        except asyncio.CancelledError as error:
            ended.append(type(error))
            raise

    async with served(app) as it:
        async with it.client() as client:
            await client.send(GET)
            await asyncio.sleep(0.02)
        await eventually(lambda: ended == [asyncio.CancelledError])


async def test_body_that_ends_early_is_a_disconnect() -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        try:
            messages.append(await receive())
        except asyncio.CancelledError:
            messages.append({"type": "cancelled"})
            raise

    async with served(app) as it:
        async with it.client() as client:
            await client.send(HEAD % b"POST" + b"Content-Length: 6\r\n\r\nabc")
            await eventually(lambda: bool(messages))
        await eventually(lambda: len(messages) == 2)
    assert messages[0] == {"type": "http.request", "body": b"abc", "more_body": True}
    assert messages[1]["type"] in ("http.disconnect", "cancelled")


async def test_body_that_stops_is_refused_whatever_the_application_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
            await receive()
        except Exception:
            await answer(send, b"it failed", 500)
            raise

    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.1)
    async with served(app, stream_idle_timeout=0.3) as it:
        received = await it.exchange(HEAD % b"POST" + b"Content-Length: 6\r\n\r\nabc")
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"x-balancer-error: request_timeout" in received


async def test_answers_to_requests_ahead_do_not_pile_up() -> None:
    begun = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        begun += 1
        await answer(send, bytes(1 << 20))

    async with served(app) as it, it.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET * 90)
        await eventually(lambda: begun > 0)
        before = -1
        while begun != before:
            before = begun
            await asyncio.sleep(0.3)
        # What the kernel takes, and one more.
        assert begun < 45


async def test_requests_take_turns_with_a_pause_behind_each() -> None:
    turns: list[tuple[float, float]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        while time.monotonic() < began + 0.01:
            pass
        turns.append((began, time.monotonic()))
        await answer(send)

    async with served(app) as it:
        await asyncio.gather(*(it.exchange(LAST_GET) for _ in range(10)))
    pauses = [after[0] - before[1] for before, after in pairwise(turns)]
    assert len(pauses) == 9
    assert min(pauses) > 0.025


async def test_preferred_request_waits_for_no_turn_and_one_that_waits_for_others_gives_its_own_up() -> None:
    released = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "PUT":
            await released.wait()
        await answer(send)

    async with served(app, lambda request: request.method == "DELETE") as it:
        stuck = asyncio.create_task(it.exchange(HEAD % b"PUT" + b"Connection: close\r\n\r\n"))
        await asyncio.sleep(0.01)
        for method in (b"DELETE", b"GET", b"GET"):
            assert (await it.exchange(HEAD % method + b"Connection: close\r\n\r\n")).endswith(b"ok")
        assert not stuck.done()
        released.set()
        assert (await stuck).endswith(b"ok")
