"""The ASGI front end: a plain ASGI callable on top of ``dispatch``.

It uses no Starlette request, response or middleware: a ``StreamingResponse`` alone costs more than
the rest of a request. Two facts about ASGI servers shape it. ``send()`` after the client has left
does nothing and reports nothing, so a task has to wait for ``http.disconnect``. And such a task
on every request would cost more than most requests take, so only requests that have lasted for
WATCH_SECONDS get one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from balancer.asgi.request import HttpRequest, make_request
from balancer.asgi.scope import prefix
from balancer.asgi.websocket import WebSocketRequest
from balancer.config.settings import Settings
from balancer.dispatch.active_requests import ActiveRequests
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import PENDING
from balancer.dispatch.refusals import refuse_unrecorded
from balancer.errors import ClientGone, Refusal
from balancer.http.headers import sound_request_id
from balancer.http.validation import check_passed
from balancer.loop_time import loop_time
from balancer.types import Receive, Scope, Send

WATCH_SECONDS = 0.4


class Proxy(ActiveRequests):
    """Serves every HTTP request and every WebSocket of its scope through the dispatcher. ``limits``: of uploads."""

    def __init__(self, dispatcher: Dispatcher | None, limits: Settings) -> None:
        super().__init__(dispatcher)
        self._limits = limits
        self._watching = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task
        active: HttpRequest | WebSocketRequest
        if scope["type"] == "http":
            active = HttpRequest(scope, receive, send, task)
            request = make_request(scope, active)
        elif scope["type"] == "websocket":
            active = WebSocketRequest(scope, receive, send, task)
            request = await active.request()
        else:
            raise RuntimeError(f"the balancer serves HTTP and WebSocket, not {scope['type']!r}")
        try:
            # Some servers are not strict, and some append trailers to the fields of a request that has not begun.
            check_passed(request.headers)
        except Refusal as refusal:
            request.id = sound_request_id(request.headers)
            with suppress(ClientGone):
                await refuse_unrecorded(refusal, active, self.refused(request, refusal))
            return
        if not self._watching:
            self._watching = True
            loop_time().call_later(WATCH_SECONDS, self._watch)
        context = (self.dispatcher or self.choose(request)).begin(request)
        context.prefix = prefix(scope)
        await self.serve(active, context, task)
        if active.state is PENDING:
            await active.complete_for_middleware()

    def _watch(self) -> None:
        clock = loop_time()
        for active in self.in_flight:
            active.watch(time.monotonic() - WATCH_SECONDS)
            # Where the connections are this program's own, they check the progress of their requests.
            if self.connections is None and isinstance(active, HttpRequest):
                active.check_progress(clock.time(), self._limits)
        self._watching = bool(self.in_flight)
        if self._watching:
            clock.call_later(WATCH_SECONDS, self._watch)


async def serve_lifespan(
    receive: Receive, send: Send, start: Callable[[], None], close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Start and end with the server, as an application of its own, without another around it."""
    await receive()
    start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await close()
    await send({"type": "lifespan.shutdown.complete"})
