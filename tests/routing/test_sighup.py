"""SIGHUP to a process: routes and certificates are read again under load."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.processes import Serving, serving
from tests.support.routed import named
from tests.support.tls import issue, trusting
from tests.support.websocket import member as websocket_member
from tests.support.wire import Member, eventually


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
                await hang_up(serve, "routes read again: 2 routes to 2 pools; new: ")
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
            await serve.logged(f"the certificate in {options['tls_cert']} is unchanged")
            await serve.logged("routes read again: 1 route to 1 pool; the same pools")


async def test_sighup_ends_nothing_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    async with Member(named("one")) as one:
        async with serving(one) as serve:
            await hang_up(serve, "SIGHUP: there is no file to read again: no certificate, no routes, no token")
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
            await hang_up(serve, "routes read again: 1 route to 1 pool; gone: two")
            stopping = asyncio.create_task(serve.stop())
            for websocket in (first, second):
                with pytest.raises(ConnectionClosed) as caught:
                    await websocket.recv()
                assert caught.value.rcvd
                assert caught.value.rcvd.code == 1001
            status, _, err = await stopping
        assert (status, "Traceback" in err) == (0, False)
