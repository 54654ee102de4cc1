"""An ASGI application behind the balancer's own front end, in the place of a dispatcher.

So it has the front end's limits, its strictness and its refusals. Two facts for applications:
* A client that leaves cancels the application. ``http.disconnect`` comes only in place of a body that ends early.
* ``send`` waits until the client takes what it was sent, behind a large last piece as well. Requests ahead of their
  answers would make a server pile those up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from balancer.dispatch.active_requests import ActiveRequests
from balancer.dispatch.context import RequestContext, request_ids
from balancer.dispatch.interfaces import PENDING, DirectSink, RequestHandler, Sink
from balancer.dispatch.refusals import refuse_unrecorded
from balancer.errors import ClientGone, Refusal
from balancer.frontend.http1_exchange import LARGE
from balancer.http.headers import NO_FIELDS
from balancer.http.request import Request
from balancer.types import Message, Receive, Scope, Send

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ApplicationRequests(ActiveRequests):
    """The requests in flight for an application. ``on_refused``: called with each that a front end refuses."""

    def __init__(self, app: App, on_refused: Callable[[Request, Refusal], None]) -> None:
        super().__init__(None)
        self._handler = _ApplicationHandler(app)
        self._on_refused = on_refused

    def choose(self, request: Request) -> RequestHandler:
        return self._handler

    def refused(self, request: Request, refusal: Refusal) -> bytes:
        self._on_refused(request, refusal)
        return request.id or self._handler.new_id()


class _Context(RequestContext):
    # The body as far as it was at hand when the request began.
    beginning = b""


class _ApplicationHandler(RequestHandler):
    def __init__(self, app: App) -> None:
        self._app = app
        self.new_id = request_ids()

    def begin(self, request: Request) -> RequestContext:
        context = _Context(request, time.monotonic(), request.id or self.new_id())
        context.dispatcher = self
        return context

    def try_send_nowait(self, context: RequestContext, sink: DirectSink, body: bytes) -> bool:
        """Return False: an application takes a task."""
        assert isinstance(context, _Context)
        context.beginning = body
        return False

    async def run(self, context: RequestContext, sink: Sink) -> None:
        """Have the application answer. Raises ClientGone."""
        assert isinstance(context, _Context)
        call = _Call(context, sink)
        try:
            await self._app(_scope(context.request), call.receive, call.send)
        except ClientGone:
            raise
        except Exception:
            if not call.refusal:
                log.exception("%s failed", context.request.target.decode("latin-1"))
        if call.refusal and sink.state is PENDING:
            await refuse_unrecorded(call.refusal, sink, context.id)


class _Call:
    """One request as an application sees it. ``refusal``: of its body, by the front end."""

    def __init__(self, context: _Context, sink: Sink) -> None:
        self._request = context.request
        self._beginning = context.beginning
        self._sink = sink
        self._is_received = False
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        if self._is_received:
            # The client's leaving cancels this.
            await asyncio.get_running_loop().create_future()
        body = self._request.body
        piece, self._beginning = self._beginning, b""
        if body and not piece and not body.ended:
            if self._request.expects:
                self._sink.send_interim(100, NO_FIELDS)
            try:
                piece = await body.read()
            except ClientGone:
                return {"type": "http.disconnect"}
            except Refusal as refusal:
                self.refusal = refusal
                raise
        self._is_received = body is None or body.ended
        return {"type": "http.request", "body": piece, "more_body": not self._is_received}

    async def send(self, message: Message) -> None:
        if self.refusal:
            return  # Whatever the application makes of its failure.
        if message["type"] == "http.response.start":
            await self._sink.start(message["status"], list(message.get("headers", ())))
            return
        piece, more = message.get("body", b""), message.get("more_body", False)
        if not more and len(piece) > LARGE:
            await self._sink.write(piece, True)
            piece = b""
        await self._sink.write(piece, more)


def _scope(request: Request) -> Scope:
    path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": request.headers,
        "client": (request.client, 0) if request.client else None,
        "server": None,
    }
