"""Members that speak WebSocket, served by ``websockets``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

from balancer.types import Address

Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def member(handler: Handler = echo, **options: Any) -> AsyncIterator[Address]:
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield address(server)


def address(server: Server) -> Address:
    return Address("127.0.0.1", next(iter(server.sockets)).getsockname()[1])
