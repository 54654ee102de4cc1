"""A thousand WebSockets at once, whose messages are large, through our own front end."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.support.wire import Connection, Member, Running, balance

CONNECTIONS = 1000
LARGE = 1024 * 1024
# How many are at it at a time: handshakes, so that no queue of a listener overflows, and large messages.
OPENING, ECHOING = 50, 10
# Seconds that only a failing test takes.
PATIENCE = 60
# The client's and the member's descriptors, and two of the balancer, for each connection; and what else there is.
FILES = 4 * CONNECTIONS + 200

NOISE = random.Random(1).randbytes(LARGE + CONNECTIONS)

HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# The answer to that key (RFC 6455 section 1.3).
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
BINARY = 0x82
MASKED = 0x80


@pytest.fixture
def enough_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"{FILES} files are needed, and {hard} may be open")
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def frame(payload: bytes, masked: bool) -> bytes:
    """A binary message; a client's is masked with zeros, which leave it as it is (RFC 6455 section 5.2)."""
    bit = MASKED if masked else 0
    if len(payload) < 126:
        head = bytes([BINARY, bit | len(payload)])
    else:
        head = bytes([BINARY, bit | 127]) + len(payload).to_bytes(8)
    return head + (bytes(4) if masked else b"") + payload


async def message(connection: Connection, masked: bool) -> bytes:
    first, second = await connection.reader.readexactly(2)
    assert first == BINARY
    assert second & MASKED == (MASKED if masked else 0)
    size = second & 0x7F
    if size == 127:
        size = int.from_bytes(await connection.reader.readexactly(8))
    if masked:
        assert await connection.reader.readexactly(4) == bytes(4)
    return await connection.reader.readexactly(size)


async def echo(connection: Connection) -> None:
    await connection.head()
    await connection.send(ACCEPTED)
    while True:
        payload = await message(connection, masked=True)
        connection.writer.write(frame(payload, masked=False))
        await connection.writer.drain()


async def echoes(client: Connection, payload: bytes) -> None:
    """What is sent comes back, byte for byte, and nothing with it."""
    sending = asyncio.create_task(client.send(frame(payload, masked=True)))
    # Not a comparison that pytest would write out.
    same = await message(client, masked=False) == payload
    await sending
    assert same


@pytest.mark.long
async def test_thousand_connections_echo_large_messages(enough_files: None) -> None:
    opening, echoing = asyncio.Semaphore(OPENING), asyncio.Semaphore(ECHOING)

    async def opened(running: Running) -> Connection:
        async with opening:
            client = await everybody.enter_async_context(running.client())
            await client.send(HANDSHAKE)
            assert (await client.head()).startswith(b"HTTP/1.1 101 ")
            return client

    async def large(number: int) -> None:
        async with echoing:
            await echoes(clients[number], NOISE[number : number + LARGE])

    async def small(number: int) -> None:
        await echoes(clients[number], b"%d" % number)

    async with Member(echo) as one, Member(echo) as two, balance(one, two) as running:
        async with asyncio.timeout(PATIENCE), AsyncExitStack() as everybody:
            clients = await asyncio.gather(*[opened(running) for _ in range(CONNECTIONS)])
            assert [it.in_flight for it in running.balancer.membership.members.values()] == [CONNECTIONS // 2] * 2
            for turn in (small, large, small):
                await asyncio.gather(*[turn(number) for number in range(CONNECTIONS)])
            assert running.balancer.proxy.active == CONNECTIONS
        await running.idle()
        assert {it.status for it in running.records} == {101}
        passed = sum(it.body_bytes for it in running.records)
        assert passed >= CONNECTIONS * LARGE
