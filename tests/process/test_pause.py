"""A process that is paused, as by ``docker compose pause``: time in which it does not run counts for no time-out.

SIGSTOP stops the supervisor and the process that serves; SIGCONT lets them go on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import GET
from tests.support.processes import Serving, serving
from tests.support.tls import issue, trusting
from tests.support.wire import LIMIT, OK, Connection, Member

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")

# Seconds of a time-out, of the time that passes of it before the pause, and of the pause.
TIMEOUT, BEFORE, PAUSE = 2.0, 0.3, 3.0


def _family(pid: int) -> Iterator[int]:
    """Yield a process and those that it has forked."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _family(int(child))


@asynccontextmanager
async def paused(serve: Serving) -> AsyncIterator[None]:
    """Pause a balancer for as long as the context lasts, and for PAUSE seconds at least."""
    family = list(_family(serve.process.pid))
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        await asyncio.sleep(PAUSE)
    finally:
        for pid in reversed(family):
            os.kill(pid, signal.SIGCONT)


class Slow(Member):
    """A member that answers each request once ``answers`` is set. ``asked``: it has got one."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def _wait(self, connection: Connection) -> None:
        while True:
            await connection.head()
            self.asked.set()
            await self.answers.wait()
            await connection.send(OK)


async def _answered_while_paused(serve: Serving, member: Slow) -> None:
    """Pause the balancer while a request is at its member, which answers meanwhile."""
    async with asyncio.timeout(LIMIT):
        await member.asked.wait()
    await asyncio.sleep(BEFORE)
    async with paused(serve):
        member.answers.set()


@pytest.mark.parametrize("door", ["http", "https"])
async def test_answer_that_came_during_a_pause_is_passed_on(door: str, tmp_path: Path) -> None:
    tls: ssl.SSLContext | None = None
    files: dict[str, Any] = {}
    if door == "https":
        files = {name: str(value) for name, value in issue(tmp_path).items()}
        tls = trusting()
    async with (
        Slow() as member,
        serving(member, response_timeout=f"{TIMEOUT}", **files) as serve,
        serve.client(tls) as client,
    ):
        await client.send(GET)
        await _answered_while_paused(serve, member)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_answer_that_came_during_a_pause_is_passed_on_over_http_2(tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    from tests.support.http2 import Http2Client

    settings: dict[str, Any] = {name: str(value) for name, value in issue(tmp_path).items()}
    settings |= {"http2": "on", "response_timeout": f"{TIMEOUT}", "stream_idle_timeout": f"{TIMEOUT}"}
    async with (
        Slow() as member,
        serving(member, **settings) as serve,
        serve.client(trusting("h2")) as connection,
    ):
        client = Http2Client(connection)
        await client.begin()
        stream = await client.ask()
        await _answered_while_paused(serve, member)
        assert (await client.answer(stream)).status == 200


async def test_body_that_came_during_a_pause_is_taken() -> None:
    async def take(connection: Connection) -> None:
        await connection.head()
        asked.set()
        await connection.exactly(6)
        await connection.send(OK)

    asked = asyncio.Event()
    async with (
        Member(take) as member,
        serving(member, stream_idle_timeout=f"{TIMEOUT}") as serve,
        serve.client() as client,
    ):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        async with asyncio.timeout(LIMIT):
            await asked.wait()
        await asyncio.sleep(BEFORE)
        async with paused(serve):
            await client.send(b"def")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_request_that_waits_for_a_member_waits_on_after_a_pause() -> None:
    async with Member() as member, serving(member, queue_timeout=f"{TIMEOUT}") as serve, serve.client() as client:
        await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        await client.exactly(2)
        await member.stop()
        await client.send(GET)
        await asyncio.sleep(BEFORE)
        async with paused(serve):
            await member.start_again()
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_client_that_has_closed_its_side_gets_the_answer_that_came_during_a_pause() -> None:
    async with Slow() as member, serving(member) as serve, serve.client() as client:
        await client.send(GET)
        async with asyncio.timeout(LIMIT):
            await member.asked.wait()
        client.writer.write_eof()
        await asyncio.sleep(0.1)
        async with paused(serve):
            member.answers.set()
        assert (await client.to_end()).endswith(b"ok")


async def test_idle_client_may_ask_again_after_a_pause() -> None:
    async with Member() as member, serving(member, keepalive_timeout=f"{TIMEOUT}") as serve, serve.client() as client:
        await client.send(GET)
        await client.head()
        await client.exactly(2)
        await asyncio.sleep(BEFORE)
        async with paused(serve):
            await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_member_that_does_not_answer_after_a_pause_has_the_rest_of_its_time() -> None:
    async with Slow() as member, serving(member, response_timeout=f"{TIMEOUT}") as serve, serve.client() as client:
        await client.send(GET)
        async with asyncio.timeout(LIMIT):
            await member.asked.wait()
        async with paused(serve):
            pass
        assert (await client.head()).startswith(b"HTTP/1.1 504 ")
