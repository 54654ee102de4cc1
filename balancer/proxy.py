"""The ASGI front end: a plain ASGI callable on top of ``dispatch``.

It uses no Starlette request, response or middleware: a ``StreamingResponse`` alone costs more than
the rest of a request. Two facts about ASGI servers shape it: ``send()`` after the client has left
does nothing and says nothing, so somebody has to wait for ``http.disconnect``; and a task for that
on every request would cost more than most requests take, so only requests that have lasted for
WATCH_SECONDS get one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from balancer.dispatch import Dispatcher, Request, refuse
from balancer.errors import ClientGone, Refusal, TruncatedResponse
from balancer.headers import Headers, has_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH_SECONDS = 0.4


class Proxy:
    """Serves every HTTP request of its scope through the dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._visits: set[_Visit] = set()
        self._watching = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the balancer serves HTTP, not {scope['type']!r}")
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task
        visit = _Visit(scope, receive, send, task)
        self._visits.add(visit)
        if not self._watching:
            self._watching = True
            loop.call_later(WATCH_SECONDS, self._watch)
        try:
            await self._dispatcher.handle(_request(scope, visit), visit)
        except (TruncatedResponse, ClientGone):
            pass  # To return with the response incomplete makes the server break the connection.
        except asyncio.CancelledError:
            if not visit.cancelled:
                raise
            task.uncancel()
            if visit.refusal and not visit.started:
                await refuse(visit.refusal, visit)
        finally:
            self._visits.discard(visit)
            visit.unwatch()

    @property
    def active(self) -> int:
        """Requests in progress."""
        return len(self._visits)

    def cut(self) -> None:
        """The balancer is about to exit: end every request still in progress, those without a response by a 503."""
        for visit in self._visits:
            visit.end(Refusal(503, "shutting_down", "the balancer is shutting down", retry_after=1))

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for visit in self._visits:
            visit.watch(time.monotonic() - WATCH_SECONDS)
        self._watching = bool(self._visits)
        if self._watching:
            loop.call_later(WATCH_SECONDS, self._watch)


class _Visit:
    """One request of one client: the source of its body and the sink of its response."""

    __slots__ = ("_receive", "_send", "_watcher", "began", "cancelled", "ended", "refusal", "started", "task")

    def __init__(self, scope: Scope, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self.task: asyncio.Task[Any] | None = task
        self.began = time.monotonic()
        # The wait for a disconnect and the reading of the body share one channel: first the body.
        self.ended = not _carries_body(scope)
        self.started = False
        self.cancelled = False
        self.refusal: Refusal | None = None

    async def read(self) -> bytes:
        while not self.ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self.ended = not message.get("more_body", False)
            if piece := message.get("body", b""):
                return bytes(piece)
        return b""

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        if status == 304:
            # uvicorn counts a 304's Content-Length, which describes no body of its own, as bytes to come.
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, more: bool) -> None:
        if not more:
            # From here on the server reports the end of the request as a disconnect, too.
            self.unwatch()
            self.task = None
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def watch(self, began_before: float) -> None:
        if self._watcher is None and self.task and self.ended and self.began <= began_before:
            self._watcher = asyncio.get_running_loop().create_task(self._await_disconnect())

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end()

    def end(self, refusal: Refusal | None = None) -> None:
        """Cancel the request; ``refusal`` is what the client is told if its response has not begun."""
        if not self.cancelled and self.task:
            self.cancelled, self.refusal = True, refusal
            self.task.cancel(refusal.token if refusal else "client_gone")


def _carries_body(scope: Scope) -> bool:
    # HTTP/2 and later need no header field to say that a body follows.
    return has_body(scope["headers"]) or not scope.get("http_version", "1.1").startswith("1")


def _request(scope: Scope, visit: _Visit) -> Request:
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    query: bytes = scope.get("query_string", b"")
    headers: Headers = scope["headers"]
    return Request(
        method=scope["method"],
        target=path + b"?" + query if query else path,
        headers=headers,
        client=scope["client"][0] if scope.get("client") else "",
        scheme=scope.get("scheme", "http"),
        body=None if visit.ended else visit,
        chunked=not visit.ended and not any(name == b"content-length" for name, _ in headers),
    )
