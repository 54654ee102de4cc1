"""A client that goes on sending, whatever it is sent: also behind the end of TLS, where libraries stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.before_http import Door
from tests.support.tls import trusting
from tests.support.wire import LIMIT, Connection, Running, in_lower_case


class StubbornConnection:
    """A connection over TLS that the caller alone ends."""

    def __init__(self, raw: Connection, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        self._data = b""
        self.reader = self

    async def begin(self) -> None:
        """Do the handshake."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._raw.send(self._out.read())
                await self._more()
            else:
                return await self._raw.send(self._out.read())

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._raw.send(self._out.read())

    async def _more(self) -> None:
        async with asyncio.timeout(LIMIT):
            data = await self._raw.reader.read(65536)
        if not data:
            raise ConnectionResetError
        self._in.write(data)

    async def read(self, size: int) -> bytes:
        """The next bytes, or b"" once the peer has ended TLS."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                await self._more()

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self._data:
            self._data += await self.read(65536)
        head, mark, self._data = self._data.partition(b"\r\n\r\n")
        return in_lower_case(head + mark)

    async def exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._data += await self.read(65536)
        found, self._data = self._data[:size], self._data[size:]
        return found


@asynccontextmanager
async def stubborn(door: Door, running: Running) -> AsyncIterator[Connection | StubbornConnection]:
    """A client that has come to HTTP at this door."""
    async with running.client(first=door.first) as raw:
        if not door.tls:
            yield raw
            return
        client = StubbornConnection(raw, trusting(door.tls))
        await client.begin()
        yield client
