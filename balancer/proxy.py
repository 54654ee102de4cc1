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
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from balancer.dispatch.context import Course
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import Destination, Sink
from balancer.dispatch.refusals import refuse
from balancer.errors import ClientGone, Refusal, TruncatedResponse
from balancer.http.headers import NO_FIELDS, Headers, has_body, host, request_id
from balancer.http.request import Request
from balancer.http.validation import check_passed
from balancer.types import Receive, Scope, Send
from balancer.upstream.base import UpstreamResponse
from balancer.visit import END_OF_EVENT, SHUTTING_DOWN, AsgiVisit, Visit, client, prefix, target
from balancer.websocket import WebSocketVisit

WATCH_SECONDS = 0.4


class Proxy:
    """Serves every HTTP request and every WebSocket of its scope through the dispatcher.

    ``visits``: those under way, by whatever front end they came. ``connections``: the clients' that are open, where the
    front end knows them: through ASGI they are the server's business. ``dispatcher``: the one that has all requests, or
    None where ``choose`` has to be asked for each. ``on_switch``: called when that has changed its mind.
    """

    connections: Collection[object] | None = None

    def __init__(self, dispatcher: Dispatcher | None) -> None:
        self.dispatcher = dispatcher
        self.on_switch: list[Callable[[], None]] = []
        self.visits: set[Visit] = set()
        self._watching = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task
        visit: _HttpVisit | WebSocketVisit
        if scope["type"] == "http":
            visit = _HttpVisit(scope, receive, send, task)
            request = _request(scope, visit)
        elif scope["type"] == "websocket":
            visit = WebSocketVisit(scope, receive, send, task)
            request = await visit.request()
        else:
            raise RuntimeError(f"the balancer serves HTTP and WebSocket, not {scope['type']!r}")
        try:
            # Some servers are not strict, and some append trailers to the fields of a request that has not begun.
            check_passed(request.headers)
        except Refusal as refusal:
            await refuse(refusal, visit)
            return
        if not self._watching:
            self._watching = True
            loop.call_later(WATCH_SECONDS, self._watch)
        course = (self.dispatcher or self.choose(request)).begin(request)
        course.prefix = prefix(scope)
        await self.serve(visit, course, visit, task)

    def choose(self, request: Request) -> Destination:
        """Who serves a request; asked within the step that begins it."""
        assert self.dispatcher
        return self.dispatcher

    def refused(self, request: Request, refusal: Refusal) -> None:
        """A request that a front end has answered by itself, because nothing could be made of it."""
        assert self.dispatcher
        self.dispatcher.refused(request, refusal)

    async def serve(self, visit: Visit, course: Course, sink: Sink, task: asyncio.Task[Any]) -> None:
        """Answer the request of a visit, by whatever front end it came. ``task`` is the one that runs this."""
        visit.course = course
        self.visits.add(visit)
        try:
            await course.dispatcher.run(course, sink)
        except (TruncatedResponse, ClientGone):
            pass  # Whoever finds the response incomplete breaks the connection.
        except asyncio.CancelledError:
            if not visit.cancelled:
                raise
            task.uncancel()
            if visit.refusal and not visit.started:
                with suppress(ClientGone):  # The client may have left since it was cut.
                    await refuse(visit.refusal, sink)
        finally:
            self.visits.discard(visit)
            visit.unwatch()

    @property
    def active(self) -> int:
        """Requests in progress."""
        return len(self.visits)

    async def end_endless(self) -> None:
        """The balancer is about to exit: end what would not end by itself, so that its client goes elsewhere.

        WebSockets are closed with 1001; server-sent events end as a complete response, after an event.
        """
        await asyncio.gather(*(it.go_away() for it in list(self.visits)))

    def cut(self) -> None:
        """The balancer is about to exit: end every request still in progress, those without a response by a 503."""
        for visit in list(self.visits):
            visit.end(SHUTTING_DOWN)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for visit in self.visits:
            visit.watch(time.monotonic() - WATCH_SECONDS)
        self._watching = bool(self.visits)
        if self._watching:
            loop.call_later(WATCH_SECONDS, self._watch)


class _HttpVisit(AsgiVisit):
    """A plain request: the source of its body and the sink of its response."""

    # ASGI has no message for them.
    trailers = NO_FIELDS

    def __init__(self, scope: Scope, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        super().__init__(receive, send, task)
        # The wait for a disconnect and the reading of the body share one channel: first the body.
        self.ended = not _carries_body(scope)

    @property
    def watchable(self) -> bool:
        return self.ended

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
        self._headers = headers
        self._sent = END_OF_EVENT[0]

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        if not more:
            # From here on the server reports the end of the request as a disconnect, too.
            self.unwatch()
            self.task = None
        self._sent = b""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sent = data
        if self._leaving:
            await self._end_between_events()

    async def _complete(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        raise AssertionError("a plain request does not ask for another protocol")

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end()


def _carries_body(scope: Scope) -> bool:
    # HTTP/2 and later need no header field to say that a body follows.
    return has_body(scope["headers"]) or not scope.get("http_version", "1.1").startswith("1")


def _request(scope: Scope, visit: _HttpVisit) -> Request:
    # ASGI has no message for trailers, so nobody is told that they are welcome.
    headers: Headers = [it for it in scope["headers"] if it[0] != b"te"]
    return Request(
        method=scope["method"],
        target=target(scope),
        headers=headers,
        client=client(scope),
        scheme=scope.get("scheme", "http"),
        body=None if visit.ended else visit,
        chunked=not visit.ended and not any(name == b"content-length" for name, _ in headers),
        host=host(headers),
        id=request_id(headers),
    )
