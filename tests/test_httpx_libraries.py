"""Clients and transports of httpx and of httpx2, its continuation: both work, and what cannot work says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import pytest
from websockets.asyncio.client import connect

from balancer import BalancedTransport, LoadBalancer
from balancer.errors import ConnectFailed, ConnectionDied, ProtocolViolation, Refusal, ResponseTimeout, UpstreamError
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.httpx_adapter import HttpxUpstream
from tests.support.calls import CUT, calling, hang, scripted
from tests.support.paths import ROOT
from tests.support.processes import serving
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.websocket import member as echoing
from tests.support.wire import LIMIT, Connection, Member, balance, eventually

TIMEOUTS = Timeouts(connect=LIMIT, response=LIMIT, idle=LIMIT)


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_call_of_either_library_goes_both_ways(library: Any) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"abc"

    async def echo(connection: Connection) -> None:
        body = await connection.until(b"0\r\n\r\n")
        await connection.send(b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nX-A: 2\r\n\r\n" + body)

    async with scripted(echo) as member, calling(member, library=library) as here:
        answer = await here.client.post("/", content=stream())
        assert isinstance(answer, library.Response)
        assert (answer.status_code, answer.text) == (201, "abc" * 3)
        assert answer.headers.get_list("x-a") == ["1", "2"]
        assert answer.extensions["balancer"].member == member.address
        async with here.client.stream("POST", "/", content=stream()) as response:
            assert [piece async for piece in response.aiter_bytes()]
        await here.idle()


async def test_clients_of_both_libraries_share_a_transport() -> None:
    async with Member() as member:
        transport = BalancedTransport("apps", resolve=ScriptedResolver(member.address))
        async with httpx.AsyncClient(transport=transport) as one, httpx2.AsyncClient(transport=transport) as two:
            answers = await asyncio.gather(one.get("http://a/"), two.get("http://a/"))
        assert [type(it) for it in answers] == [httpx.Response, httpx2.Response]
        assert [it.text for it in answers] == ["ok", "ok"]


async def test_failures_are_exceptions_of_the_callers_library(library: Any) -> None:
    async def cut(connection: Connection) -> None:
        await connection.send(CUT)
        connection.close()

    async def stop(connection: Connection) -> None:
        await connection.send(CUT)
        await connection.to_end()

    async with calling(library=library, timeout=library.Timeout(None, pool=0)) as here:
        with pytest.raises(library.PoolTimeout):
            await here.client.get("/")
        with pytest.raises(library.UnsupportedProtocol, match="plain HTTP"):
            await here.client.get("https://shop.example/")
        with pytest.raises(library.LocalProtocolError):
            await here.client.get("/", headers={"Content-Length": "3", "Transfer-Encoding": "chunked"})
    async with scripted(cut) as member, calling(member, library=library) as here:
        with pytest.raises(library.RemoteProtocolError):
            await here.client.get("/")
    async with scripted(stop) as member, calling(member, library=library, stream_idle_timeout=0.1) as here:
        with pytest.raises(library.ReadTimeout):
            await here.client.get("/")
    async with scripted(hang) as member:
        async with calling(member, library=library) as here:
            asking = asyncio.create_task(here.client.get("/"))
            await eventually(lambda: here.in_flight == 1)
        with pytest.raises(library.ReadError, match="broken off"):
            await asking


async def test_request_of_neither_library_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="takes requests of httpx or httpx2, not str"):
        await BalancedTransport("apps", resolve=ScriptedResolver()).handle_async_request("GET /")


# Other hosts.


def elsewhere(library: Any) -> Any:
    """The rest of the internet."""
    return library.MockTransport(lambda request: library.Response(200, text=f"from {request.url.host}"))


def redirecting() -> Member:
    """A member that sends its clients to another host."""

    async def redirect(connection: Connection) -> None:
        head = b"HTTP/1.1 302 Found\r\nLocation: http://shop.example/x\r\nContent-Length: 0\r\n\r\n"
        await connection.send(head)

    return scripted(redirect)


async def test_mount_sends_redirects_to_other_hosts_elsewhere(library: Any) -> None:
    async with redirecting() as member:
        mounts = {"http://apps": BalancedTransport("apps", resolve=ScriptedResolver(member.address))}
        async with library.AsyncClient(
            mounts=mounts, transport=elsewhere(library), base_url="http://apps", follow_redirects=True
        ) as client:
            assert (await client.get("/")).text == "from shop.example"
            assert (await client.get("http://other.example/")).text == "from other.example"
        assert [it.count(b" HTTP/1.1\r\n") for it in member.received] == [1]


@pytest.mark.parametrize("hosts", ["apps", ["apps", "apps.internal"]], ids=["one", "several"])
async def test_transport_with_hosts_refuses_others(library: Any, hosts: str | list[str]) -> None:
    async with redirecting() as member:
        transport = BalancedTransport("apps", hosts=hosts, resolve=ScriptedResolver(member.address))
        async with library.AsyncClient(transport=transport, base_url="http://Apps:8080") as client:
            assert (await client.get("/")).status_code == 302
            with pytest.raises(library.UnsupportedProtocol, match=r"'shop\.example' is not a host of this .*apps"):
                await client.get("/", follow_redirects=True)
            with pytest.raises(library.UnsupportedProtocol, match=r"not a host of this"):
                await client.get("http://apps.example/")
        assert not any(b"example" in it for it in member.received)


# To members.


async def test_upstream_takes_a_transport_of_either_library(library: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"abc"

    for make_transport in (library.AsyncHTTPTransport, lambda: Own(library.AsyncHTTPTransport())):

        class Own(library.AsyncBaseTransport):  # type: ignore[misc]
            def __init__(self, inner: Any) -> None:
                self.inner = inner

            async def handle_async_request(self, request: Any) -> Any:
                assert isinstance(request, library.Request)
                return await self.inner.handle_async_request(request)

            async def aclose(self) -> None:
                await self.inner.aclose()

        async def echo(connection: Connection) -> None:
            received = await connection.until(b"0\r\n\r\n")
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + received)

        upstream = HttpxUpstream(TIMEOUTS, make_transport)
        async with scripted(echo) as member, calling(member, upstream=upstream, library=httpx) as here:
            assert (await here.client.post("/", content=body())).text == "abc"
            await here.idle()


async def test_upstream_of_either_library_passes_websockets_on(library: Any) -> None:
    upstream = HttpxUpstream(TIMEOUTS, library.AsyncHTTPTransport)
    async with (
        echoing() as one,
        balance(one, upstream=upstream) as running,
        connect(f"ws://{running.address}/", proxy=None) as client,
    ):
        await client.send("héllo")
        assert await client.recv() == "héllo"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("ConnectError", ConnectFailed),
        ("PoolTimeout", ConnectFailed),
        ("ReadTimeout", ResponseTimeout),
        ("ReadError", ConnectionDied),
        ("RemoteProtocolError", ProtocolViolation),
        ("LocalProtocolError", Refusal),
    ],
)
async def test_errors_of_either_library_become_typed_faults(
    library: Any, name: str, fault: type[UpstreamError | Refusal]
) -> None:
    def fail(request: Any) -> Any:
        raise getattr(library, name)("words")

    upstream = HttpxUpstream(TIMEOUTS, lambda: library.MockTransport(fail))
    with pytest.raises(fault):
        await upstream.send(Member().address, UpstreamRequest("GET", b"/", []))
    await upstream.close()


@pytest.mark.parametrize(
    ("make_transport", "words"),
    [
        (httpx.MockTransport(lambda _: httpx.Response(200)), r"a function .* such as lambda: MockTransport\(\.\.\.\)"),
        (httpx2.AsyncHTTPTransport(), r"a function .* such as lambda: AsyncHTTPTransport\(\.\.\.\)"),
        (lambda: "http://proxy", "AsyncBaseTransport of httpx or httpx2, not an object of type str"),
    ],
    ids=["transport", "transport-of-httpx2", "text"],
)  # fmt: skip
async def test_transport_that_cannot_work_is_refused_with_what_is_wanted(make_transport: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        await HttpxUpstream(TIMEOUTS, make_transport).send(Member().address, UpstreamRequest("GET", b"/", []))


# Where a library is not installed.

BLOCKED = """
import sys
from importlib import metadata

absent, version = {}, metadata.version

def no_version(name):
    if name in absent:
        raise metadata.PackageNotFoundError(name)
    return version(name)

sys.modules |= dict.fromkeys(absent)
metadata.version = no_version  # dnspython looks there
"""
CALL = """
import asyncio
import {library}
from balancer import BalancedTransport
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from balancer.types import Address

async def main():
    answer = {library}.Response(200, text="ok")
    upstream = HttpxUpstream(Timeouts(1, 1, 1), lambda: {library}.MockTransport(lambda request: answer))
    resolve = ScriptedResolver(Address("10.0.0.1", 80))
    transport = BalancedTransport("apps", upstream=upstream, resolve=resolve, probe=ScriptedProbe())
    async with {library}.AsyncClient(transport=transport, base_url="http://apps") as client:
        assert (await client.get("/")).text == "ok"
    await HttpxUpstream(Timeouts(1, 1, 1)).close()

asyncio.run(main())
"""


@pytest.mark.parametrize(("present", "absent"), [("httpx", {"httpx2", "httpcore2"}), ("httpx2", {"httpx", "httpcore"})])
def test_one_library_is_enough(present: str, absent: set[str]) -> None:
    program = BLOCKED.format(absent) + CALL.format(library=present)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


async def test_balancer_serve_needs_neither_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    blocked = BLOCKED.format({"httpx", "httpcore", "httpx2", "httpcore2"})
    (tmp_path / "sitecustomize.py").write_text(blocked)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import httpx", stderr=asyncio.subprocess.DEVNULL
    )
    assert await probe.wait() == 1
    async with Member() as member, serving(member) as process, process.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


# What it cannot do.


def test_synchronous_client_hears_what_to_use(library: Any) -> None:
    transport = BalancedTransport("apps", resolve=ScriptedResolver())
    words = r"is for an AsyncClient.* call through `balancer serve`"
    with pytest.raises(TypeError, match=words), library.Client(transport=transport):
        pass
    client = library.Client(transport=transport)
    with pytest.raises(TypeError, match=words):
        client.get("http://apps/")
    client.close()


@pytest.mark.parametrize("use", [
    lambda balancer: BalancedTransport(balancer).handle_async_request(httpx.Request("GET", "http://apps/")),
    lambda balancer: BalancedTransport(balancer).__aenter__(),
    lambda balancer: balancer.__aenter__(),
    lambda balancer: balancer({"type": "http"}, None, None),
    lambda balancer: balancer({"type": "lifespan"}, None, None),
], ids=["call", "client", "balancer", "request", "lifespan"])  # fmt: skip
def test_event_loop_of_another_library_hears_what_to_use(use: Callable[[LoadBalancer], Any]) -> None:
    """trio's runs coroutines by sending to them, as here, with no event loop of asyncio around."""
    step = use(LoadBalancer("apps", resolve=ScriptedResolver(), probe=ScriptedProbe()))
    with pytest.raises(RuntimeError, match=r"runs in an event loop of asyncio.* trio .* `balancer serve`"):
        step.send(None)


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "tcp"])
async def test_upgrade_is_refused_rather_than_dropped(library: Any, protocol: str) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": protocol}
    async with Member() as member, calling(member, library=library) as here:
        with pytest.raises(library.UnsupportedProtocol, match=f"cannot switch to {protocol}.*`balancer serve`"):
            await here.client.get("/", headers=headers)
        assert not member.received


@pytest.mark.parametrize("url", ["http://apps/", "ws://apps/", "wss://apps/"])
async def test_websocket_of_httpx2_hears_what_to_use(url: str) -> None:
    async with Member() as member, calling(member, library=httpx2) as here:
        with pytest.raises(httpx2.UnsupportedProtocol, match=r"cannot switch to websocket.*`balancer serve`"):
            async with here.client.websocket(url):  # type: ignore[attr-defined]
                pass
        assert not member.received
