"""Lines of several processes on one pipe: none is mixed with another, however long, and however slow the reader."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
from collections.abc import Iterator

import pytest

from balancer.demo.system import free_port
from tests.support.processes import Serving, serving
from tests.support.wire import LIMIT, Member, eventually

# Bytes of a target, just below those that are accepted by default, and of a read.
LONG = 15_000
PIECE = 4096
CLIENTS = 8
REQUESTS = 250
# Lines that may wait for the reader: half of what a process keeps before it drops lines.
BEHIND = 60

LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) (\[\d\] )?\w")


@pytest.fixture
def narrow() -> Iterator[tuple[int, int]]:
    """A pipe with room for one page, so that no long line leaves in one piece."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIECE)
    yield reader, writer
    os.close(reader)
    os.close(writer)


class Reader:
    """Reads a page in each turn of the loop. ``lines``: how many have come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = bytearray()
        self.lines = 0
        asyncio.get_running_loop().add_reader(descriptor, self.read)

    def read(self) -> bool:
        try:
            piece = os.read(self._descriptor, PIECE)
        except BlockingIOError:
            return False
        self.text += piece
        self.lines += piece.count(b"\n")
        return bool(piece)

    def finish(self) -> list[str]:
        """Return all lines, of which the last one is whole as well."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        while self.read():
            pass
        *lines, rest = bytes(self.text).decode().split("\n")
        assert rest == ""
        return lines


class Clients:
    """Send requests with long targets, no faster than their lines are read."""

    def __init__(self, serve: Serving, reader: Reader) -> None:
        self._serve = serve
        self._reader = reader
        self._asked = 0

    async def run(self, name: int) -> None:
        # New connections reach all processes.
        for first in range(0, REQUESTS, 10):
            async with self._serve.client() as connection:
                for number in range(first, first + 10):
                    await eventually(lambda: self._asked - self._reader.lines < BEHIND)
                    self._asked += 1
                    await connection.send(b"GET /%d/%d?%b HTTP/1.1\r\nHost: a\r\n\r\n" % (name, number, b"x" * LONG))
                    await connection.until(b"ok")


@pytest.mark.parametrize("together", [False, True], ids=["output", "output-and-errors"])
async def test_long_lines_of_several_processes_on_one_pipe_are_whole(narrow: tuple[int, int], together: bool) -> None:
    err = narrow[1] if together else asyncio.subprocess.DEVNULL
    admin = f"127.0.0.1:{free_port()}"
    async with Member() as member, serving(member, out=narrow[1], err=err, admin=admin, processes="2") as serve:
        reader = Reader(narrow[0])
        clients = Clients(serve, reader)
        await asyncio.gather(*map(clients.run, range(CLIENTS)))
        await eventually(lambda: reader.lines >= CLIENTS * REQUESTS)
        serve.process.terminate()
        async with asyncio.timeout(2 * LIMIT):
            assert await serve.process.wait() == 0
        lines = reader.finish()
    targets = [json.loads(line)["target"].partition("?")[0] for line in lines if line.startswith("{")]
    assert sorted(targets) == sorted(f"/{client}/{number}" for client in range(CLIENTS) for number in range(REQUESTS))
    logged = [line for line in lines if not line.startswith("{")]
    assert [line for line in logged if not LOGGED.match(line)] == []
    assert bool(logged) == together
