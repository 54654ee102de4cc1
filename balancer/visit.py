"""What HTTP requests and WebSockets of an ASGI server have in common: somebody waits, and may stop waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from balancer.errors import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Visit:
    """One request of one client.

    ``task`` serves it, until there is nothing left to cancel; ``started``: the response has begun;
    ``cancelled``: ``end`` has ended it.
    """

    __slots__ = ("_receive", "_send", "_watcher", "began", "cancelled", "refusal", "started", "task")

    def __init__(self, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self.task: asyncio.Task[Any] | None = task
        self.began = time.monotonic()
        self.started = False
        self.cancelled = False
        self.refusal: Refusal | None = None

    @property
    def watchable(self) -> bool:
        """Whether nobody else is reading from the client just now."""
        raise NotImplementedError

    async def _await_disconnect(self) -> None:
        raise NotImplementedError

    async def go_away(self) -> None:
        """The balancer is about to exit: end here what would not end by itself."""

    def watch(self, began_before: float) -> None:
        """See to it that a client that leaves is noticed, if the visit has lasted since then."""
        if self._watcher is None and self.task and self.watchable and self.began <= began_before:
            self._watcher = asyncio.get_running_loop().create_task(self._await_disconnect())

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def end(self, refusal: Refusal | None = None) -> None:
        """Cancel the request; ``refusal`` is what the client is told if its response has not begun."""
        if not self.cancelled and self.task:
            self.cancelled, self.refusal = True, refusal
            self.task.cancel(refusal.token if refusal else "client_gone")


def target(scope: Scope) -> bytes:
    """The request target: as the client wrote it, where the server tells."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path


def client(scope: Scope) -> str:
    """The peer's IP address, or "" where there is none."""
    return scope["client"][0] if scope.get("client") else ""
