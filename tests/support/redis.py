"""Run a Redis in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from balancer.demo.system import free_port
from tests.support.wire import LIMIT

FAKE_REDIS = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer.allow_reuse_address = True
TcpFakeServer.request_queue_size = 100
TcpFakeServer(("127.0.0.1", int(sys.argv[1]))).serve_forever()
"""


@asynccontextmanager
async def redis() -> AsyncIterator[int]:
    """The port of a Redis in a process of its own."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FAKE_REDIS, str(port), stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        async with asyncio.timeout(LIMIT):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield port
    finally:
        process.kill()
        await process.wait()
