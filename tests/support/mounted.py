"""Serve an ASGI application with uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from balancer.process.sockets import listen
from balancer.types import Address, Receive, Scope, Send
from tests.support.wire import eventually

App = Callable[[Scope, Receive, Send], Awaitable[None]]


@asynccontextmanager
async def served(app: App, **options: Any) -> AsyncIterator[Address]:
    """The application on uvicorn, on a port of loopback."""
    sock = listen("BIND", Address("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, **{"ws": "websockets-sansio", **options})
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started or serving.done())
        yield Address("127.0.0.1", sock.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
