"""``balancer serve`` whose standard output and standard error are not read, or cannot be written."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from balancer.demo.system import free_port
from tests.support.processes import Serving, serving
from tests.support.wire import LIMIT, Member

# Targets of so many bytes, of which so many are more than any stream takes while it is not read.
LONG = 15_000
MANY = 400


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    with Path("/dev/full").open("wb", buffering=0) as device:
        yield device.fileno()


@asynccontextmanager
async def started(out: int, err: int, processes: str = "1") -> AsyncIterator[tuple[Serving, httpx.AsyncClient, str]]:
    """A balancer with a member that is up, a client of its data port, and the URL of its admin port."""
    admin = f"127.0.0.1:{free_port()}"
    async with (
        Member() as member,
        serving(member, admin=admin, out=out, err=err, processes=processes) as serve,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{serve.port}", trust_env=False, timeout=LIMIT) as client,
    ):
        assert (await client.get("/")).text == "ok"
        yield serve, client, f"http://{admin}"


async def dropped(client: httpx.AsyncClient, admin: str, stream: str) -> int:
    """The metric's sum over all processes."""
    text = (await client.get(f"{admin}/metrics")).text
    found = re.findall(rf'balancer_log_lines_dropped_total\{{process="\d",stream="{stream}"\}} (\S+)', text)
    assert found
    return int(sum(map(float, found)))


def read(reader: int) -> bytes:
    found = b""
    try:
        while piece := os.read(reader, 65536):
            found += piece
    except BlockingIOError:
        pass
    return found


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_balancer_whose_output_is_not_read_answers_reports_and_stops(
    processes: str, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    async with started(writer, writer, processes=processes) as (serve, client, admin):
        for number in range(MANY):
            assert (await client.get(f"/{number}?{'x' * LONG}")).text == "ok"
        assert (await client.get(f"{admin}/healthz")).status_code == 200
        async with asyncio.timeout(LIMIT):
            while not await dropped(client, admin, "stdout"):  # Processes report once a second.
                await asyncio.sleep(0.1)
        # Once it is read again, whole lines come, and one of each process that says what is missing.
        text, words = b"", b"of standard output dropped: it is not read"
        async with asyncio.timeout(LIMIT):
            while words not in text:
                text += read(reader)
                await asyncio.sleep(0.01)
        assert (await client.get("/after")).text == "ok"
        assert await dropped(client, admin, "stderr") == 0
        async with asyncio.timeout(LIMIT):
            while b'"/after"' not in text:
                text += read(reader)
                await asyncio.sleep(0.01)
        serve.process.terminate()
        async with asyncio.timeout(LIMIT):
            assert await serve.process.wait() == 0
        text += read(reader)
    lines = [line for line in text.decode().splitlines() if line.startswith("{")]
    answered = [json.loads(line)["target"] for line in lines]
    assert len(answered) == len(set(answered))
    reported = re.findall(r"(\d+) lines? of standard output dropped", text.decode())
    assert len(answered) + sum(map(int, reported)) == MANY + 2


async def test_balancer_whose_output_stays_unread_stops_in_time(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    async with started(writer, writer, processes="2") as (serve, client, _):
        for number in range(100):  # A pipe has room for sixteen pages.
            assert (await client.get(f"/{number}?{'x' * LONG}")).text == "ok"
        serve.process.terminate()
        async with asyncio.timeout(LIMIT):
            assert await serve.process.wait() == 0


async def test_full_device_costs_one_line_and_no_traceback(full: int) -> None:
    async with started(full, asyncio.subprocess.PIPE) as (serve, client, admin):
        await serve.logged("WARNING 1 line of standard output dropped: No space left on device")
        for _ in range(3):
            assert (await client.get("/")).text == "ok"
        async with asyncio.timeout(LIMIT):
            while await dropped(client, admin, "stdout") < 4:
                await asyncio.sleep(0.1)
        assert serve.process.stderr
        serve.process.terminate()
        async with asyncio.timeout(LIMIT):
            err = (await serve.process.stderr.read()).decode()
            status = await serve.process.wait()
    assert status == 0
    assert "Traceback" not in err
    # The end of a process reports the rest.
    assert re.findall(r"WARNING (.*)", err) == ["3 lines of standard output dropped: No space left on device"]
