"""Bodies flow while they are made; broken ones break; a client that leaves is noticed."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.messages import GET
from tests.support.wire import OK, Connection, Member, balance, eventually

pytestmark = pytest.mark.usefixtures("each_way")


async def test_event_reaches_the_client_before_the_next_is_made() -> None:
    seen = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"9\r\ndata: 1\n\n\r\n"
        )
        await seen.wait()
        await connection.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await client.until(b"data: 1\n\n")
        seen.set()
        assert (await client.until(b"0\r\n\r\n")).count(b"data: 2\n\n") == 1


async def test_upload_reaches_the_member_before_it_is_complete() -> None:
    arrived = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        arrived.set()
        await connection.exactly(3)
        await connection.send(OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\none")
        async with asyncio.timeout(5):
            await arrived.wait()
        await client.send(b"two")
        assert (await client.head()).startswith(b"HTTP/1.1 200")


async def test_large_body_crosses_both_ways_unchanged() -> None:
    size = 4 * 1024 * 1024

    async def script(connection: Connection) -> None:
        await connection.head()
        body = await connection.exactly(size)
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await connection.send(body)

    payload = bytes(range(256)) * (size // 256)
    async with Member(script) as member, balance(member) as running, running.client() as client:
        sending = asyncio.create_task(
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + payload)
        )
        await client.head()
        assert await client.exactly(size) == payload
        await sending


async def test_truncated_response_breaks_the_clients_connection() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with Member(script) as member, balance(member) as running:
        async with running.client() as client:
            await client.send(GET)
            answer = await client.to_end()
        assert answer.endswith(b"\r\n\r\nhalf")
        assert running.records[0].error == "truncated"


async def test_truncated_chunked_response_does_not_end_cleanly() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        answer = await client.to_end()
        assert b"half" in answer
        assert not answer.endswith(b"0\r\n\r\n")


async def test_client_that_leaves_takes_its_exchange_along() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.head()
        asked.set()
        await connection.to_end()
        gone.set()

    async with Member(script) as member, balance(member) as running:
        async with running.client() as client:
            await client.send(GET)
            await asyncio.wait_for(asked.wait(), 5)
        await asyncio.wait_for(gone.wait(), 5)
        await running.idle()
        (record,) = running.records
        assert (record.error, record.status) == ("client_gone", 499)
        assert all(it.in_flight == 0 for it in running.balancer.membership.members.values())


async def test_client_that_leaves_while_it_is_held_leaves_the_queue() -> None:
    async with balance(queue_timeout=30) as running:
        async with running.client() as client:
            await client.send(GET)
            await eventually(lambda: len(running.balancer.dispatcher.queue) == 1)
        await eventually(lambda: len(running.balancer.dispatcher.queue) == 0)


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_event_stream_on_shutdown_ends_as_a_complete_response() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(EVENTS + b"9\r\ndata: 1\n\n\r\n")
        await connection.to_end()

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await client.until(b"data: 1\n\n")
        await running.balancer.proxy.end_streams()
        assert await client.until(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"
        await running.idle()
        assert running.records[0].error == "shutting_down"


async def test_event_under_way_on_shutdown_is_finished_first() -> None:
    half, go = asyncio.Event(), asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(EVENTS + b"5\r\ndata:\r\n")
        half.set()
        await go.wait()
        await connection.send(b"4\r\n 1\n\n\r\n")
        await connection.to_end()

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await client.until(b"data:")
        await running.balancer.proxy.end_streams()
        assert running.balancer.proxy.active == 1
        go.set()
        assert (await client.until(b"0\r\n\r\n")).endswith(b" 1\n\n\r\n0\r\n\r\n")


async def test_stream_that_may_end_by_itself_goes_on_on_shutdown() -> None:
    go = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\n\n\r\n")
        await go.wait()
        await connection.send(b"3\r\nb\n\n\r\n0\r\n\r\n")

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await client.until(b"a\n\n")
        await running.balancer.proxy.end_streams()
        go.set()
        assert b"b\n\n" in await client.until(b"0\r\n\r\n")
