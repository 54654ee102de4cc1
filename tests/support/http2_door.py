"""A balancer that speaks HTTP/2 to its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from tests.support.http2 import Http2Client
from tests.support.tls import issue, trusting
from tests.support.wire import Member, Running, balance

MEBI = 1 << 20


class Spoken:
    """A balancer that speaks HTTP/2, and its clients."""

    def __init__(self, running: Running) -> None:
        self.running = running

    @asynccontextmanager
    async def client(self, window: int = MEBI) -> AsyncIterator[Http2Client]:
        async with self.running.client(trusting("h2", "http/1.1")) as connection:
            assert connection.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            client = Http2Client(connection, window)
            await client.begin()
            yield client


@asynccontextmanager
async def spoken(folder: Path, *members: Member, **settings: Any) -> AsyncIterator[Spoken]:
    async with balance(*members, http2=True, **issue(folder), **settings) as running:
        yield Spoken(running)


REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0x7, 0x8, 0xB


async def reset(client: Http2Client, stream: int) -> None:
    client.h2.reset_stream(stream, CANCEL)
    await client.flush()


HEAD = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
