"""How a client's own calls through ``BalancedTransport`` end: in the caller's time, early, and all together."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from balancer import BalancedTransport, LoadBalancer, Settings
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream
from tests.support.calls import CUT, calling, hang, scripted
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import LIMIT, OK, Connection, Member, Script, eventually, keep_answering
from tests.support.workers import worker

# The caller's own patience.


async def test_call_without_a_member_ends_in_the_callers_time() -> None:
    async with calling(timeout=httpx.Timeout(None, pool=0.1)) as here:
        with pytest.raises(httpx.PoolTimeout, match="no member"):
            await here.client.get("/")
        await here.idle()
        assert len(here.balancer.dispatcher.queue) == 0


@pytest.mark.parametrize("pool", [0.05, None])
async def test_call_without_a_response_ends_in_the_callers_time(pool: float | None) -> None:
    async with scripted(hang) as member, calling(member, timeout=httpx.Timeout(None, pool=pool, read=0.1)) as here:
        with pytest.raises(httpx.ReadTimeout, match="no response"):
            await here.client.get("/")
        await here.idle()
        assert len(member.received) == 1


async def test_pool_timeout_of_nothing_takes_a_member_that_is_up() -> None:
    """As with httpx, where a free connection is no wait."""
    async with Member() as member, calling(member, timeout=httpx.Timeout(5, pool=0)) as here:
        for _ in range(3):
            assert (await here.client.get("/")).text == "ok"
        assert (await here.client.post("/", content=b"")).text == "ok"


@pytest.mark.parametrize("members", [0, 1])
async def test_pool_timeout_of_nothing_waits_for_no_member(members: int) -> None:
    async with scripted(hang) as member:
        limited = calling(*[member] * members, timeout=httpx.Timeout(None, pool=0), max_requests_per_member=1)
        async with limited as here:
            busy = [asyncio.create_task(here.client.get("/")) for _ in range(members)]
            await eventually(lambda: here.in_flight == members)
            with pytest.raises(httpx.PoolTimeout, match="no member"):
                await here.client.get("/")
            assert here.in_flight == members
            for it in busy:
                it.cancel()
            await asyncio.gather(*busy, return_exceptions=True)


class Connecting:
    """The loop's ``create_connection``, which waits for a gate first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._connect: Any = loop.create_connection
        self.open = asyncio.Event()
        self.begun = 0
        monkeypatch.setattr(loop, "create_connection", self)

    async def __call__(self, *args: Any, **more: Any) -> Any:
        self.begun += 1
        await self.open.wait()
        return await self._connect(*args, **more)


@pytest.fixture(params=[None, HttpxUpstream], ids=["native", "httpx"])
def upstream(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of a transport whose calls reach members in either way; probes are left out of it."""
    settings: dict[str, Any] = {"probe": ScriptedProbe()}
    if request.param:
        settings["upstream"] = request.param(Timeouts(connect=LIMIT, response=LIMIT, idle=LIMIT))
    return settings | {"connect_timeout": LIMIT}


async def test_connect_timeout_ends_a_call_and_says_nothing_of_the_member(
    upstream: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Member() as member, calling(member, timeout=httpx.Timeout(None, connect=0.05), **upstream) as here:
        connecting = Connecting(monkeypatch)
        with pytest.raises(httpx.ConnectTimeout, match="no connection"):
            await here.client.get("/")
        assert connecting.begun == 1
        await here.idle()
        assert len(here.balancer.membership.available) == 1
        connecting.open.set()
        assert (await here.client.get("/", timeout=None)).text == "ok"
        # A connection that is there takes no connecting.
        connecting.open.clear()
        assert (await here.client.get("/", timeout=httpx.Timeout(None, connect=0))).text == "ok"


async def test_connect_timeout_is_for_connecting_alone(upstream: dict[str, Any]) -> None:
    async def late(connection: Connection) -> None:
        await asyncio.sleep(0.1)
        await connection.send(OK)

    async with scripted(late) as member, calling(member, **upstream) as here:
        assert (await here.client.get("/")).text == "ok"
        # The connection is there, and the response takes its time.
        assert (await here.client.get("/", timeout=httpx.Timeout(None, connect=0))).text == "ok"


async def test_read_timeout_does_not_count_what_comes_before(
    upstream: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Member() as member, calling(member, timeout=httpx.Timeout(None, read=1), **upstream) as here:
        connecting = Connecting(monkeypatch)
        asking = asyncio.create_task(here.client.get("/"))
        await eventually(lambda: connecting.begun == 1)
        await asyncio.sleep(1.2)
        connecting.open.set()
        assert (await asking).text == "ok"


@pytest.mark.parametrize("members", [0, 1])
async def test_call_that_waits_is_woken_by_what_it_waits_for_alone(
    members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(hang) as member:
        limits = httpx.Timeout(LIMIT, connect=0.01)
        settings: dict[str, Any] = {"probe": ScriptedProbe(), "health_interval": 5, "resolve_interval": 5}
        async with calling(*[member] * members, timeout=limits, **settings) as here:
            asking = [asyncio.create_task(here.client.get("/")) for _ in range(10)]
            await eventually(lambda: here.in_flight == 10 if members else here.balancer.queued == 10)
            await asyncio.sleep(0.2)
            loop, calls = asyncio.get_running_loop(), 0
            call_at: Any = loop.call_at

            def count(*args: Any, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                return call_at(*args, **more)

            monkeypatch.setattr(loop, "call_at", count)
            await asyncio.sleep(0.5)
            monkeypatch.undo()
            for it in asking:
                it.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            # Ten calls that look every 10 ms would be 500. Probes and DNS have timers, too.
            assert calls < 40


async def test_call_whose_body_stops_ends_in_the_callers_time() -> None:
    async def stop(connection: Connection) -> None:
        await connection.send(CUT)
        await connection.to_end()

    async with scripted(stop) as member, calling(member, timeout=httpx.Timeout(None, read=0.1)) as here:
        with pytest.raises(httpx.ReadTimeout, match="nothing more"):
            await here.client.get("/")
        await here.idle()


async def test_member_that_takes_nothing_more_in_the_callers_time() -> None:
    async def stuck(connection: Connection) -> None:
        await asyncio.sleep(LIMIT)

    async def stream() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    async with scripted(stuck) as member, calling(member, timeout=httpx.Timeout(None, write=0.2)) as here:
        with pytest.raises(httpx.WriteTimeout):
            await here.client.post("/", content=stream())
        await here.idle()


async def test_slow_caller_is_not_the_members_fault() -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.2)
            yield b"x"

    async def take(connection: Connection) -> None:
        await connection.until(b"0\r\n\r\n")
        await connection.send(OK)

    async with scripted(take) as member, calling(member, timeout=httpx.Timeout(None, write=0.1, read=0.15)) as here:
        assert (await here.client.post("/", content=stream())).text == "ok"


# What is left.


@pytest.mark.parametrize("script", [hang, keep_answering])
async def test_caller_that_is_cancelled_leaves_nothing(script: Script) -> None:
    async with Member(script) as member, calling(member) as here:
        for turns in (*range(12), 200):
            asking = asyncio.create_task(here.client.get("/"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await here.idle()
        transport = here.client._transport
        assert isinstance(transport, BalancedTransport)
        assert not transport._calls
        assert all(record.duration for record in here.records)


async def test_response_that_is_closed_early_ends_the_exchange() -> None:
    ended = asyncio.Event()

    async def endless(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nx")
        await connection.to_end()
        ended.set()

    async with scripted(endless) as member, calling(member) as here:
        async with here.client.stream("GET", "/") as response:
            assert await anext(response.aiter_raw()) == b"x"
        async with asyncio.timeout(LIMIT):
            await ended.wait()
        await here.idle()
        assert [it.error for it in here.records] == ["client_gone"]


async def test_to_close_the_client_breaks_off_its_calls_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with scripted(hang) as member:
        async with calling(member) as here:
            waiting = asyncio.create_task(here.client.get("/"))
            forgotten = here.client.build_request("GET", "/")
            await eventually(lambda: len(member.received) == 1)
            sending = asyncio.create_task(here.client.send(forgotten, stream=True))
            await eventually(lambda: len(member.received) == 2)
        for task in (waiting, sending):
            with pytest.raises(httpx.ReadError, match="broken off"):
                await task
        assert asyncio.all_tasks() <= before | member._tasks


async def test_call_is_freed_by_counting_references() -> None:
    """But for the cycle that ``httpx.AsyncClient`` makes of a response and its stream."""
    async with Member() as member, calling(member) as here:
        transport = here.client._transport
        assert isinstance(transport, BalancedTransport)
        for content in (b"", b"x" * 100_000):
            answer = await transport.handle_async_request(here.client.build_request("GET", "/", content=content))
            (call,) = transport._calls
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            assert b"".join([piece async for piece in answer.stream]) == b"ok"
            await eventually(lambda: not transport._calls)
            left = weakref.ref(call)
            del call, answer
            assert left() is None


# Shared with an application.


async def test_client_may_share_the_balancer_of_an_application() -> None:
    async with Member() as member, LoadBalancer("apps", resolve=ScriptedResolver(member.address)) as workers:
        async with httpx.AsyncClient(transport=BalancedTransport(workers), base_url="http://a") as client:
            assert (await client.get("/")).text == "ok"
        # It is not the client's, so it goes on.
        through = httpx.ASGITransport(workers)
        async with httpx.AsyncClient(transport=through, base_url="http://a") as client:
            assert (await client.get("/")).text == "ok"
        assert len(member.received) == 1


async def test_calls_end_with_the_shared_balancer() -> None:
    async with scripted(hang) as member:
        workers = LoadBalancer("apps", resolve=ScriptedResolver(member.address))
        async with httpx.AsyncClient(transport=BalancedTransport(workers), base_url="http://a") as client:
            asking = asyncio.create_task(client.get("/"))
            await eventually(lambda: len(member.received) == 1)
            await workers.aclose()
            answer = await asking
            assert (answer.status_code, answer.headers["x-balancer-error"]) == (503, "shutting_down")


def test_balancer_that_is_there_takes_no_settings() -> None:
    with pytest.raises(TypeError, match="policy"):
        BalancedTransport(LoadBalancer(Settings(resolver=Address("127.0.0.1", 53))), policy="random")


async def test_client_without_async_with_starts_by_itself() -> None:
    async with worker() as one:
        resolve = ScriptedResolver(Address("127.0.0.1", one.port))
        client = httpx.AsyncClient(transport=BalancedTransport("apps", resolve=resolve), base_url="http://a")
        assert (await client.get("/work", params={"seconds": 0})).text == "me worked for 0 s.\n"
        await client.aclose()
