"""A member that speaks HTTP/2 with prior knowledge and says what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events

from balancer.settings import Address


@asynccontextmanager
async def serve_http2() -> AsyncIterator[Address]:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    connection.initiate_connection()
    try:
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    fields = dict(event.headers or [])
                    text = b"HTTP/2 %b %b for %b" % (fields[b":method"], fields[b":path"], fields[b":authority"])
                    assert event.stream_id
                    connection.send_headers(event.stream_id, [(b":status", b"200")])
                    connection.send_data(event.stream_id, text, end_stream=True)
            writer.write(connection.data_to_send())
    except ConnectionError:
        pass
    finally:
        writer.close()
