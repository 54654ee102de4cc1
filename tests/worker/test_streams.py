"""The worker's streams as a client sees them."""

from __future__ import annotations

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.support.workers import worker

OTHER, ECHO = Subprotocol("other"), Subprotocol("echo")


async def test_events_come_one_by_one_and_say_who_sends_them() -> None:
    async with worker() as it, it.client() as client:
        await client.send(b"GET /events?seconds=0.01 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"\r\ncontent-type: text/event-stream; charset=utf-8\r\n" in await client.head()
        for n in range(1, 4):
            assert (await client.until(b"\n\n")).endswith(b"data: Hello World I am me! %d\n\n" % n)


@pytest.mark.parametrize(
    ("path", "least"), [("/events?seconds=0", "0.01"), ("/events?seconds=nan", "0.01"), ("/work?seconds=31", "0")]
)
async def test_pause_that_cannot_be_used_is_refused(path: str, least: str) -> None:
    async with worker() as it:
        answer = (await it.get(path)).decode()
    assert answer.startswith("HTTP/1.1 400")
    assert answer.endswith(f"seconds='{path.partition('=')[2]}' cannot be used: it takes {least} to 30\n")


async def test_echo_returns_text_and_bytes_as_they_are() -> None:
    async with worker() as it, connect(f"ws://127.0.0.1:{it.port}/echo", subprotocols=[OTHER, ECHO]) as client:
        assert client.response and client.response.headers["x-worker"] == "me"
        assert client.subprotocol == "echo"
        for message in ("text", "", b"bytes \x00\xff", b"", "é" * 100_000):
            await client.send(message)
            assert await client.recv() == message


async def test_echo_takes_no_subprotocol_that_it_does_not_know() -> None:
    async with worker() as it, connect(f"ws://127.0.0.1:{it.port}/echo", subprotocols=[OTHER]) as client:
        assert client.subprotocol is None


async def test_websocket_client_that_leaves_leaves_no_trace() -> None:
    async with worker() as it:
        async with connect(f"ws://127.0.0.1:{it.port}/echo") as client:
            await client.send(bytes(1_000_000))
            client.transport.abort()
        assert (await it.stop())[::2] == (0, "")
