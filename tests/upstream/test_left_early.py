"""However a response is left, its exchange ends: no connection, no slot and no task stays behind.

On both seams with httpx: a program's own calls through the balancer, and a user's transport to members.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.native import NativeUpstream
from tests.support.calls import Calls, calling
from tests.support.messages import GET
from tests.support.mounted import served
from tests.support.scripted import ScriptedProbe
from tests.support.wire import LIMIT, Connection, Member, Running, Script, balance, eventually

# How many calls a member takes at a time, so that a slot that is not given back is missed.
SLOTS = 3

MEMBER = Address("10.0.0.1", 80)

Leave = Callable[[httpx.AsyncClient], Awaitable[None]]


async def begin_and_stop(connection: Connection) -> None:
    """Begin a response, and say no more until the balancer closes the connection."""
    await connection.head()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun")
    await connection.to_end()


async def pour(connection: Connection) -> None:
    """Send a response without end."""
    await connection.head()
    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await connection.send(b"x" * 65536)


async def begun(client: httpx.AsyncClient, **extensions: Any) -> httpx.Response:
    return await client.send(client.build_request("GET", "/", extensions=extensions), stream=True)


async def take_all(response: httpx.Response, took: Callable[[], None] = lambda: None) -> None:
    async for _ in response.aiter_raw():
        took()


async def by_a_break(client: httpx.AsyncClient) -> None:
    async for _ in (await begun(client)).aiter_raw():
        break


async def by_an_exception(client: httpx.AsyncClient) -> None:
    def give_up() -> None:
        raise ValueError("enough")

    with suppress(ValueError):
        await take_all(await begun(client), give_up)


async def by_being_cancelled(client: httpx.AsyncClient) -> None:
    waiting = asyncio.Event()
    taking = asyncio.create_task(take_all(await begun(client), waiting.set))
    await waiting.wait()
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)


async def by_being_cancelled_between_two_pieces(client: httpx.AsyncClient) -> None:
    async def take(response: httpx.Response) -> None:
        async for _ in response.aiter_raw():
            waiting.set()
            await asyncio.sleep(LIMIT)

    waiting = asyncio.Event()
    taking = asyncio.create_task(take(await begun(client)))
    await waiting.wait()
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)


async def by_a_time_out_of_its_own(client: httpx.AsyncClient) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await take_all(await begun(client))


async def by_a_time_out_of_httpx(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await take_all(await begun(client, timeout={"read": 0.05}))


async def by_closing_the_response(client: httpx.AsyncClient) -> None:
    await (await begun(client)).aclose()


async def by_closing_the_iterator(client: httpx.AsyncClient) -> None:
    pieces = (await begun(client)).aiter_raw()
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]


async def without_a_look_at_it(client: httpx.AsyncClient) -> None:
    await begun(client)
    gc.collect()  # httpx makes a cycle of a response and its stream.


async def with_an_iterator_that_never_began(client: httpx.AsyncClient) -> None:
    (await begun(client)).aiter_raw()
    gc.collect()


WAYS = [
    by_a_break,
    by_an_exception,
    by_being_cancelled,
    by_being_cancelled_between_two_pieces,
    by_a_time_out_of_its_own,
    by_a_time_out_of_httpx,
    by_closing_the_response,
    by_closing_the_iterator,
    without_a_look_at_it,
    with_an_iterator_that_never_began,
]


@asynccontextmanager
async def nothing_left(here: Calls, member: Member) -> AsyncIterator[None]:
    """What is begun within has to be over soon, on both sides, without a word to the loop's exception handler."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    upstream = here.balancer.upstream
    assert isinstance(upstream, NativeUpstream)
    before = asyncio.all_tasks()
    yield
    await here.idle()
    await eventually(lambda: upstream.active == len(member._tasks) == 0)
    await eventually(lambda: asyncio.all_tasks() <= before)
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize(
    ("leave", "script"),
    # Of what pours, there is always another piece in time.
    [(it, begin_and_stop) for it in WAYS] + [(it, pour) for it in WAYS if "time_out" not in it.__name__],
    ids=lambda it: it.__name__,
)
async def test_call_ends_whichever_way_its_response_is_left(leave: Leave, script: Script) -> None:
    async with Member(script) as member, calling(member, max_requests_per_member=SLOTS, queue_timeout=LIMIT) as here:
        async with nothing_left(here, member):
            for _ in range(SLOTS + 1):
                await leave(here.client)
        assert [it.error for it in here.records] == ["client_gone"] * (SLOTS + 1)


async def test_client_that_is_closed_ends_the_calls_whose_bodies_are_read() -> None:
    async with Member(begin_and_stop) as member, calling(member) as here, nothing_left(here, member):
        waiting = asyncio.Event()
        taking = asyncio.create_task(take_all(await begun(here.client), waiting.set))
        await waiting.wait()
        await here.client.aclose()
        with pytest.raises(httpx.ReadError, match="broken off"):
            await taking


async def test_body_is_taken_once_as_of_httpx_itself() -> None:
    async with Member(begin_and_stop) as member, calling(member) as here, nothing_left(here, member):
        response = await begun(here.client)
        async for _ in response.aiter_raw():
            break
        with pytest.raises(httpx.StreamConsumed):
            await take_all(response)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        await here.idle()
        with pytest.raises(httpx.ReadError, match="broken off"):
            await anext(aiter(response.stream))


@pytest.mark.parametrize("script", [begin_and_stop, pour])
async def test_call_ends_when_the_client_leaves_to_whom_its_response_is_passed_on(script: Script) -> None:
    app = FastAPI()

    @app.get("/")
    async def passed_on() -> StreamingResponse:
        return StreamingResponse((await begun(here.client)).aiter_raw())

    async with (
        Member(script) as member,
        calling(member, max_requests_per_member=SLOTS, queue_timeout=LIMIT) as here,
        served(app) as address,
    ):
        async with nothing_left(here, member):
            for _ in range(SLOTS + 1):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                async with asyncio.timeout(LIMIT):
                    await reader.readuntil(b"\r\n\r\n")
                    await reader.readline()
                writer.transport.abort()
        assert [it.error for it in here.records] == ["client_gone"] * (SLOTS + 1)


# A user's transport.


class OwnStream(httpx.AsyncByteStream):
    """A body of ``pieces`` that then hangs. ``closed``: how often it was; ``finalized``: its iterator is over."""

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self.closed = 0
        self.finalized = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(self._pieces):
                yield b"x" * 65536
            await asyncio.sleep(LIMIT)
        finally:
            self.finalized = True

    async def aclose(self) -> None:
        self.closed += 1


class OwnTransport(httpx.AsyncBaseTransport):
    def __init__(self, pieces: int, status: int = 200) -> None:
        self._pieces = pieces
        self._status = status
        self.streams: list[OwnStream] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.streams.append(OwnStream(self._pieces))
        return httpx.Response(self._status, stream=self.streams[-1])


@asynccontextmanager
async def through(transport: OwnTransport, **settings: Any) -> AsyncIterator[Running]:
    upstream = HttpxUpstream(Timeouts(1, LIMIT, LIMIT), lambda: transport)
    async with balance(MEMBER, upstream=upstream, probe=ScriptedProbe(), **settings) as running:
        yield running
        await running.idle()
        (member,) = running.balancer.membership.available
        assert member.in_flight == 0
        assert upstream._members[MEMBER].in_use == 0
        await eventually(lambda: all(it.closed == 1 for it in transport.streams))


@pytest.mark.usefixtures("each_front")
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("pieces", [1, 1000])
async def test_response_of_a_users_transport_is_closed_when_its_client_leaves(pieces: int, reset: bool) -> None:
    transport = OwnTransport(pieces)
    async with through(transport) as running:
        async with running.client() as client:
            await client.send(GET)
            await client.exactly(4096)
            if reset:
                client.reset()
        await eventually(lambda: transport.streams[0].finalized)


@pytest.mark.usefixtures("each_front")
async def test_response_that_cannot_be_used_is_closed() -> None:
    transport = OwnTransport(0, 101)
    async with through(transport) as running, running.client() as client:
        await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")
