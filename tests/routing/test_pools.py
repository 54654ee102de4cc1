"""Several pools behind one listener: who gets a request, and what becomes of requests when the routes change."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from balancer.config.settings import Settings
from balancer.dispatch.context import RequestRecord
from balancer.frontend.registry import ClientRegistry
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import State
from balancer.process.sockets import listen
from balancer.routing import pools
from balancer.routing.parse import read
from balancer.routing.pools import Pools
from balancer.telemetry.observer import Observer
from balancer.telemetry.stats import Stats
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.native import NativeUpstream
from tests.support import wire
from tests.support.processes import Serving, serving
from tests.support.scripted import ScriptedResolver
from tests.support.tls import issue, trusting
from tests.support.websocket import member as websocket_member
from tests.support.wire import Connection, Member, eventually

LIMIT = wire.LIMIT


def named(name: str, gate: asyncio.Event | None = None) -> wire.Script:
    """A member that says its name, on any number of connections; with a gate, once that is open."""

    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await connection.exactly(int(line.partition(b":")[2]))
            if gate:
                await gate.wait()
            body = b"" if head.startswith(b"HEAD") else name.encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name) + body)

    return script


class Recorder(Observer):
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def done(self, record: RequestRecord) -> None:
        self.records.append(record)


class Routed:
    """A balancer with routes. ``resolvers``: what DNS says of each alias; ``file``: where its routes are."""

    def __init__(self, balancer: Pools, address: Address, file: Path, resolvers: dict[str, ScriptedResolver]) -> None:
        self.pools = balancer
        self.address = address
        self.file = file
        self.resolvers = resolvers
        self.recorder = Recorder()

    @property
    def records(self) -> list[RequestRecord]:
        return self.recorder.records

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()

    async def ask(
        self, target: str = "/", host: str = "a", method: str = "GET", more: str = "", body: bytes = b""
    ) -> str:
        """The answer to one request on a connection of its own, to its end."""
        async with self.client() as client:
            head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"
            await client.send(head.encode("latin-1") + body)
            return (await client.to_end()).decode()

    async def name(self, target: str = "/", host: str = "a") -> str:
        """Who answers."""
        return (await self.ask(target, host)).rpartition("\r\n")[2]

    def pool(self, name: str) -> LoadBalancer:
        return {it.name: it for it in self.pools.current()}[name]

    async def reload(self, text: str) -> None:
        """Change the file, and wait until that has had its effect."""
        self.file.write_text(text)
        self.pools.reload()
        await eventually(lambda: self.pools._reloading is None)

    async def up(self) -> None:
        await eventually(
            lambda: (
                all(
                    member.state is State.UP for it in self.pools.current() for member in it.membership.members.values()
                )
                and all(it.membership.members for it in self.pools.current())
            )
        )


@asynccontextmanager
async def routed(
    folder: Path, text: str, wait: bool = True, members: dict[str, Member | Address] | None = None, **settings: Any
) -> AsyncIterator[Routed]:
    """A balancer with these routes. ``members`` by alias; where none are given, "one" and "two" have one each."""
    file = folder / "routes.toml"
    file.write_text(text)
    async with AsyncExitStack() as stack:
        if members is None:
            members = {it: await stack.enter_async_context(Member(named(it))) for it in ("one", "two")}
        addresses = {alias: it.address if isinstance(it, Member) else it for alias, it in members.items()}
        resolvers = {alias: ScriptedResolver(it) for alias, it in addresses.items()}
        effective = Settings(**{"routes": str(file), **wire.defaults, **settings})
        recorder = Recorder()

        def make(pool: Settings) -> LoadBalancer:
            limits = Timeouts(pool.connect_timeout, pool.response_timeout, pool.stream_idle_timeout)
            return LoadBalancer(
                pool, resolve=resolvers[pool.alias], upstream=wire.upstream_class(limits), observers=[recorder]
            )

        table = read(effective)
        assert table
        balancer = Pools(effective, table, make, observers=[recorder], stats=Stats())
        sock = listen("BIND", Address("127.0.0.1", 0))
        address = Address("127.0.0.1", sock.getsockname()[1])
        async with balancer:
            clients = ClientRegistry(balancer.proxy, effective) if wire.edge else None
            async with wire.listening(balancer, sock, clients):
                running = Routed(balancer, address, file, resolvers)
                running.recorder = recorder
                if wait:
                    await running.up()
                yield running


@asynccontextmanager
async def slow_one(folder: Path, gate: asyncio.Event) -> AsyncIterator[tuple[Member, Routed]]:
    """All goes to "one", whose member answers once the gate is open; "two" is there to go to."""
    async with (
        Member(named("slow", gate)) as slow,
        Member(named("two")) as two,
        routed(folder, "[one]\n", members={"one": slow, "two": two}) as running,
    ):
        yield slow, running


TWO = """
[one]
host = ["a", "*.a"]

[two]
path = "/two"
"""


# Who gets a request.


@pytest.mark.usefixtures("each_way")
async def test_host_and_path_choose_the_pool(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO + "strip_prefix = true\n") as running:
        for host, target, name in (
            ("a", "/", "one"), ("A:80", "/two", "one"), ("x.a", "/", "one"), ("b", "/two/x", "two"),
            ("b", "/two", "two"),
        ):  # fmt: skip
            assert await running.name(target, host) == name
        assert [(it.pool, it.status) for it in running.records] == [
            (it, 200) for it in ("one", "one", "one", "two", "two")
        ]


@pytest.mark.usefixtures("each_way")
async def test_request_without_a_route_gets_404_with_a_token(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running:
        for method, more, body in (
            ("GET", "", b""),
            ("HEAD", "", b""),
            ("POST", "Content-Length: 5\r\n", b"12345"),
            ("POST", "Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\n0\r\n\r\n"),
        ):
            head, _, text = (await running.ask("/x", "b", method, more, body)).lower().partition("\r\n\r\n")
            assert head.startswith("http/1.1 404 ")
            assert "\r\nx-balancer-error: no_route" in head
            assert text == ("" if method == "HEAD" else "404 no route leads from this host and path to a pool\n")
        assert [(it.status, it.error, it.pool) for it in running.records] == [(404, "no_route", "")] * 4
        assert running.pools.stats
        assert running.pools.stats.errors == {"no_route": 4}


async def test_connection_goes_on_after_a_404(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running, running.client() as client:
        for _ in range(4):  # often enough to be known by its bytes
            for host, status in ((b"a", b"200"), (b"b", b"404")):
                await client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
                head = await client.head()
                assert head.startswith(b"HTTP/1.1 " + status)
                await client.until(b"pool\n" if status == b"404" else b"one")


async def test_body_that_is_not_read_ends_the_connection_after_the_404(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
        assert (await client.to_end()).endswith(b"to a pool\n")


@pytest.mark.usefixtures("each_front")
@pytest.mark.parametrize("target", ["/x/../two", "//two", "/x%2f..%2ftwo", "/two%2fx"])
async def test_path_that_leads_two_ways_is_refused(target: str, tmp_path: Path) -> None:
    async with routed(tmp_path, TWO + "[rest]\nalias = 'one'\n") as running:
        answer = (await running.ask(target, "b")).lower()
        assert answer.startswith("http/1.1 400 ")
        assert "\r\nx-balancer-error: malformed_request" in answer
        (record,) = running.records
        assert (record.error, record.member) == ("malformed_request", None)


async def test_absolute_target_counts_in_place_of_host(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running:
        assert await running.name("http://a/two", "b") == "one"
        assert await running.name("http://b/two?x", "a") == "two"


@pytest.mark.usefixtures("each_way")
async def test_prefix_is_taken_off_and_members_are_told(tmp_path: Path) -> None:
    async with Member(named("one")) as member:
        text = "[api]\nalias = 'one'\npath = '/api'\nstrip_prefix = true\n[one]\n"
        async with routed(tmp_path, text, members={"one": member}) as running:
            for target in ("/api/v1?x=1", "/api", "/api//evil.example/%2e%2e%2e", "/plain"):
                assert await running.name(target) == "one"
            await running.ask("/api/x", more="X-Forwarded-Prefix: /forged\r\n")
        received = b"".join(member.received).split(b"\r\n\r\n")[:-1]
        lines = [it.partition(b"\r\n")[0] for it in received]
        assert lines == [
            b"GET /v1?x=1 HTTP/1.1", b"GET / HTTP/1.1", b"GET /evil.example/%2e%2e%2e HTTP/1.1", b"GET /plain HTTP/1.1",
            b"GET /x HTTP/1.1",
        ]  # fmt: skip
        told = [[it for it in head.split(b"\r\n") if it.startswith(b"x-forwarded-prefix")] for head in received]
        assert told == [[b"x-forwarded-prefix: /api"]] * 3 + [[]] + [[b"x-forwarded-prefix: /api"]]
        assert [it.request.target for it in running.records][:2] == [b"/api/v1?x=1", b"/api"], (
            "the log has the client's"
        )


async def test_prefix_that_a_trusted_proxy_took_off_comes_first(tmp_path: Path) -> None:
    async with Member(named("one")) as member:
        text = "[one]\npath = '/api'\nstrip_prefix = true\n"
        networks = Settings.load({"BALANCER_TRUSTED_PROXIES": "127.0.0.0/8"}).trusted_proxies
        async with routed(tmp_path, text, members={"one": member}, trusted_proxies=networks) as running:
            await running.ask("/api/x", more="X-Forwarded-Prefix: /outer/\r\n")
        assert member.received[0].count(b"x-forwarded-prefix") == 1
        assert b"\r\nx-forwarded-prefix: /outer/api\r\n" in member.received[0]


async def test_each_pool_has_its_own_settings(tmp_path: Path) -> None:
    text = "[one]\nmax_body_bytes = 3\n[two]\npath = '/two'\nsticky_cookie = 'place'\n"
    async with routed(tmp_path, text) as running:
        large = "Content-Length: 5\r\n"
        assert "body_too_large" in await running.ask("/", method="POST", more=large, body=b"12345")
        answer = await running.ask("/two", method="POST", more=large, body=b"12345")
        assert answer.startswith("HTTP/1.1 200 ")
        assert "set-cookie: place=" in answer


async def test_routes_count_for_http2(tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    httpx = pytest.importorskip("httpx")
    async with Member(named("one")) as member:
        place = f"alias = 'one'\nupstream_port = {member.address.port}\n"
        (tmp_path / "routes.toml").write_text(f"[one]\nhost = 'localhost'\npath = '/one'\n{place}")
        files = issue(tmp_path)
        async with (
            serving(member, aliases=["one"], routes=str(tmp_path / "routes.toml"), http2="on", **files) as serve,
            httpx.AsyncClient(http2=True, verify=trusting(), trust_env=False) as client,
        ):
            found = await client.get(f"https://localhost:{serve.port}/one/x")
            assert (found.http_version, found.text) == ("HTTP/2", "one")
            for target, token in (("/x", "no_route"), ("/one%2fx", "malformed_request")):
                answer = await client.get(f"https://localhost:{serve.port}{target}")
                assert (answer.http_version, answer.headers["x-balancer-error"]) == ("HTTP/2", token)


# What becomes of requests when the routes change.


async def test_request_known_by_its_bytes_goes_by_the_new_routes(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running, running.client() as client:
        for name, other in (("one", "two"), ("two", "one"), ("one", "two")):
            for _ in range(5):
                await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.head()
                assert await client.exactly(3) == name.encode()
            await running.reload(f"[{other}]\n")
        assert [it.pool for it in running.records] == ["one"] * 5 + ["two"] * 5 + ["one"] * 5


async def test_pool_whose_settings_stay_is_left_alone(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running:
        for _ in range(3):
            assert await running.name("/two", "b") == "two"
        pool = running.pool("two")
        upstream = pool.upstream
        assert isinstance(upstream, NativeUpstream)
        before = pool, list(pool.membership.members.values()), upstream.opened
        await running.reload("[zwei]\nalias = 'two'\npath = ['/zwei', '/two']\n")
        assert await running.name("/zwei", "b") == "two"
        after = running.pool("zwei")
        assert (after, list(after.membership.members.values()), upstream.opened) == before
        assert upstream.opened == 1


async def test_pool_that_is_gone_finishes_what_it_has_and_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gate = asyncio.Event()
    async with slow_one(tmp_path, gate) as (slow, running):
        pool = running.pool("one")
        asked = asyncio.create_task(running.name())
        await eventually(lambda: len(slow.received) == 1)
        await running.reload("[two]\n")
        assert await running.name() == "two"
        assert [it.name for it in running.pools.current()] == ["two"]
        assert not [it for it in caplog.messages if "closed" in it]
        gate.set()
        assert await asked == "slow"
        await eventually(lambda: "pool one closed: its last request is over" in caplog.messages)
        assert pool not in running.pools._running
        assert isinstance(pool.upstream, NativeUpstream)
        assert (pool.upstream.active, pool.upstream.idle) == (0, 0)


@pytest.mark.usefixtures("each_front")
async def test_websocket_of_a_pool_that_is_gone_goes_on(tmp_path: Path) -> None:
    async with (
        websocket_member() as address,
        Member(named("two")) as two,
        routed(tmp_path, "[one]\n", members={"one": address, "two": two}) as running,
    ):
        pool = running.pool("one")
        async with connect(f"ws://{running.address}/", proxy=None) as websocket:
            await running.reload("[two]\n")
            for _ in range(3):
                await websocket.send("hello")
                assert await websocket.recv() == "hello"
            assert await running.name() == "two"
            assert pool in running.pools._running
        await eventually(lambda: pool not in running.pools._running)


@pytest.mark.usefixtures("each_front")
async def test_requests_that_a_pool_holds_are_served_when_it_is_gone(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n", queue_timeout=5, resolve_interval=0.1) as running:
        running.resolvers["one"].names_none()
        pool = running.pool("one")
        address = next(iter(pool.membership.members))
        await eventually(lambda: not pool.membership.members)
        asked = asyncio.create_task(running.name())
        await eventually(lambda: len(pool.dispatcher.queue) == 1)
        await running.reload("[two]\n")
        assert await running.name() == "two"
        running.resolvers["one"].found(address)
        assert await asked == "one"


async def test_requests_that_a_pool_holds_in_vain_are_told_so_in_time(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n", queue_timeout=1, resolve_interval=0.1) as running:
        running.resolvers["one"].names_none()
        pool = running.pool("one")
        await eventually(lambda: not pool.membership.members)
        asked = asyncio.create_task(running.ask())
        await eventually(lambda: len(pool.dispatcher.queue) == 1)
        await running.reload("[two]\n")
        assert "x-balancer-error: no_member" in await asked
        await eventually(lambda: pool not in running.pools._running)


async def test_pool_that_is_wanted_again_is_taken_back(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with slow_one(tmp_path, gate) as (slow, running):
        pool = running.pool("one")
        asked = asyncio.create_task(running.name())
        await eventually(lambda: len(slow.received) == 1)
        await running.reload("[two]\n")
        await running.reload("[one]\n")
        assert running.pool("one") is pool
        gate.set()
        assert await asked == "slow"
        assert await running.name() == "slow"
        assert pool in running.pools._running


async def test_new_pool_gets_requests_once_dns_and_its_members_have_answered(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.resolvers["two"].broken()
        running.file.write_text("[two]\n")
        running.pools.reload()
        calls = running.resolvers["two"].calls
        await eventually(lambda: running.resolvers["two"].calls > calls + 1)
        assert await running.name() == "one"
        (two,) = running.pools._running - set(running.pools.current())
        running.resolvers["two"].found(await unused_member())
        await eventually(lambda: running.pools._reloading is None)
        assert [it.last_probe_answered > 0 for it in two.membership.members.values()] == [True]
        assert running.pools.current() == [two]


async def unused_member() -> Address:
    async with Member() as member:
        return member.address


async def test_new_pool_without_members_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "READY_SECONDS", 0.3)
    async with routed(tmp_path, "[one]\n", queue_timeout=0) as running:
        running.resolvers["two"].broken()
        await running.reload("[two]\n")
        assert "x-balancer-error: no_member" in await running.ask()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[one", "cannot be used: it is not TOML: "),
        (
            "[one]\ndns_record = 'best'\n[two]\nport = 1",
            "[one] dns_record='best' cannot be used: it takes one of a, aaaa",
        ),
        ("", "cannot be used: there is no route in it"),
    ],
)
async def test_bad_file_changes_nothing_and_one_line_says_why(
    text: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        before = running.pools.current()
        caplog.clear()
        await running.reload(text)
        (line,) = [it.getMessage() for it in caplog.records if it.name == "balancer.routing.pools"]
        assert line.startswith(f"the routes stay as they were: BALANCER_ROUTES={running.file} ")
        assert words in line
        assert "\n" not in line
        assert running.pools.current() == before
        assert await running.name() == "one"


async def test_pool_that_cannot_be_made_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        await running.reload("[three]\n")
        assert "the routes stay as they were: a pool cannot be made: KeyError: 'three'" in caplog.messages
        assert await running.name() == "one"


async def test_file_that_is_gone_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.file.unlink()
        running.pools.reload()
        await eventually(lambda: any("No such file or directory" in it for it in caplog.messages))
        assert await running.name() == "one"


async def test_change_during_a_change_is_not_missed(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.resolvers["two"].broken()
        running.file.write_text("[two]\n")
        running.pools.reload()
        await eventually(lambda: len(running.pools._running) == 2)
        running.file.write_text("[one]\npath = '/only'\n")
        running.pools.reload()
        running.resolvers["two"].names_none()
        await eventually(lambda: running.pools._reloading is None)
        assert await running.name("/only") == "one"
        assert "no_route" in await running.ask("/")


async def test_stop_during_a_change_closes_every_pool(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.resolvers["two"].broken()
        running.file.write_text("[two]\n")
        running.pools.reload()
        await eventually(lambda: len(running.pools._running) == 2)
    assert not running.pools._running


# SIGHUP, over a process.


class Load:
    """ClientRegistry that never rest, and what they got. ``expected``: who must answer a request that begins now."""

    def __init__(self) -> None:
        self.expected = ""
        self.changing = True
        self.answers = 0
        self.failures: list[str] = []

    async def run(self, connect: Callable[[], Any], number: int) -> None:
        """Requests on connections that stay for a while, one after the other, until cancelled."""
        while True:
            async with connect() as client:
                for _ in range(20 + number):
                    body = b"x" * (number % 3)
                    method = b"POST" if body else b"GET"
                    before = self.expected, self.changing
                    length = b"Content-Length: %d\r\n" % len(body) if body else b""
                    await client.send(b"%b / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, length) + body)
                    answer = await client.head() + await client.exactly(3)
                    client.received = b""
                    self.answers += 1
                    name = answer[-3:].decode()
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        self.failures.append(answer.decode())
                    elif not before[1] and before == (self.expected, self.changing) and name != self.expected:
                        self.failures.append(f"{name} in place of {self.expected}")


@asynccontextmanager
async def load(connect: Callable[[], Any], clients: int) -> AsyncIterator[Load]:
    state = Load()
    tasks = [asyncio.create_task(state.run(connect, it)) for it in range(clients)]
    try:
        yield state
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                state.failures.append(repr(outcome))


async def answered(state: Load, more: int) -> None:
    goal = state.answers + more
    await eventually(lambda: state.answers >= goal or bool(state.failures))


async def hang_up(serve: Serving, line: str) -> None:
    serve.process.send_signal(signal.SIGHUP)
    await serve.logged(line)


async def test_sighup_with_a_changed_file_under_load_loses_no_request(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    async with Member(named("one")) as one, Member(named("two")) as two:
        texts = {
            name: f"[{name}]\nupstream_port = {member.address.port}\n"
            "[other]\nhost = 'other'\nalias = 'one'\nqueue_max = 7\n"
            for name, member in (("one", one), ("two", two))
        }
        file.write_text(texts["one"])
        options: dict[str, Any] = {"routes": str(file), "access_log": "off"}
        async with serving(one, aliases=["one", "two"], **options) as serve, load(serve.client, 12) as state:
            await answered(state, 100)
            for number in range(24):
                name = ("two", "one")[number % 2]
                state.changing = True
                file.write_text(texts[name])
                await hang_up(serve, "routes read again: 2 to 2 pools; new: ")
                state.expected, state.changing = name, False
                await answered(state, 100)
                if number % 4 == 0:
                    file.write_text("[two")
                    await hang_up(serve, "the routes stay as they were: ")
                    await answered(state, 50)
        assert state.failures == []
        assert state.answers > 2400
        assert min(len(one.received), len(two.received)) > 0


async def test_signals_that_come_one_upon_the_other_under_load_lose_no_request(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    async with Member(named("one")) as one, Member(named("two")) as two:
        texts = [
            f"[{name}]\nupstream_port = {member.address.port}\nqueue_max = {number}\n"
            for number in range(100, 103)
            for name, member in (("one", one), ("two", two))
        ]
        file.write_text(texts[0])
        options: dict[str, Any] = {"routes": str(file), "access_log": "off"}
        async with serving(one, aliases=["one", "two"], **options) as serve, load(serve.client, 8) as state:
            await answered(state, 50)
            for number in range(60):
                part = tmp_path / "part"
                part.write_text(texts[number % 6])
                part.replace(file)
                serve.process.send_signal(signal.SIGHUP)
                await answered(state, 10)
            file.write_text("[two")
            await hang_up(serve, "the routes stay as they were: ")
        assert state.failures == []


async def test_certificate_that_is_replaced_under_load_loses_no_request(tmp_path: Path) -> None:
    files = issue(tmp_path)
    context = trusting()

    async with Member(named("one")) as one:
        options = {"access_log": "off", **files}
        async with serving(one, **options) as serve, load(lambda: serve.client(context), 8) as state:
            await answered(state, 50)
            for number in range(12):
                issue(tmp_path, "127.0.0.1", f"renewed-{number}")
                await hang_up(serve, "new connections get the certificate")
                async with serve.client(context) as client:
                    names = client.writer.get_extra_info("peercert")["subjectAltName"]
                    assert f"renewed-{number}" in [it for _, it in names]
                await answered(state, 60)
                if number % 4 == 0:
                    (tmp_path / "key.pem").write_text("nothing")
                    await hang_up(serve, "the certificate stays as it was: ")
                    await answered(state, 60)
        assert state.failures == []
        assert state.answers > 700


async def test_sighup_reads_certificate_and_routes(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    async with Member(named("one")) as one:
        file.write_text(f"[one]\nupstream_port = {one.address.port}\n")
        options = {"routes": str(file), **issue(tmp_path)}
        async with serving(one, aliases=["one"], **options) as serve:
            serve.process.send_signal(signal.SIGHUP)
            await serve.logged("new connections get the certificate")
            await serve.logged("routes read again: 1 to 1 pools; the same pools")


async def test_sighup_ends_nothing_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    async with Member(named("one")) as one:
        async with serving(one) as serve:
            await hang_up(serve, "SIGHUP: there is neither a certificate nor a file of routes to read again")
            status, _, err = await serve.stop()
            assert (status, "Traceback" in err) == (0, False)
        routes = f"/x=apps:{one.address.port}"
        async with serving(one, routes=routes) as serve:
            await hang_up(serve, "the routes are those of BALANCER_ROUTES itself, which cannot change")
            async with serve.client() as client:
                await client.send(
                    b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                )
                answers = await client.to_end()
            assert [it in answers for it in (b"200 OK", b"one", b"404 Not Found")] == [True] * 3
            status, out, _ = await serve.stop()
        assert status == 0
        assert [json.loads(it)["status"] for it in out.splitlines()] == [200, 404]


async def test_stop_ends_websockets_of_every_pool(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    async with websocket_member() as address, Member() as unused:
        text = f"[one]\nupstream_port = {address.port}\n"
        file.write_text(f"{text}[two]\npath = '/x'\nalias = 'one'\nupstream_port = {address.port}\nqueue_max = 1\n")
        async with (
            serving(unused, aliases=["one"], routes=str(file)) as serve,
            connect(f"ws://{serve.bind}/", proxy=None) as first,
            connect(f"ws://{serve.bind}/x", proxy=None) as second,
        ):
            file.write_text(text)
            await hang_up(serve, "routes read again: 1 to 1 pools; gone: two")
            stopping = asyncio.create_task(serve.stop())
            for websocket in (first, second):
                with pytest.raises(ConnectionClosed) as caught:
                    await websocket.recv()
                assert caught.value.rcvd
                assert caught.value.rcvd.code == 1001
            status, _, err = await stopping
        assert (status, "Traceback" in err) == (0, False)
