"""A uvicorn server among others in one process, as users have one beneath a mounted balancer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn

from balancer.asgi.websocket import MAX_MESSAGE
from balancer.types import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Listener(uvicorn.Server):
    """A uvicorn server among others in this process: it leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for ``stop``. uvicorn's own loop checks a flag ten times a second."""
        await self.on_tick(0)
        await self._stopped.wait()

    def stop(self) -> None:
        """Accept no more connections, and end when the open ones have ended."""
        self.should_exit = True
        self._stopped.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals of this process as they are."""
        yield


def make_listener(app: App, keepalive: float, drain_limit: int) -> Listener:
    """Return an ASGI server for one socket; ``keepalive`` and ``drain_limit`` (for its shutdown) are in seconds."""
    return Listener(
        uvicorn.Config(
            app,
            interface="asgi3",
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE,
            # Messages of members are not compressed either: messages cross as they are.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(keepalive),
            timeout_graceful_shutdown=drain_limit,
        )
    )
