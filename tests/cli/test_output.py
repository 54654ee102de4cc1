"""What commands do where their output goes nowhere: a reader that has left, a full device, a closed descriptor."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import pytest

from balancer.cli.output import Output
from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from tests.support.processes import serving
from tests.support.unread import full_pipe
from tests.support.wire import LIMIT, Member, eventually

FULL = "standard output cannot be written: No space left on device\n"
PYTHON = [sys.executable, "-m", "balancer"]


@pytest.fixture
def closed_pipe() -> Iterator[IO[bytes]]:
    """The writing end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        yield pipe


@pytest.fixture
def full() -> Iterator[IO[bytes]]:
    """A device that has no room."""
    with Path("/dev/full").open("wb", buffering=0) as device:
        yield device


@asynccontextmanager
async def commands() -> AsyncIterator[dict[str, list[str]]]:
    """Each command with arguments with which it succeeds."""
    zone = Zone()
    zone.records["apps"] = [("A", "127.0.0.1")]
    admin = f"127.0.0.1:{free_port()}"
    async with DnsServer(zone) as server, Member() as member, serving(member, admin=admin) as serve:
        await serve.logged("up: accepts connections")
        url = f"http://127.0.0.1:{serve.port}/"
        yield {
            "version": ["--version"],
            "help": ["--help"],
            "help of serve": ["serve", "--help"],
            "check": ["check", f"--resolver={server.address}", f"--upstream-port={member.address.port}"],
            "reload": ["reload", f"--admin-bind={admin}"],
            "watch": ["watch", url, "--count=2", "--rate=100"],
            "watch for scripts": ["watch", url, "--count=2", "--rate=100", "--json"],
            "demo": ["demo", "--seconds=2", "--workers=1", f"--port={free_port()}"],
        }


async def finished(command: list[str], stdout: IO[bytes]) -> tuple[int | None, str]:
    """Exit status and standard error."""
    process = await asyncio.create_subprocess_exec(*command, stdout=stdout, stderr=PIPE)
    async with asyncio.timeout(3 * LIMIT):
        _, err = await process.communicate()
    return process.returncode, err.decode()


async def test_command_whose_reader_has_left_is_silent_and_keeps_its_status(closed_pipe: IO[bytes]) -> None:
    async with commands() as found:
        for name, arguments in found.items():
            assert (name, *await finished([*PYTHON, *arguments], closed_pipe)) == (name, 0, "")
        failing = ["check", "--alias=gone", *found["check"][1:]]
        assert await finished([*PYTHON, *failing], closed_pipe) == (1, "")


async def test_command_whose_output_has_no_room_says_so_and_fails(full: IO[bytes]) -> None:
    async with commands() as found:
        for name, arguments in found.items():
            assert (name, *await finished([*PYTHON, *arguments], full)) == (name, 1, FULL)


async def test_command_without_standard_output_keeps_its_status(full: IO[bytes]) -> None:
    async with commands() as found:
        for name, arguments in found.items():
            if name != "demo":
                closed = ["sh", "-c", 'exec "$0" "$@" >&-', *PYTHON, *arguments]
                assert (name, *await finished(closed, full)) == (name, 0, "")


def test_command_line_that_cannot_be_used_keeps_its_status_whatever_becomes_of_its_words(full: IO[bytes]) -> None:
    assert subprocess.run([*PYTHON, "watch"], stderr=full, timeout=LIMIT).returncode == 2
    environ = os.environ | {"BALANCER_QUEUE_MAX": "x"}
    assert subprocess.run([*PYTHON, "check"], stderr=full, env=environ, timeout=LIMIT).returncode == 2


@pytest.fixture
def unread_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that is full: reader and writer."""
    with full_pipe() as ends:
        yield ends


@asynccontextmanager
async def watching(stdout: int, *arguments: str) -> AsyncIterator[tuple[Process, Member]]:
    async with Member() as member:
        url = f"http://127.0.0.1:{member.address.port}/"
        process = await asyncio.create_subprocess_exec(
            *PYTHON, "watch", url, "--rate=50", *arguments, stdout=stdout, stderr=PIPE
        )
        try:
            yield process, member
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_watch_whose_output_is_not_read_goes_on_and_ends_at_a_signal(unread_pipe: tuple[int, int]) -> None:
    async with watching(unread_pipe[1]) as (process, member):
        await eventually(lambda: len(member.received) >= 5)
        process.terminate()
        async with asyncio.timeout(2 * LIMIT):
            _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"standard output cannot be written: it is not read\n")


async def test_watch_whose_reader_is_late_ends_with_all_of_its_output(unread_pipe: tuple[int, int]) -> None:
    reader, writer = unread_pipe
    async with watching(writer, "--count=5") as (process, member):
        await eventually(lambda: len(member.received) == 5)
        found = b""
        async with asyncio.timeout(LIMIT):
            while b"5 requests, 0 failed" not in found:
                try:
                    found += os.read(reader, 65536)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
            _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert found.count(b" ms  ok\n") == 5


def test_output_of_a_command_without_an_end_has_the_end_of_its_last_line_or_none() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    output.never_wait()
    output.write(b"a line\nhalf")
    assert os.read(reader, 100) == b"a line\n"
    output.flush()
    assert os.read(reader, 100) == b"half"
    output.write(b" of it")
    assert output.status(0) == 0
    assert os.read(reader, 100) == b" of it"
    os.close(reader)
    os.close(writer)
