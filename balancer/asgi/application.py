"""An ASGI application behind the balancer's own front end, in the place of a dispatcher.

So it has the front end's limits, its strictness and its refusals. Facts for applications:
* A client that leaves cancels the application. ``http.disconnect`` comes only in place of a body that ends early.
* Requests take turns until they send or read: one at a time, with a pause behind each for the other work of the event
  loop. So applications that render take a quarter of it at most, however many clients ask.
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

# Seconds that a turn lasts at most (some wait for DNS), and the pause behind a turn, in lengths of that turn.
TURN_MAX = 0.05
PAUSE = 3

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ApplicationRequests(ActiveRequests):
    """The requests in flight for an application.

    ``on_refused``: called with each that a front end refuses. ``is_preferred``: whether one waits for no turn.
    """

    def __init__(
        self,
        app: App,
        on_refused: Callable[[Request, Refusal], None],
        is_preferred: Callable[[Request], bool] = lambda request: False,
    ) -> None:
        super().__init__(None)
        self._handler = _ApplicationHandler(app, is_preferred)
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
    def __init__(self, app: App, is_preferred: Callable[[Request], bool]) -> None:
        self._app = app
        self._is_preferred = is_preferred
        self._places = asyncio.Semaphore(1)
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
        if not self._is_preferred(context.request):
            await self._places.acquire()
            turn = _Turn(self._places.release)
        else:
            turn = _Turn(lambda: None)
        call = _Call(context, sink, turn)
        try:
            await self._app(_scope(context.request), call.receive, call.send)
        except ClientGone:
            raise
        except Exception:
            if not call.refusal:
                log.exception("%s failed", context.request.target.decode("latin-1"))
        finally:
            turn.end()
        if call.refusal and sink.state is PENDING:
            await refuse_unrecorded(call.refusal, sink, context.id)


class _Turn:
    """The time of one request, from now to ``end``. ``release``: called after the pause behind it."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(TURN_MAX, self.end)

    def end(self) -> None:
        """End the turn, unless it has ended."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._loop.call_later(PAUSE * min(TURN_MAX, time.monotonic() - self._began), self._release)


class _Call:
    """One request as an application sees it. ``refusal``: of its body, by the front end."""

    def __init__(self, context: _Context, sink: Sink, turn: _Turn) -> None:
        self._turn = turn
        self._request = context.request
        self._beginning = context.beginning
        self._sink = sink
        self._is_received = False
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        self._turn.end()
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
        self._turn.end()
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
