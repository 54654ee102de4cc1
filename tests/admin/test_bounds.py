"""The admin port holds the bounds of the data port, and some of its own: it is another door for the same clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from balancer.admin import connections
from balancer.frontend import client_registry
from balancer.telemetry.stats import Stats
from tests.support.admin import AdminPort, administer
from tests.support.wire import LIMIT, Connection, Member, balance, connected, eventually

ONE, OTHER = "127.77.0.1", "127.77.0.2"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
DRAIN = b"POST /api/members/%b/drain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

# Short limits, and a sweep that notices them soon.
SHORT = {"header_timeout": 0.3, "keepalive_timeout": 0.3, "stream_idle_timeout": 0.3}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.1)


@asynccontextmanager
async def admin(**settings: Any) -> AsyncIterator[AdminPort]:
    async with balance(stats=Stats()) as running, administer(running, **settings) as port:
        yield port


def client(port: AdminPort, host: str = ONE) -> AbstractAsyncContextManager[Connection]:
    """A raw connection from an address of loopback."""
    return connected(port.address, host=host)


def refused(received: bytes, status: int, token: bytes) -> bool:
    return received.startswith(b"HTTP/1.1 %d " % status) and b"\r\nx-balancer-error: %b\r\n" % token in received


async def answered(one: Connection) -> bool:
    """Whether a request is served: the connection is neither refused nor closed."""
    try:
        await one.send(GET)
        head = await one.head()
        return head.startswith(b"HTTP/1.1 200 ") and await one.exactly(3) == b"ok\n"
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


@pytest.mark.parametrize(
    ("request_", "status", "token"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: %b\r\n" % (b"a" * 1000) * 40, 431, b"headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431, b"headers_too_large"),
        (b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 20_000), 414, b"uri_too_long"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, b"malformed_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, b"malformed_request"),
    ],
    ids=["head without end", "headers", "target", "no Host", "two Hosts", "TLS"],
)
async def test_request_that_the_data_port_refuses_is_refused_at_the_admin_port(
    request_: bytes, status: int, token: bytes
) -> None:
    async with admin() as port, client(port) as one:
        await one.send(request_)
        assert refused(await one.to_end(), status, token)
        limit = "wrong_protocol" if b"\x16" in request_ else "admin_request"
        counted = f'balancer_client_limits_total{{limit="{limit}",process="admin"}} 1.0'
        assert counted in (await port.get("/metrics")).text


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b"HTTP/1.1 408 "),
        (b"GET / HTTP/1.1\r\nHost: loc", b"HTTP/1.1 408 "),
        (GET, b"HTTP/1.1 200 "),
        (DRAIN + b"Content-Length: 20\r\n\r\n{", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "half a head", "idle", "half a body"],
)
async def test_client_that_sends_no_more_loses_its_connection(sent: bytes, answer: bytes) -> None:
    async with (
        Member() as member,
        balance(member, stats=Stats()) as running,
        administer(running, **SHORT) as port,
        client(port) as one,
    ):
        await one.send(sent.replace(b"%b", str(member.address).encode()))
        assert (await one.to_end()).startswith(answer if sent else b"")
        assert not (await port.member(member.address))["drained"]


async def test_client_that_takes_no_answer_loses_its_connection() -> None:
    async with admin(**SHORT) as port, client(port) as one:
        one.writer.transport.pause_reading()  # type: ignore[attr-defined]
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        async with asyncio.timeout(LIMIT):
            with pytest.raises(ConnectionError):
                while True:
                    one.writer.write(request * 1000)
                    await one.writer.drain()
                    await asyncio.sleep(0.01)


async def test_client_beyond_the_connections_takes_the_place_of_the_one_that_has_been_idle_for_longest() -> None:
    async with admin() as port, AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(client(port, f"127.77.0.{2 + index % 6}")) for index in range(300)]
        async with client(port) as one:
            assert await answered(one)
            ended = 0
            for it in crowd:
                ended += not await answered(it)
            assert ended >= 300 - 255
            assert await answered(crowd[-1])
            assert await answered(one)


async def test_one_address_has_a_share_of_the_connections() -> None:
    async with admin() as port, AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(client(port, OTHER)) for _ in range(100)]
        async with client(port) as one:
            assert sum([await answered(it) for it in crowd]) == 64
            assert await answered(crowd[-1])
            assert await answered(one)


async def test_clients_that_read_nothing_make_room_for_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with admin() as port, AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(client(port, OTHER)) for _ in range(3)]
        for it in crowd:
            it.writer.transport.pause_reading()  # type: ignore[attr-defined]
            it.writer.write(request * 90)
        clients = port.admin._clients
        await eventually(lambda: sum(it.unread > 0 for it in clients.connections) == 3)
        async with client(port) as one:
            assert await answered(one)
            assert len(clients.connections) == 3


async def test_open_streams_make_room_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    async with admin() as port, AsyncExitStack() as stack:
        for _ in range(3):
            it = await stack.enter_async_context(client(port, OTHER))
            await it.send(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await it.head()).startswith(b"HTTP/1.1 200 ")
        async with client(port) as one:
            assert refused(await one.to_end(), 503, b"too_many_connections")
