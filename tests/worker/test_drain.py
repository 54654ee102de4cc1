"""A worker that is told to stop loses no request, ends what is endless, and is gone in time."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.wire import LIMIT
from tests.support.workers import Worker, application, worker


def ask(path: str, *headers: bytes) -> bytes:
    return b"".join((b"GET %s HTTP/1.1\r\nHost: a\r\n" % path.encode(), *headers, b"\r\n"))


def dechunked(answer: bytes) -> bytes:
    """The body of a complete chunked response; AssertionError for any other."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    body = b""
    while rest != b"0\r\n\r\n":
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        assert rest[int(size, 16) :][:2] == b"\r\n", f"the response is cut: {answer[-100:]!r}"
        rest = rest[int(size, 16) + 2 :]
    return body


async def test_idle_worker_is_gone_at_once() -> None:
    async with worker() as it:
        status, seconds, err = await it.stop()
    assert (status, err) == (0, "")
    assert seconds < 1


async def test_request_in_flight_is_finished() -> None:
    async with worker() as it, it.client() as client:
        await client.send(ask("/work?seconds=0.7"))
        await asyncio.sleep(0.2)
        it.signal()
        answer = await client.to_end()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in answer
        assert (await it.ended())[::2] == (0, "")


async def test_worker_that_drains_answers_but_is_not_ready() -> None:
    async with worker() as it:
        answers: list[bytes] = []

        async def keep_asking() -> None:  # so that it is not quiet, and stays
            while True:
                answers.append(await it.get("/work?seconds=0"))

        asking = asyncio.create_task(keep_asking())
        it.signal()
        async with asyncio.timeout(2):
            while not (await it.get("/healthz")).startswith(b"HTTP/1.1 503"):
                pass
            seen = len(answers)
            while len(answers) < seen + 3:
                await asyncio.sleep(0.01)
        asking.cancel()
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)


async def test_server_sent_events_end_after_a_whole_event_and_with_a_whole_body() -> None:
    async with worker() as it, it.client() as fast, it.client() as slow:
        await fast.send(ask("/events?seconds=0.01"))
        await slow.send(ask("/events"))
        for client in (fast, slow):
            await client.until(b" 1\n\n")
        began = time.monotonic()
        it.signal()
        for client in (fast, slow):
            body = dechunked(await client.to_end())
            events = body.split(b"\n\n")
            assert events.pop() == b""
            assert events == [b"data: Hello World I am me! %d" % (n + 1) for n in range(len(events))]
        assert time.monotonic() - began < 4
        assert (await it.ended())[::2] == (0, "")


async def test_listener_is_closed_when_server_sent_events_end() -> None:
    async with worker() as it, it.client() as client:
        await client.send(ask("/events"))
        await client.until(b"\n\n")
        it.signal()
        await client.until(b"\r\n0\r\n\r\n")
        with pytest.raises(ConnectionRefusedError):
            await it.get("/")


STARLETTE = """
from starlette.responses import StreamingResponse
def stream(pieces, kind, pause):
    async def body():
        while True:
            for piece in pieces:
                yield piece
                await asyncio.sleep(pause)
    return StreamingResponse(body(), media_type=kind)
"""


@pytest.mark.parametrize(
    "pieces", [(b"data: 1", b"23\n\ndata: 4", b"56\n\n"), (b"data: 1\r", b"\n\r", b"\ndata: 2\r\n\r\n")]
)
@pytest.mark.parametrize("after", [0.0, 0.15])
async def test_event_that_is_sent_in_pieces_is_completed(pieces: tuple[bytes, ...], after: float) -> None:
    source = f"{STARLETTE}\napp = stream({pieces}, 'text/event-stream', 0.1)"
    async with application(source) as it, it.client() as client:
        await client.send(ask("/"))
        await client.head()
        await asyncio.sleep(after)
        it.signal()
        body = dechunked(await client.to_end())
        assert re.fullmatch(rb"(?s:data: \d+(\n\n|\r\n\r\n|\r\n\r))+", body)
        status, seconds, err = await it.ended()
        assert (status, err) == (0, "")
        assert seconds < 1


async def test_event_that_is_never_completed_does_not_hold_up_the_stop() -> None:
    source = f"{STARLETTE}\napp = stream([b'data: '], 'text/event-stream', 0.1)"
    async with application(source) as it, it.client() as client:
        await client.send(ask("/"))
        await client.head()
        began = time.monotonic()
        it.signal()
        dechunked(await client.to_end())
        assert time.monotonic() - began < 4
        assert (await it.ended())[::2] == (0, "")


@pytest.mark.long
async def test_endless_response_is_cut_off_before_docker_kills() -> None:
    source = f"{STARLETTE}\napp = stream([b'more'], 'text/plain', 0.1)"
    async with application(source) as it, it.client() as client:
        await client.send(ask("/"))
        await client.until(b"more")
        began = time.monotonic()
        it.signal()
        answer = await client.to_end()
        assert 7.5 < time.monotonic() - began < 9
        assert not answer.endswith(b"\r\n0\r\n\r\n"), "a cut response must not look complete"
        status, _, err = await it.ended()
        assert status == 0
        assert err == "the time to finish is over: 1 connection is cut off\n"


DEAF = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", KIND)]})
        while True:
            await send({"type": "http.response.body", "body": b"data\\n\\n", "more_body": True})
            await asyncio.sleep(PAUSE)
"""


@pytest.mark.parametrize("kind", [b"text/plain", b"text/event-stream"])
@pytest.mark.parametrize("pause", ["0.1", "0"])
async def test_application_that_hears_of_no_end_is_ended(kind: bytes, pause: str) -> None:
    source = DEAF.replace("KIND", repr(kind)).replace("PAUSE", pause)
    async with application(source, LIMIT_SECONDS=1) as it, it.client() as client:
        await client.send(ask("/"))
        await client.until(b"data\n\n")
        it.signal()
        end = b""
        try:
            async with asyncio.timeout(LIMIT):
                while piece := await client.reader.read(65536):
                    end = (end + piece)[-10:]
        except ConnectionResetError:
            pass
        assert end.endswith(b"\r\n0\r\n\r\n") is (kind == b"text/event-stream")
        status, seconds, err = await it.ended()
        assert status == 0
        assert seconds < 2.5
        assert err.count("\n") == 1


async def test_thread_that_cannot_be_ended_does_not_keep_the_process() -> None:
    source = """
from starlette.applications import Starlette
from starlette.routing import Route
app = Starlette(routes=[Route("/", lambda request: time.sleep(60))])
"""
    async with application(source, LIMIT_SECONDS=1) as it, it.client() as client:
        await client.send(ask("/"))
        await asyncio.sleep(0.3)
        status, seconds, err = await it.stop()
        assert status == 0
        assert 1 < seconds < 4
        assert "Traceback" not in err


async def test_second_signal_skips_the_wait_for_quiet_and_a_third_what_is_in_flight() -> None:
    async with worker() as it, it.client() as client:
        await client.send(ask("/work?seconds=30"))
        await asyncio.sleep(0.2)
        it.signal()
        await asyncio.sleep(0.05)
        it.signal(signal.SIGINT)
        await asyncio.sleep(0.15)
        with pytest.raises(ConnectionRefusedError):
            await it.get("/")
        it.signal()
        status, seconds, err = await it.ended()
        assert (status, err) == (0, "the time to finish is over: 1 connection is cut off\n")
        assert seconds < 2


class Talker:
    """A WebSocket client that sends without a pause and reads what comes, until it is closed."""

    def __init__(self, connection: ClientConnection, message: str | bytes) -> None:
        self.connection = connection
        self.message = message
        self.echoes = 0

    async def talk(self) -> ConnectionClosed:
        """How it ended."""
        sending = asyncio.create_task(self._send())
        try:
            while True:
                assert await self.connection.recv() == self.message
                self.echoes += 1
        except ConnectionClosed as end:
            await sending
            return end

    async def _send(self) -> None:
        try:
            while True:
                await self.connection.send(self.message)
                await asyncio.sleep(0)
        except ConnectionClosed:
            pass


async def talk_until_the_end(it: Worker, count: int, message: str | bytes, compression: str | None) -> list[Talker]:
    """So many clients at a time, through the worker's stop; fails unless each is told of it."""
    url = f"ws://127.0.0.1:{it.port}/echo"
    connections = [await connect(url, compression=compression, open_timeout=30) for _ in range(count)]
    talkers = [Talker(connection, message) for connection in connections]
    talks = [asyncio.create_task(talker.talk()) for talker in talkers]
    await asyncio.sleep(0.5)
    it.signal()
    ends = await asyncio.gather(*talks)
    assert {(end.rcvd.code if end.rcvd else None) for end in ends} == {1012}
    assert {(end.sent.code if end.sent else None) for end in ends} == {1012}
    return talkers


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_two_hundred_busy_websockets_are_closed_with_a_code_and_none_is_reset(compression: str | None) -> None:
    async with worker() as it:
        talkers = await talk_until_the_end(it, 200, "hello", compression)
        assert all(talker.echoes for talker in talkers)
        assert (await it.ended())[::2] == (0, "")


async def test_websockets_with_much_data_on_the_way_both_ways_are_closed_with_a_code() -> None:
    async with worker() as it:
        await talk_until_the_end(it, 20, bytes(200_000), None)
        assert (await it.ended())[::2] == (0, "")


async def test_idle_websocket_does_not_keep_the_worker() -> None:
    async with worker() as it, connect(f"ws://127.0.0.1:{it.port}/echo") as client:
        began = time.monotonic()
        it.signal()
        with pytest.raises(ConnectionClosed) as end:
            await client.recv()
        assert end.value.rcvd and end.value.rcvd.code == 1012
        assert (await it.ended())[::2] == (0, "")
        assert time.monotonic() - began < 1.5


async def test_websocket_client_that_does_not_answer_is_not_waited_for_long() -> None:
    async with worker() as it, it.client() as client:
        upgrade = (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Sec-WebSocket-Version: 13\r\n")
        await client.send(ask("/echo", *upgrade, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"))
        assert (await client.head()).startswith(b"HTTP/1.1 101")
        status, seconds, err = await it.stop()
        assert (status, err) == (0, "")
        assert seconds < 4
        assert (await client.to_end()).endswith(b"\x88\x12\x03\xf4the server stops")


async def test_websocket_application_that_does_not_expect_an_end_makes_one_line() -> None:
    source = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0.01)
"""
    async with application(source) as it, connect(f"ws://127.0.0.1:{it.port}/") as client:
        it.signal()
        with pytest.raises(ConnectionClosed) as end:
            while True:
                await client.recv()
        assert end.value.rcvd and end.value.rcvd.code == 1012
        status, _, err = await it.ended()
        assert status == 0
        assert err.count("\n") == 1
