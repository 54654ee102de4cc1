"""The worker's log where it is not read."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from balancer.demo.system import free_port
from tests.support.unread import full_pipe
from tests.support.wire import LIMIT
from tests.support.workers import Worker


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that is full."""
    with full_pipe() as ends:
        yield ends


@asynccontextmanager
async def without_redis(err: int) -> AsyncIterator[Worker]:
    port = free_port()
    environ = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "HOST_REDIS": "127.0.0.1", "PORT_REDIS": "1"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "worker", env=environ, stderr=err)
    made = Worker(process, port, "127.0.0.1")
    try:
        async with asyncio.timeout(LIMIT):
            while True:
                try:
                    assert (await made.get("/healthz")).endswith(b"ok\n")
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_worker_whose_log_is_not_read_answers_and_stops(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    async with without_redis(writer) as running:
        for _ in range(2):
            assert (await running.get("/")).endswith(b"Redis is away\n")
        assert (await running.get("/healthz")).endswith(b"ok\n")
        running.signal()
        async with asyncio.timeout(LIMIT):
            assert await running.process.wait() == 0
        assert set(os.read(reader, 1 << 20)) == {ord(".")}


async def test_worker_logs_that_redis_is_away() -> None:
    async with without_redis(PIPE) as running:
        assert (await running.get("/")).endswith(b"Redis is away\n")
        status, _, err = await running.stop()
    assert status == 0
    assert err.count("Redis is away: ") == 1


async def test_worker_reports_the_lines_that_it_dropped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    program = (
        "import logging, os\nfrom worker.log import LINES_MAX, Log\nlog = Log()\n"
        "for number in range(LINES_MAX + 100):\n    logging.warning('line %d', number)\n"
        "os.write(1, b'!')\ninput()\nlog.finish()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=PIPE, stdout=PIPE, stderr=writer
    )
    async with asyncio.timeout(LIMIT):
        assert process.stdout
        await process.stdout.readexactly(1)
        found = b""
        while b"dropped" not in found:
            try:
                found += os.read(reader, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.01)
        await process.communicate(b"\n")
    lines = found.lstrip(b".").decode().splitlines()
    (lost,) = [int(words.split()[0]) for words in lines if words.endswith("lines dropped: the log is not read")]
    assert lost in (99, 100)  # The thread may have one line in its hands.
