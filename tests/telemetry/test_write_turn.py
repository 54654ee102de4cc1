"""Processes that write to one place: whose line is half out keeps the turn, and others wait for it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from balancer.telemetry.log_output import LogOutput
from balancer.telemetry.write_turn import TURN_SECONDS, WriteTurn
from tests.support.wire import LIMIT

# Writes a line that is longer than what the other side takes, says so, and waits for its end.
HOLDER = """
import sys
from balancer.telemetry.log_output import LogOutput
output = LogOutput(1, "standard output")
output.write(b"o" * 2**20 + b"\\n")
print("midway", file=sys.stderr, flush=True)
sys.stdin.read()
"""
# The same, but ends at once; then the process that it was forked from writes a line.
KILLED = """
import os, signal, sys
from balancer.telemetry.log_output import LogOutput
output = LogOutput(1, "standard output")
if not os.fork():
    output.write(b"o" * 2**20 + b"\\n")
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
print("killed", file=sys.stderr, flush=True)
os.read(0, 1)
output.write(b"after\\n")
output.write(b"again\\n")
output.channel.finish(10.0)
"""


def pipe() -> tuple[int, int]:
    return os.pipe()


def terminal() -> tuple[int, int]:
    reader, writer = os.openpty()
    tty.setraw(writer)
    return reader, writer


def socket_pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.fixture(params=[pipe, terminal, socket_pair])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Reader and writer."""
    made: Callable[[], tuple[int, int]] = request.param
    reader, writer = made()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@contextmanager
def holder(writer: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process whose line is half out."""
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            assert process.stderr.readline() == b"midway\n"
            yield process
        finally:
            process.kill()


def other_has_turn(writer: int) -> bool:
    """Return whether another process gets the turn at once."""
    code = "import fcntl; fcntl.lockf(1, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.DEVNULL).returncode == 0


def read(reader: int) -> bytes:
    found = b""
    with suppress(BlockingIOError):
        while piece := os.read(reader, 65536):
            found += piece
    return found


def test_line_waits_while_another_process_has_one_half_out(ends: tuple[int, int]) -> None:
    reader, writer = ends
    with holder(writer):
        output = LogOutput(writer, "it")
        read(reader)
        output.write(b"ours\n")
        assert output.channel.push()
        assert not output.channel.wait(0.01)
        assert b"ours" not in read(reader)
    output.channel.finish(LIMIT)
    assert read(reader).endswith(b"ours\n")
    assert output.dropped == 0


async def test_line_leaves_soon_after_the_other_process_has_passed_the_turn_on(ends: tuple[int, int]) -> None:
    reader, writer = ends
    with holder(writer) as process:
        output = LogOutput(writer, "it")
        output.channel.attach(asyncio.get_running_loop())
        read(reader)
        output.write(b"ours\n")
        await asyncio.sleep(0.02)
        assert b"ours" not in read(reader)
        process.kill()
        found = b""
        async with asyncio.timeout(LIMIT):
            while b"ours" not in found:
                await asyncio.sleep(0.001)
                found += read(reader)
        output.channel.attach(None)


async def test_process_without_its_turn_tries_again_now_and_then(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = ends
    tries: list[float] = []
    with holder(writer):
        output = LogOutput(writer, "it")
        output.channel.attach(asyncio.get_running_loop())
        take = output.channel._turn.take

        def counted() -> bool:
            tries.append(time.monotonic())
            return take()

        monkeypatch.setattr(output.channel._turn, "take", counted)
        output.write(b"ours\n")
        for _ in range(20):
            read(reader)
            await asyncio.sleep(TURN_SECONDS)
        assert not output.channel.watching
        output.channel.attach(None)
    assert 2 < len(tries) < 5 + 2 * (tries[-1] - tries[0]) / TURN_SECONDS


def test_line_of_a_process_that_was_killed_halfway_is_ended_before_the_next(ends: tuple[int, int]) -> None:
    reader, writer = ends
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stderr
        assert process.stderr.readline() == b"killed\n"
        process.stdin.write(b"x")
        process.stdin.close()
        os.set_blocking(reader, True)
        found = b""
        while not found.endswith(b"again\n"):
            found += os.read(reader, 65536)
        assert process.wait(LIMIT) == 0
    half, *lines = found.split(b"\n")
    assert set(half) == set(b"o")
    assert 0 < len(half) < 2**20
    assert lines == [b"after", b"again", b""]


def test_turn_is_passed_on_at_the_end_of_a_line(ends: tuple[int, int]) -> None:
    reader, writer = ends
    output = LogOutput(writer, "it")
    assert other_has_turn(writer)
    while not output.channel.push():
        output.write(b"x" * 100_000 + b"\n")
    assert not other_has_turn(writer)
    while output.channel.push():
        read(reader)
    assert other_has_turn(writer)


def test_files_take_no_turns(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        assert WriteTurn(file.fileno()).take()
        assert other_has_turn(file.fileno())


def test_place_without_locks_is_written_to_as_it_is(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    reader, writer = ends
    output = LogOutput(writer, "it")
    output.write(b"a line\n")
    assert read(reader) == b"a line\n"


# Writes more than any reader takes.
EAGER = """
import asyncio, sys
from balancer.telemetry.log_output import LogOutput
async def main():
    output = LogOutput(1, "standard output")
    output.channel.attach(asyncio.get_running_loop())
    line = sys.argv[1].encode() * 200 + b"\\n"
    while True:
        output.write(line * 100)
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


async def test_processes_share_a_reader_that_is_slower_than_each() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", EAGER, name, stdout=writer) for name in "ab"
    ]
    os.close(writer)
    counts = {b"a": 0, b"b": 0}
    rest = b""
    try:
        async with asyncio.timeout(LIMIT):
            while min(counts.values()) < 200 or sum(counts.values()) < 2000:
                await asyncio.sleep(0.001)
                *lines, rest = (rest + await asyncio.to_thread(os.read, reader, 4096)).split(b"\n")
                for line in lines:
                    assert line in (b"a" * 200, b"b" * 200)
                    counts[line[:1]] += 1
    finally:
        for process in processes:
            process.kill()
            await process.wait()
        os.close(reader)
