"""A LoadBalancer inside somebody's application: the path below the mount, its life without a lifespan, its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvloop
from fastapi import FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from balancer import LoadBalancer
from balancer.demo.dns_server import DnsServer, Zone
from balancer.discovery.snapshot import Snapshot
from balancer.dispatch.context import RequestRecord
from balancer.members.membership import Change
from balancer.telemetry.observer import Observer
from balancer.types import Address
from tests.support.mounted import App, served
from tests.support.scripted import ScriptedResolver
from tests.support.wire import LIMIT, Connection, Member, eventually, keep_answering
from tests.support.workers import worker


def over(*members: Member, **settings: Any) -> LoadBalancer:
    return LoadBalancer("apps", resolve=ScriptedResolver(*(it.address for it in members)), **settings)


def inside(app: App) -> httpx.AsyncClient:
    """A client whose requests go to the application without a server."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")


async def raw_get(address: Address, target: bytes) -> bytes:
    """The answer to a request with this very target."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"GET %b HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n" % target)
        async with asyncio.timeout(LIMIT):
            return await reader.read()
    finally:
        writer.close()


def lines(head: bytes) -> list[bytes]:
    return head.lower().split(b"\r\n")


# The path.


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_members_see_what_is_below_the_mount_byte_for_byte(http: str) -> None:
    async with Member() as member:
        app = Starlette(routes=[Mount("/v1", routes=[Mount("/api", over(member))])])
        async with served(app, http=http) as address:
            for target in (b"/a%2Fb/../c?x=%20&&y", b"/%ff", b"//", b"/"):
                assert (await raw_get(address, b"/v1/%61pi" + target)).endswith(b"ok")
                assert member.received[0].split(b"GET ")[-1].startswith(target + b" HTTP/1.1\r\n")
        assert b"x-forwarded-prefix: /v1/api" in lines(member.received[0])


@pytest.mark.parametrize("behind_root", [True, False])
async def test_prefix_is_what_clients_see(behind_root: bool) -> None:
    """A proxy in front cuts off /shop, and the server knows it; or nobody does."""
    async with Member() as member:
        app = FastAPI()
        app.mount("/api", over(member))
        async with served(app, root_path="/shop" if behind_root else "") as address:
            assert (await raw_get(address, b"/api/x")).endswith(b"ok")
        prefix = b"/shop/api" if behind_root else b"/api"
        assert member.received[0].startswith(b"GET /x HTTP/1.1\r\n")
        assert b"x-forwarded-prefix: " + prefix in lines(member.received[0])


async def test_stranger_cannot_say_the_prefix() -> None:
    async with Member() as member:
        app = Starlette(routes=[Mount("/api", over(member)), Mount("/", over(member))])
        async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
            for path in ("/api/x", "/x"):
                assert (await client.get(path, headers={"X-Forwarded-Prefix": "/evil"})).text == "ok"
        mounted, root = member.received
        assert [it for it in lines(mounted) if it.startswith(b"x-forwarded-prefix")] == [b"x-forwarded-prefix: /api"]
        assert b"x-forwarded-prefix" not in root.lower()


async def test_websockets_go_through_the_mount() -> None:
    async with worker() as one:
        workers = LoadBalancer("apps", resolve=ScriptedResolver(Address("127.0.0.1", one.port)))
        app = FastAPI()
        app.mount("/api", workers)
        async with served(app) as address:
            async with connect(f"ws://{address}/api/echo", proxy=None) as client:
                await client.send("héllo")
                assert await client.recv() == "héllo"
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://{address}/api/nowhere", proxy=None)
            assert refused.value.response.status_code == 403  # as Starlette, the worker's own, says it


async def test_callers_middleware_comes_first() -> None:
    async with Member() as member:
        app = FastAPI()

        @app.middleware("http")
        async def stamp(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            if "x-token" not in request.headers:
                return Response("no token", 401)
            response = await call_next(request)
            response.headers["x-stamp"] = "1"
            return response

        app.mount("/api", over(member))
        async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
            assert (await client.get("/api/")).status_code == 401
            passed = await client.get("/api/", headers={"X-Token": "1"})
            assert (passed.text, passed.headers["x-stamp"]) == ("ok", "1")
        assert len(member.received) == 1


async def test_client_that_leaves_is_noticed_through_a_middleware() -> None:
    gone = asyncio.Event()

    async def endless(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")
        await connection.to_end()
        gone.set()

    async with Member(endless) as member:
        app = FastAPI()

        @app.middleware("http")
        async def passing(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            return await call_next(request)

        app.mount("/api", over(member))
        async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
            async with client.stream("GET", "/api/events") as response:
                async for piece in response.aiter_raw():
                    assert piece == b"data: 1\n\n"
                    break
            async with asyncio.timeout(LIMIT):
                await gone.wait()


HANDSHAKE = (
    b"GET /api/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
LEAVERS = {
    "waits-for-the-response": (b"GET /api/ HTTP/1.1\r\nHost: a\r\n\r\n", 1),
    "waits-for-a-member": (b"GET /api/ HTTP/1.1\r\nHost: a\r\n\r\n", 0),
    "sends-half-its-body": (b"POST /api/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", 1),
    "awaits-the-handshake": (HANDSHAKE, 1),
    "awaits-the-handshake-in-the-queue": (HANDSHAKE, 0),
}


class Statuses:
    """An ASGI middleware that notes the status of each response, as an application's metrics do."""

    def __init__(self, app: App, seen: list[int]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(message["status"])
            await send(message)

        await self.app(scope, receive, note)


@pytest.mark.parametrize("leaver", LEAVERS)
@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_client_that_leaves_before_the_response_makes_no_middleware_complain(
    leaver: str, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(connection: Connection) -> None:
        await connection.to_end()

    sent, members = LEAVERS[leaver]
    statuses: list[int] = []
    records: list[RequestRecord] = []

    class Done(Observer):
        def done(self, record: RequestRecord) -> None:
            records.append(record)

    async with Member(hang) as member:
        app = FastAPI()

        @app.middleware("http")
        async def passing(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            return await call_next(request)

        workers = over(*[member] * members, observers=[Done()])
        app.mount("/api", Statuses(workers, statuses))
        async with served(app, http=http) as address:
            _, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            await eventually(lambda: workers.active == 1 and workers.queued == 1 - members)
            writer.close()
            await eventually(lambda: len(records) == 1 and workers.active == 0)
        assert [it.getMessage() for it in caplog.records if it.levelno >= logging.ERROR] == []
        assert [(it.status, it.error) for it in records] == [(499, "client_gone")]
        assert statuses == ([] if sent is HANDSHAKE else [499])


async def test_server_that_reports_a_client_that_has_left_as_the_specification_says_hears_no_error() -> None:
    """ASGI 2.4: send() raises OSError after a disconnect."""
    async with Member() as member, over(member) as workers:
        await eventually(lambda: len(workers.membership.available) == 1)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise OSError("the client has left")

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"a")], "http_version": "1.1"}
        await workers(scope, receive, send)
        body = scope | {"headers": [(b"host", b"a"), (b"content-length", b"3")]}
        await workers(body, receive, send)
        await workers(scope | {"headers": [(b"host", b"a"), (b"host", b"b")]}, receive, send)


async def test_response_that_is_cut_is_not_ended_cleanly() -> None:
    async def cut(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n")

    async with Member(cut) as member:
        app = Starlette(routes=[Mount("/api", over(member))])
        async with served(app) as address:
            answer = await raw_get(address, b"/api/")
            assert b"hal" in answer
            assert not answer.endswith(b"0\r\n\r\n")


# Its life.


async def test_first_request_starts_it_and_waits_for_a_member() -> None:
    async with Member() as member:
        workers = over(member)
        assert not workers.membership.members
        async with inside(Starlette(routes=[Mount("/api", workers)])) as client:
            assert (await client.get("/api/")).text == "ok"
        assert len(workers.membership.available) == 1
        await workers.aclose()


async def test_within_the_lifespan_members_are_known_before_the_first_request() -> None:
    async with Member() as member:
        workers = over(member)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with workers:
                yield

        async with served(Starlette(routes=[Mount("/api", workers)], lifespan=lifespan)) as address:
            await eventually(lambda: len(workers.membership.available) == 1)
            assert (await raw_get(address, b"/api/")).endswith(b"ok")
            assert workers.upstream.idle == 1  # type: ignore[attr-defined]
        assert workers.upstream.idle == 0  # type: ignore[attr-defined]


async def test_mount_as_an_application_of_its_own_hears_of_its_lifespan() -> None:
    async with Member() as member:
        workers = over(member)
        async with served(workers, lifespan="on") as address:
            await eventually(lambda: len(workers.membership.available) == 1)
            assert (await raw_get(address, b"/a?b")).endswith(b"ok")
            assert member.received[0].startswith(b"GET /a?b ")
        assert not [it for it in asyncio.all_tasks() if "Discovery" in repr(it)]


async def test_mount_that_closes_ends_requests_and_leaves_no_task() -> None:
    async def hang(connection: Connection) -> None:
        await connection.to_end()

    async with Member(hang) as member:
        before = asyncio.all_tasks()
        workers = over(member)
        async with inside(workers) as client:
            waiting = asyncio.create_task(client.get("/"))
            await eventually(lambda: len(member.received) == 1)
            await workers.aclose()
            answer = await waiting
        assert (answer.status_code, answer.headers["x-balancer-error"]) == (503, "shutting_down")
        assert asyncio.all_tasks() <= before | {asyncio.current_task()} | member._tasks
        await workers.aclose()  # once more does no harm


async def test_mount_that_has_ended_begins_anew() -> None:
    class Changes(Observer):
        seen: list[tuple[int, int]] = []  # noqa: RUF012

        def resolved(self, snapshot: Snapshot, change: Change) -> None:
            if change:
                self.seen.append((len(change.joined), len(change.left)))

    async with Member() as member:
        workers = over(member, observers=[Changes()])
        for _ in range(2):
            async with workers, inside(workers) as client:
                assert (await client.get("/")).text == "ok"
        assert Changes.seen == [(1, 0), (0, 1), (1, 0)]


# One event loop after the other.

FACTORIES = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return FACTORIES[request.param]


def apart(work: Callable[[], None]) -> None:
    """Run something in a thread of its own, where no event loop is."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


class Outside:
    """A DNS server and a member in an event loop of their own, which stay while others come and go."""

    def __enter__(self) -> Outside:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.member = Member()
        zone = Zone()
        zone.records["apps"] = [("A", "127.0.0.1")]
        self._dns = DnsServer(zone)
        self._run(self._begin())
        return self

    async def _begin(self) -> None:
        await self.member.__aenter__()
        await self._dns.__aenter__()

    async def _end(self) -> None:
        await self.member.stop()
        await self._dns.stop()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT)

    def __exit__(self, *exception: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def balancer(self) -> LoadBalancer:
        return LoadBalancer("apps", upstream_port=self.member.address.port, resolver=str(self._dns.address))


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether nothing has been said about what was left behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    return not [it for it in caplog.records if it.levelno >= logging.WARNING]


def test_mount_ends_with_its_loop_and_lives_again_in_the_next(
    factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    with Outside() as outside:
        workers = outside.balancer()

        async def ask() -> None:
            async with inside(Starlette(routes=[Mount("/api", workers)])) as client:
                for _ in range(2):
                    assert (await client.get("/api/")).text == "ok"

        def both() -> None:
            for _ in range(2):
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.run(ask())

        apart(both)
        assert len(outside.member.received) == 2  # a connection for each loop
        assert workers.upstream.idle == 0  # type: ignore[attr-defined]
        assert quiet(caplog)


def test_loop_that_ends_at_once_leaves_nothing(
    factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    with Outside() as outside:
        workers = outside.balancer()

        async def begin() -> None:
            workers.start()

        async def ask() -> None:
            async with inside(workers) as client:
                assert (await client.get("/")).text == "ok"

        def both() -> None:
            for work in (begin(), ask()):
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.run(work)

        apart(both)
        assert quiet(caplog)


def test_loop_that_was_only_stopped_is_left_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    with Outside() as outside:
        workers = outside.balancer()

        async def ask() -> None:
            async with inside(workers) as client:
                assert (await client.get("/")).text == "ok"
            # What was begun before it was stopped does not go on beside.
            names = [getattr(it.get_coro(), "__qualname__", "") for it in asyncio.all_tasks()]
            assert names.count("Discovery.run") == names.count("Prober.run") == 1

        def both() -> None:
            with asyncio.Runner() as first, asyncio.Runner() as second:
                for runner in (first, second, second, first):
                    runner.run(ask())

        apart(both)
        assert quiet(caplog)


def test_two_loops_at_a_time_are_refused() -> None:
    with Outside() as outside:
        workers = outside.balancer()
        refused: list[str] = []

        async def second() -> None:
            try:
                workers.start()
            except RuntimeError as error:
                refused.append(str(error))

        async def first() -> None:
            async with workers:
                await asyncio.to_thread(asyncio.run, second())

        apart(lambda: asyncio.run(first()))
        assert refused == ["this LoadBalancer is in use in another event loop; make one for each"]


def test_loop_that_ends_in_mid_request_takes_nothing_with_it() -> None:
    async def hang(connection: Connection) -> None:
        await connection.head()
        await connection.to_end()

    with Outside() as outside:
        outside.member.script = hang
        workers = outside.balancer()

        async def ask() -> None:
            async with inside(workers) as client:
                asking = asyncio.create_task(client.get("/"))
                await eventually(lambda: len(outside.member.received) == 1)
                assert not asking.done()

        apart(lambda: asyncio.run(ask()))
        outside.member.script = keep_answering

        async def ask_again() -> None:
            async with inside(workers) as client:
                assert (await client.get("/")).text == "ok"

        apart(lambda: asyncio.run(ask_again()))


@pytest.mark.parametrize(("length", "received"), [("2", 0), ("99", 1)])
async def test_body_of_another_length_than_its_header_says_is_no_second_request(length: str, received: int) -> None:
    async with Member() as member, over(member) as balancer, inside(balancer) as client:
        body = b"abGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        response = await client.post("/", content=body, headers={"Content-Length": length})
        assert (response.status_code, response.headers["x-balancer-error"]) == (400, "malformed_request")
        # One that is too short has been passed on as far as it came, and the connection is closed.
        assert b"".join(member.received).count(body) == received
        assert balancer.upstream.idle == 0  # type: ignore[attr-defined]
