"""The worker's routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .counter import Counter, CounterDown

log = logging.getLogger(__name__)

MAX_SECONDS = 30.0
MIN_EVENT_SECONDS = 0.01
MAX_NAME_BYTES = 100


def make_app(counter: Counter, hostname: str) -> Starlette:  # noqa: C901 - a function for each route
    """Return the application: ``/`` greets and counts, ``/work`` takes its time, ``/healthz`` shows readiness.

    ``POST /record`` counts how often the name in its body has come. More than once means that a server between here and
    the client repeated it.

    ``/events`` sends an event every so many seconds without end. The WebSocket ``/echo`` returns its messages;
    its handshake has the hostname in ``x-worker``.

    Redis does not enter into ``/healthz``, because without it all workers are alike. A client is better served by the
    reason, after PATIENCE seconds, than by a wait for a worker that does not come.
    """

    async def hello(request: Request) -> Response:
        return PlainTextResponse(f"Hello World I am {hostname}! {await counter.hit()} times.\n")

    async def record(request: Request) -> Response:
        name = (await request.body())[:MAX_NAME_BYTES].decode("latin-1")
        return PlainTextResponse(f"Hello World I am {hostname}! {name} came {await counter.record(name)} times.\n")

    async def redis_away(request: Request, error: Exception) -> Response:
        log.warning("Redis is away: %s", error)
        return PlainTextResponse(f"{hostname} cannot count: Redis is away\n", 503, {"Retry-After": "1"})

    async def work(request: Request) -> Response:
        seconds = _seconds(request, least=0.0)
        await asyncio.sleep(seconds)
        return PlainTextResponse(f"{hostname} worked for {seconds:g} s.\n")

    async def events(request: Request) -> Response:
        seconds = _seconds(request, least=MIN_EVENT_SECONDS)

        async def greet() -> AsyncIterator[str]:
            for n in count(1):
                yield f"data: Hello World I am {hostname}! {n}\n\n"
                await asyncio.sleep(seconds)

        return StreamingResponse(greet(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def echo(socket: WebSocket) -> None:
        subprotocol = "echo" if "echo" in socket.scope["subprotocols"] else None
        await socket.accept(subprotocol, headers=[(b"x-worker", hostname.encode())])
        try:
            while (message := await socket.receive())["type"] == "websocket.receive":
                await socket.send({**message, "type": "websocket.send"})
        except WebSocketDisconnect:
            pass  # it left before its answer

    async def unusable(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", 400)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await counter.close()

    routes = [
        Route("/", hello),
        Route("/record", record, methods=["POST"]),
        Route("/work", work),
        Route("/events", events),
        WebSocketRoute("/echo", echo),
        Route("/healthz", healthz),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={CounterDown: redis_away, Unusable: unusable})


class Unusable(Exception):
    """A parameter of a request cannot be used; the message has the accepted values."""


def _seconds(request: Request, least: float) -> float:
    """Return the parameter ``seconds``, 1 if there is none. Raises Unusable."""
    text = request.query_params.get("seconds", "1")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= MAX_SECONDS:
        raise Unusable(f"seconds={text!r} cannot be used: it takes {least:g} to {MAX_SECONDS:g}")
    return seconds
