"""A request that meets a connection which the member is just closing."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from balancer.errors import ConnectionDied
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.native import NativeUpstream
from tests.support.wire import OK, Connection, Member, balance

POST = UpstreamRequest("POST", b"/pay", [(b"host", b"a"), (b"content-length", b"0")])
GET = UpstreamRequest("GET", b"/pay", [(b"host", b"a")], repeatable=True)
LONG_GET = UpstreamRequest("GET", b"/pay", [(b"host", b"a"), (b"x", b"a" * 5000)], repeatable=True)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much a peer has acknowledged")


@asynccontextmanager
async def reused() -> AsyncIterator[tuple[NativeUpstream, Address, socket.socket]]:
    """An upstream with one idle connection that has served a request, and the member's end of it."""
    loop = asyncio.get_running_loop()
    upstream = NativeUpstream(Timeouts(5, 5, 5))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = Address("127.0.0.1", listener.getsockname()[1])
        first = asyncio.create_task(upstream.send(address, POST))
        member, _ = await loop.sock_accept(listener)
        with member:
            member.setblocking(False)
            await loop.sock_recv(member, 65536)
            await loop.sock_sendall(member, OK)
            await (await first).read()
            assert upstream.idle == 1
            yield upstream, address, member
    await upstream.close()


@pytest.mark.parametrize("request_", [POST, GET], ids=["post", "get"])
async def test_request_that_the_members_kernel_never_took_may_go_elsewhere(request_: UpstreamRequest) -> None:
    async with reused() as (upstream, address, member):
        member.close()  # The balancer's event loop does not run between this and the next line.
        with pytest.raises(ConnectionDied) as caught:
            await upstream.send(address, request_)
        assert not caught.value.sent
        assert str(caught.value) == "the member closed the idle connection before the request reached it"


@pytest.mark.parametrize("request_", [POST, GET, LONG_GET], ids=["post", "get", "long get"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_request_that_the_member_has_read_died_with_its_connection(
    reset: bool, request_: UpstreamRequest
) -> None:
    async with reused() as (upstream, address, member):
        second = asyncio.create_task(upstream.send(address, request_))
        assert b"/pay" in await asyncio.get_running_loop().sock_recv(member, 65536)
        if reset:
            member.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        member.close()
        with pytest.raises(ConnectionDied) as caught:
            await second
        assert caught.value.sent
        assert str(caught.value).endswith("before a response")
        assert "reused" not in str(caught.value)


async def test_members_that_close_idle_connections_whenever_they_like_lose_no_post() -> None:
    async def impatient(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(4)
        await connection.send(OK)
        connection.close()  # Without a word: the next request may be on its way.

    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    async with Member(impatient) as one, Member(impatient) as two, balance(one, two) as running:

        async def client() -> None:
            async with running.client() as client:
                for _ in range(50):
                    await client.send(post)
                    assert (await client.head()).startswith(b"HTTP/1.1 200")
                    await client.exactly(2)

        await asyncio.gather(*(client() for _ in range(8)))
        assert len(one.received) + len(two.received) >= 400
        assert sum(it.count(b"POST") for it in one.received + two.received) == 400
