"""Workers, and other applications behind ``worker.drain``, as processes of their own on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from balancer.demo.system import free_port
from balancer.types import Address
from tests.support.paths import ROOT
from tests.support.wire import LIMIT, Connection, connected

# Seconds for a process to end that drains until its limit.
STOP_LIMIT = 20.0


class Worker:
    """A running process that listens on ``port`` of loopback."""

    def __init__(self, process: Process, port: int, host: str) -> None:
        self.process = process
        self.port = port
        self.host = host

    def client(self) -> AbstractAsyncContextManager[Connection]:
        return connected(Address(self.host, self.port))

    async def get(self, path: str) -> bytes:
        """The whole answer."""
        async with self.client() as client:
            await client.send(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
            return await client.to_end()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def ended(self) -> tuple[int | None, float, str]:
        """Exit status, how many seconds it took from now on, and what was written to standard error."""
        began = time.monotonic()
        async with asyncio.timeout(STOP_LIMIT):
            _, err = await self.process.communicate()
        return self.process.returncode, time.monotonic() - began, err.decode()

    async def stop(self) -> tuple[int | None, float, str]:
        self.signal()
        return await self.ended()


@asynccontextmanager
async def worker(
    redis_port: int = 1, name: str = "me", host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Worker]:
    """``python -m worker``. Without a port there is no Redis."""
    port = port or free_port(host)
    environ = {"HOST": host, "PORT": str(port), "HOSTNAME": name}
    redis = {"HOST_REDIS": "127.0.0.1", "PORT_REDIS": str(redis_port)}
    async with running(port, "-m", "worker", host=host, environ=environ | redis) as process:
        yield process


@asynccontextmanager
async def application(source: str, **constants: float) -> AsyncIterator[Worker]:
    """The ASGI application ``app`` of this source behind ``drain.run``, with some of the module's constants changed."""
    port = free_port()
    settings = "".join(f"drain.{name} = {value!r}\n" for name, value in constants.items())
    program = f"import asyncio, sys, time\nfrom worker import drain\n{settings}\n{source}\n"
    async with running(port, "-c", program + f"sys.exit(drain.run(app, host='127.0.0.1', port={port}))") as process:
        yield process


@asynccontextmanager
async def running(
    port: int, *arguments: str, environ: Mapping[str, str] = {}, host: str = "127.0.0.1", cwd: Path = ROOT
) -> AsyncIterator[Worker]:
    """Python with these arguments, once it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env={**os.environ, **environ}, cwd=cwd, stdout=PIPE, stderr=PIPE
    )
    try:
        await _listening(process, host, port)
        yield Worker(process, port, host)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _listening(process: Process, host: str, port: int) -> None:
    async with asyncio.timeout(LIMIT):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
    raise AssertionError(f"it ended: {(await process.communicate())[1].decode()}")
