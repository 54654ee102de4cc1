"""WebSockets through the balancer, between the ``websockets`` client and server and against raw members."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol
from websockets.utils import accept_key

from balancer.asgi.websocket import MAX_MESSAGE
from balancer.demo.system import free_port
from balancer.types import Address
from tests.support import wire
from tests.support.websocket import echo, member
from tests.support.wire import LIMIT, Connection, Member, Running, balance, eventually

pytestmark = pytest.mark.usefixtures("each_way")


# A member that probes itself to death logs it; that is not what is tested.
logging.getLogger("websockets.server").setLevel(logging.CRITICAL)


def dial(running: Running, path: str = "/", **options: Any) -> connect:
    return connect(f"ws://{running.address}{path}", **{"proxy": None, "max_size": None, **options})


async def closing(client: ClientConnection) -> tuple[int, str]:
    """The close that the client gets. An end without one is an error."""
    async with asyncio.timeout(LIMIT):
        try:
            while True:
                await client.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd, "the connection ended without a close frame"
            return closed.rcvd.code, closed.rcvd.reason


async def test_messages_cross_both_ways_as_they_are() -> None:
    async with member() as one, balance(one) as running, dial(running) as client:
        for message in ("héllo", b"\x00\xff", "", b"", "x" * 70_000):
            await client.send(message)
            assert await client.recv() == message


async def test_handshakes_take_turns_and_count_as_in_flight() -> None:
    async with member() as one, member() as two, balance(one, two) as running:
        members = list(running.balancer.membership.members.values())
        async with dial(running), dial(running):
            assert [it.in_flight for it in members] == [1, 1]
        await running.idle()
        assert [it.in_flight for it in members] == [0, 0]
        await eventually(lambda: len(running.records) == 2)
        assert [record.status for record in running.records] == [101, 101]


async def test_handshake_carries_path_headers_and_subprotocols() -> None:
    seen: list[Request] = []

    async def look(connection: ServerConnection) -> None:
        assert connection.request
        seen.append(connection.request)
        await echo(connection)

    def answer(connection: ServerConnection, request: Request, response: Response) -> None:
        response.headers["Set-Cookie"] = "a=1"
        response.headers["Set-Cookie"] = "b=2"

    offered = [Subprotocol("soap"), Subprotocol("chat.v2")]
    supported = [Subprotocol("chat.v2")]
    async with (
        member(look, subprotocols=supported, process_response=answer) as one,
        balance(one) as running,
        dial(
            running, "/a%2Fb?x=%20", subprotocols=offered, additional_headers={"X-Token": "t", "Origin": "http://o"}
        ) as client,
    ):
        await client.send("hi")
        await client.recv()
        assert client.subprotocol == "chat.v2"
        assert client.response
        assert client.response.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    (request,) = seen
    assert request.path == "/a%2Fb?x=%20"
    assert (request.headers["X-Token"], request.headers["Origin"]) == ("t", "http://o")
    assert request.headers["X-Forwarded-For"] == "127.0.0.1"
    assert request.headers["X-Forwarded-Proto"] == "http"
    assert request.headers["Host"] == str(running.address)


async def test_members_refusal_is_what_the_client_gets() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(401, "who are you?\n")
        response.headers["WWW-Authenticate"] = "Basic"
        return response

    async with member(process_request=refuse) as one, balance(one) as running:
        with pytest.raises(InvalidStatus) as caught:
            await dial(running)
        response = caught.value.response
        assert (response.status_code, response.body) == (401, b"who are you?\n")
        assert response.headers["WWW-Authenticate"] == "Basic"


async def test_websocket_without_a_member_gets_a_refusal_of_the_balancers_own() -> None:
    gone = Address("127.0.0.1", free_port())
    async with balance(gone, wait=False, queue_timeout=0.1) as running:
        with pytest.raises(InvalidStatus) as caught:
            await dial(running)
        response = caught.value.response
        assert (response.status_code, response.headers["X-Balancer-Error"]) == (503, "no_member")


async def test_member_that_refuses_connections_is_passed_over() -> None:
    gone = Address("127.0.0.1", free_port())
    async with member() as one, balance(one, gone, wait=False, health_interval=60) as running:
        await running.available(1)
        for _ in range(4):
            async with dial(running) as client:
                await client.send("hi")
                assert await client.recv() == "hi"


async def test_handshake_waits_for_a_member() -> None:
    port = free_port()
    async with balance(Address("127.0.0.1", port), wait=False) as running:
        waiting = asyncio.create_task(dial(running).__aenter__())
        await eventually(lambda: len(running.balancer.dispatcher.queue) == 1)
        async with serve(echo, "127.0.0.1", port):
            client = await waiting
            await client.send("hi")
            assert await client.recv() == "hi"
            await client.close()


async def test_client_that_leaves_while_it_waits_costs_nothing() -> None:
    async with balance(Address("127.0.0.1", free_port()), wait=False) as running:
        waiting = asyncio.create_task(dial(running).__aenter__())
        await eventually(lambda: len(running.balancer.dispatcher.queue) == 1)
        waiting.cancel()
        await eventually(lambda: len(running.balancer.dispatcher.queue) == 0)
        await running.idle()


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (4321, "of my own"), (1012, "restart")])
async def test_members_close_reaches_the_client(code: int, reason: str) -> None:
    async def leave(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(code, reason)

    async with member(leave) as one, balance(one) as running, dial(running) as client:
        await client.send("go")
        assert await closing(client) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3999, "enough")])
async def test_clients_close_reaches_the_member(code: int, reason: str) -> None:
    closed: asyncio.Future[tuple[int | None, str | None]] = asyncio.get_running_loop().create_future()

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        closed.set_result((connection.close_code, connection.close_reason))

    async with member(wait) as one, balance(one) as running:
        async with dial(running) as client:
            await client.close(code, reason)
        assert await asyncio.wait_for(closed, LIMIT) == (code, reason)


async def test_client_that_vanishes_is_going_away_for_the_member() -> None:
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        closed.set_result(connection.close_code)

    async with member(wait) as one, balance(one) as running, dial(running) as client:
        client.transport.abort()
        assert await asyncio.wait_for(closed, LIMIT) == 1001
        await running.idle()


async def test_member_that_dies_is_a_close_with_a_code_for_the_client() -> None:
    async def die(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with member(die) as one, balance(one) as running, dial(running) as client:
        await client.send("go")
        assert await closing(client) == (1014, "the member's connection died")


async def test_pings_are_answered_on_both_sides() -> None:
    ponged = asyncio.Event()

    async def ping(connection: ServerConnection) -> None:
        await (await connection.ping())
        ponged.set()
        await echo(connection)

    async with member(ping) as one, balance(one) as running, dial(running) as client:
        await asyncio.wait_for(await client.ping(), LIMIT)
        await asyncio.wait_for(ponged.wait(), LIMIT)


async def test_large_and_fragmented_messages_cross() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 1000

    whole = b"".join([piece async for piece in pieces()])
    async with member(max_size=None) as one, balance(one) as running, dial(running) as client:
        await client.send(pieces())
        assert await client.recv() == whole
        large = random.Random(1).randbytes(MAX_MESSAGE)
        await client.send(large)
        assert await client.recv() == large


async def test_fragmented_message_of_a_member_arrives_whole() -> None:
    async def speak(connection: ServerConnection) -> None:
        async def words() -> AsyncIterator[str]:
            for word in ("ein", "é", "s"):
                yield word
                await asyncio.sleep(0.01)

        await connection.send(words())
        await connection.wait_closed()

    async with member(speak) as one, balance(one) as running, dial(running) as client:
        assert await client.recv() == "einés"


@pytest.mark.usefixtures("through_asgi")
async def test_message_that_is_too_large_is_refused_with_1009() -> None:
    async def speak(connection: ServerConnection) -> None:
        await connection.send(bytes(MAX_MESSAGE + 1))
        await connection.wait_closed()

    async with member(speak) as one, balance(one) as running:
        async with dial(running) as client:
            code, _ = await closing(client)
            assert code == 1009
        async with dial(running) as client:
            try:
                await client.send(bytes(MAX_MESSAGE + 1))
            except ConnectionClosed:
                pass
            code, _ = await closing(client)
            assert code == 1009


async def test_client_that_does_not_read_holds_the_member_back() -> None:
    sent = 0

    async def flood(connection: ServerConnection) -> None:
        nonlocal sent
        while True:
            await connection.send(bytes(64 * 1024))
            sent += 1

    async with (
        member(flood, compression=None) as one,
        balance(one) as running,
        dial(running, max_queue=1, close_timeout=0.1) as client,
    ):
        before = -1
        async with asyncio.timeout(LIMIT):
            while sent > before:
                before = sent
                await asyncio.sleep(0.3)
        assert before * 64 * 1024 < 48 * 1024 * 1024
        for _ in range(before + 10):
            assert await client.recv() == bytes(64 * 1024)


async def test_member_that_does_not_read_holds_the_client_back() -> None:
    go = asyncio.Event()
    received = 0

    async def lazy(connection: ServerConnection) -> None:
        nonlocal received
        await go.wait()
        async for _ in connection:
            received += 1

    async with member(lazy, max_queue=1, compression=None) as one, balance(one) as running, dial(running) as client:
        sent = 0

        async def pump() -> None:
            nonlocal sent
            while True:
                await client.send(bytes(64 * 1024))
                sent += 1

        pumping = asyncio.create_task(pump())
        before = -1
        async with asyncio.timeout(LIMIT):
            while sent > before:
                before = sent
                await asyncio.sleep(0.3)
        assert before * 64 * 1024 < 48 * 1024 * 1024
        go.set()
        await eventually(lambda: sent > before + 10)
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def test_frame_that_comes_with_the_members_handshake_is_not_lost() -> None:
    async def greet(connection: Connection) -> None:
        head = await connection.head()
        key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"sec-websocket-key"))
        hello = Frame(Opcode.TEXT, b"hello").serialize(mask=False)
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n%b" % (accept_key(key.decode()).encode(), hello)
        )
        await connection.to_end()

    async with Member(greet) as one, balance(one) as running, dial(running, close_timeout=0.1) as client:
        assert await asyncio.wait_for(client.recv(), LIMIT) == "hello"
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in one.received[0]
        assert (b"sec-websocket-extensions" in one.received[0]) is wire.edge


@pytest.mark.usefixtures("through_asgi")
async def test_member_that_accepts_wrongly_is_a_bad_response() -> None:
    async def lie(connection: Connection) -> None:
        await connection.head()
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: nonsense\r\n\r\n"
        )
        await connection.to_end()

    async with Member(lie) as one, balance(one) as running:
        with pytest.raises(InvalidStatus) as caught:
            await dial(running)
        assert caught.value.response.status_code == 502
        assert caught.value.response.headers["X-Balancer-Error"] == "bad_response"


@pytest.mark.usefixtures("through_asgi")
async def test_member_that_breaks_the_protocol_is_closed_and_the_client_told() -> None:
    async def babble(connection: ServerConnection) -> None:
        connection.transport.write(b"\xff\xff\xff\xff")
        await connection.wait_closed()

    async with member(babble) as one, balance(one) as running, dial(running) as client:
        code, _ = await closing(client)
        assert code == 1014


@pytest.mark.usefixtures("through_asgi")
async def test_text_that_is_not_utf_8_is_closed_and_the_client_told() -> None:
    async def babble(connection: ServerConnection) -> None:
        connection.transport.write(Frame(Opcode.TEXT, b"\xff").serialize(mask=False))
        await connection.wait_closed()

    async with member(babble) as one, balance(one) as running, dial(running) as client:
        code, _ = await closing(client)
        assert code == 1014


async def test_websocket_on_shutdown_gets_1001_on_both_sides() -> None:
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def wait(connection: ServerConnection) -> None:
        try:
            await echo(connection)
        finally:
            closed.set_result(connection.close_code)

    async with member(wait) as one, balance(one) as running, dial(running) as client:
        await client.send("hi")
        await client.recv()
        leaving = asyncio.create_task(running.balancer.proxy.end_streams())
        assert await closing(client) == (1001, "the balancer is shutting down")
        await leaving
        assert await asyncio.wait_for(closed, LIMIT) == 1001
        assert running.balancer.proxy.active == 0


async def test_plain_requests_go_on_beside_a_websocket() -> None:
    async with Member() as plain, balance(plain) as running:
        answer = await running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n")
        assert answer.endswith(b"ok")
