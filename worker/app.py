"""The worker's routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from worker.counter import Counter, CounterDown

log = logging.getLogger(__name__)

MAX_WORK_SECONDS = 30.0
MAX_NAME_BYTES = 100


def make_app(counter: Counter, hostname: str) -> Starlette:
    """``/`` greets and counts, ``/work`` takes its time, ``/healthz`` says that the worker takes requests.

    ``POST /record`` counts how often it was sent the name in its body: more than once means that
    somebody between here and the client repeated it.

    Redis does not enter into ``/healthz``: without it every worker is as good as any other, and a
    client is better served by the reason than by a wait for a worker that is not coming.
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
        text = request.query_params.get("seconds", "1")
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= MAX_WORK_SECONDS:
            return PlainTextResponse(f"seconds={text!r} cannot be used: it takes 0 to {MAX_WORK_SECONDS:g}\n", 400)
        await asyncio.sleep(seconds)
        return PlainTextResponse(f"{hostname} worked for {seconds:g} s.\n")

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
        Route("/healthz", healthz),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={CounterDown: redis_away})
