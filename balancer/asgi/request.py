"""A plain request from an ASGI server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from balancer.asgi.scope import client, target
from balancer.config.settings import Settings
from balancer.dispatch.course import CLIENT_GONE
from balancer.dispatch.interfaces import COMPLETE, END_OF_EVENT, PENDING, STARTED, ActiveRequest
from balancer.dispatch.serving import end_between_events, end_event_stream
from balancer.errors import ClientGone, Refusal
from balancer.frontend.progress import Progress, body_refusal
from balancer.http.headers import NO_FIELDS, Headers, has_body, host, request_id, without_length
from balancer.http.request import Request
from balancer.loop_time import Limit
from balancer.types import Message, Receive, Scope, Send
from balancer.upstream.base import UpstreamResponse


class AsgiRequest(ActiveRequest):
    """A request from an ASGI server."""

    def __init__(self, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        self.task = task
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self.began = time.monotonic()

    @property
    def is_watchable(self) -> bool:
        """Whether nothing else reads from the client now."""
        raise NotImplementedError

    def send_interim(self, status: int, headers: Headers) -> None:
        """Do nothing: ASGI has no message for interim responses."""

    async def _await_disconnect(self) -> None:
        raise NotImplementedError

    async def complete_for_middleware(self) -> None:
        """Send what middlewares expect of an application whose client has left before there was a response."""

    async def _send_message(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError as error:  # as the ASGI specification has it for a client that has left
            raise ClientGone from error

    def watch(self, began_before: float) -> None:
        """Watch for the client to leave, if the request has lasted since ``began_before``, a clock reading."""
        if self._watcher is None and self.task and self.is_watchable and self.began <= began_before:
            self._watcher = asyncio.get_running_loop().create_task(self._await_disconnect())

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


class HttpRequest(AsgiRequest):
    """A plain request: the source of its body and the sink of its response."""

    # ASGI has no message for them.
    trailers = NO_FIELDS

    def __init__(self, scope: Scope, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        super().__init__(receive, send, task)
        # The wait for a disconnect and the reading of the body share one channel: first the body.
        self.ended = not _carries_body(scope)
        # Of the body: its progress, once it lasts for more than a moment; the limit of the wait for its next piece,
        # while there is one; why that has ended.
        self._upload: Progress | None = None
        self._received = 0
        self._wait: Limit | None = None
        self._refusal: Refusal | None = None

    @property
    def is_watchable(self) -> bool:
        return self.ended

    async def read(self) -> bytes:
        while not self.ended:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self.ended = not message.get("more_body", False)
            if piece := message.get("body", b""):
                self._received += len(piece)
                return bytes(piece)
        return b""

    async def _next(self) -> Message:
        """Return the server's next message. Raises Refusal where the body has stopped, or comes too slowly."""
        try:
            async with Limit(None) as self._wait:
                return await self._receive()
        except TimeoutError:
            raise self._refusal or ClientGone from None
        finally:
            self._wait = None

    def check_progress(self, now: float, limits: Settings) -> None:
        """End the wait for a body that has stopped, or comes too slowly. ``now``: a reading of ``LoopTime``.

        Only the wait counts: what the server beneath holds has come. What the client takes of the response, only that
        server knows.
        """
        if self.ended:
            return
        upload = self._upload = self._upload or Progress()
        upload.received = self._received
        if self._wait is None or self._refusal:
            upload.rest()
            return
        answered = None if self.state is PENDING else self.context.body_bytes
        if slowness := upload.check(now, limits, answered):
            self._refusal = body_refusal(slowness, limits)
            self._wait.renew(0)

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        if self.state is not PENDING:
            raise ClientGone("refused in mid-response")
        self.state = STARTED
        if status == 304:
            # uvicorn counts a 304's Content-Length, which describes no body of its own, as bytes to come.
            headers = without_length(headers)
        try:
            await self._send_message({"type": "http.response.start", "status": status, "headers": headers})
        except Refusal:
            self.state = PENDING  # The server cannot say this head, and has sent nothing.
            raise
        self._headers = headers
        self._sent = END_OF_EVENT[0]

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        if not more:
            # From here on the server reports the end of the request as a disconnect, too.
            self.unwatch()
            self.state = COMPLETE
            self.task = None
        self._sent = b""
        await self._send_message({"type": "http.response.body", "body": data, "more_body": more})
        self._sent = data
        if self.ends_after_event:
            await end_between_events(self)

    def begin_shutdown(self) -> Coroutine[Any, Any, None] | None:
        return end_event_stream(self)

    async def finish(self) -> None:
        await self._send_message({"type": "http.response.body", "body": b"", "more_body": False})

    async def complete_for_middleware(self) -> None:
        """Send a response of 499 where the client has left before there was one.

        The server drops it. Starlette's BaseHTTPMiddleware takes an application without a response for a broken one.
        """
        with suppress(ClientGone):
            await self.start(CLIENT_GONE, [])
            await self.write(b"", False)

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        raise AssertionError("a plain request does not ask for another protocol")

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end()


def _carries_body(scope: Scope) -> bool:
    # In HTTP/2 and later, a body may follow without a header field that announces it.
    return has_body(scope["headers"]) or not scope.get("http_version", "1.1").startswith("1")


def make_request(scope: Scope, active: HttpRequest) -> Request:
    """Return the request of an ASGI scope."""
    # ASGI has no message for trailers, so members must not send any. Some servers leave the white space around a value.
    headers: Headers = [(name, value.strip()) for name, value in scope["headers"] if name != b"te"]
    return Request(
        method=scope["method"],
        target=target(scope),
        headers=headers,
        client=client(scope),
        scheme=scope.get("scheme", "http"),
        body=None if active.ended else active,
        chunked=not active.ended and not any(name == b"content-length" for name, _ in headers),
        host=host(headers),
        id=request_id(headers),
    )
