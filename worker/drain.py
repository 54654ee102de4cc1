"""Stop without losing a request: a drain for any ASGI application that uvicorn serves.

``drain.run(app, host="0.0.0.0", port=80)`` takes the place of ``uvicorn.run``. On SIGTERM or SIGINT:

1. the health path answers 503, and every response carries ``Connection: close``, so that a
   balancer takes its requests elsewhere;
2. the listener stays open until no request has come for QUIET_SECONDS, LIMIT_SECONDS at most:
   uvicorn by itself closes it first thing, while clients are still on their way;
3. what is in flight is finished, and the process exits with status 0.

A second signal skips to step 3.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

QUIET_SECONDS = 0.25
LIMIT_SECONDS = 3.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Drain:
    """Middleware that tells every client of the coming end, once ``draining`` is set."""

    def __init__(self, app: App, health_path: str = "/healthz") -> None:
        self._app = app
        self._health_path = health_path
        self.draining = False
        self.last_request = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_notice(message: Message) -> None:
            if self.draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if scope["path"] != self._health_path:
            self.last_request = time.monotonic()
        elif self.draining:
            await send_with_notice(
                {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": b"draining\n"})
            return
        await self._app(scope, receive, send_with_notice)

    async def wait_until_quiet(self) -> None:
        """Begin to drain; returns when clients have had their chance to notice."""
        self.draining = True
        self.last_request = time.monotonic()
        limit = self.last_request + LIMIT_SECONDS
        while (left := min(self.last_request + QUIET_SECONDS, limit) - time.monotonic()) > 0:
            await asyncio.sleep(left)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on the first signal and exits with 0.

    uvicorn's own way is to close the listener at once and to die of the signal in the end
    (exit status 143).
    """

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        yield

    def _signalled(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain_and_exit())
        else:
            self.should_exit = True

    async def _drain_and_exit(self) -> None:
        await self._drain.wait_until_quiet()
        self.should_exit = True


def run(app: App, *, host: str, port: int, health_path: str = "/healthz", **options: Any) -> int:
    """Serve ``app`` until a signal, then drain; returns the exit status. ``options`` go to ``uvicorn.Config``."""
    drain = Drain(app, health_path)
    settings: dict[str, Any] = {"access_log": False, "log_level": "warning"} | options
    server = DrainingServer(uvicorn.Config(drain, host=host, port=port, **settings), drain)
    server.run()
    return 0 if server.started else 1
