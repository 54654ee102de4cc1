"""The member behind every candidate: it writes down what it is sent, and answers as a case wants it to."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from bench.processes import Address
from tests.support.hostile_answers import ANSWERS

# What it sends of a response without end, before it waits for what becomes of it.
ENDLESS = 16 * 1024 * 1024
# The body of ``/flood``, for clients that do not read.
FLOOD = 256 * 1024 * 1024

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
# Sent before the body of ``/refuse`` is read.
_REFUSAL = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:[^\n]*chunked", re.IGNORECASE)
_SIZE = re.compile(rb"[0-9A-Fa-f]+")


@dataclass(eq=False)
class Request:
    """A request as this member reads it: generously, so that it sees what a lax server would."""

    connection: int
    head: bytes
    raw_body: bytes = b""
    complete: bool = False

    @property
    def path(self) -> bytes:
        words = self.head.split(b"\n", 1)[0].split()
        return words[1] if len(words) > 1 else b""


class Member:
    """Listens on ``address``. ``requests``: what came in since ``reset``."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._count = 0
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, address: Address) -> None:
        self._server = await asyncio.start_server(self._serve, *address)

    async def stop(self) -> None:
        self._server.close()
        await self.reset()

    async def reset(self) -> None:
        """Forget what was, and close all connections, so that no case meets what another one left behind."""
        tasks = list(self._tasks)
        for task, writer in list(self._tasks.items()):
            writer.close()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.requests = []

    def hang_up(self) -> None:
        """Close all connections, as a member does that has sent what it had."""
        for writer in self._tasks.values():
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks[task] = writer
        self._count += 1
        number, requests = self._count, self.requests
        try:
            data = b""
            while True:
                while not (end := _HEAD_END.search(data)):
                    data += await _some(reader)
                request = Request(number, data[: end.end()])
                requests.append(request)
                if refused := request.path == b"/refuse":
                    writer.write(_REFUSAL)
                data = await _body(request, data[end.end() :], reader)
                request.complete = True
                if not refused and not await self._answer(request, writer):
                    return
        except (ConnectionError, EOFError, asyncio.CancelledError):
            pass
        finally:
            del self._tasks[task]
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        kind, _, number = request.path[1:].partition(b"/")
        if kind == b"flood":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD)
            for _ in range(FLOOD // 65536):
                writer.write(bytes(65536))
                await writer.drain()
        elif kind == b"answer":
            answer = ANSWERS[int(number)]
            writer.write(answer.response)
            for _ in range(ENDLESS // len(answer.forever) if answer.forever else 0):
                writer.write(answer.forever)
                await writer.drain()
            await writer.drain()
            return not answer.closes
        else:
            writer.write(_OK)
            await writer.drain()
        return True


async def _some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(65536)
    if not data:
        raise EOFError
    return data


async def _body(request: Request, data: bytes, reader: asyncio.StreamReader) -> bytes:
    """Read the body into ``request``; what follows it is given back."""
    if _CHUNKED.search(request.head):
        while (size := _chunked_size(data)) is None:
            request.raw_body = data
            data += await _some(reader)
    else:
        found = _LENGTH.search(request.head)
        size = int(found[1]) if found else 0
        while size > len(data):
            request.raw_body = data
            data += await _some(reader)
    request.raw_body = data[:size]
    return data[size:]


def _chunked_size(data: bytes) -> int | None:
    """Where a chunked body ends, or None if it does not yet."""
    at = 0
    while True:
        line = data.find(b"\n", at)
        if line < 0:
            return None
        size = _SIZE.match(data, at)
        at = line + 1
        if size and int(size[0], 16):
            at += int(size[0], 16)
            end = data.find(b"\n", at)
            if end < 0:
                return None
            at = end + 1
            continue
        while True:
            end = data.find(b"\n", at)
            if end < 0:
                return None
            line_text, at = data[at:end].rstrip(b"\r"), end + 1
            if not line_text:
                return at
