"""The proxy of ``starlette_httpx`` with aiohttp's client in place of httpx.

``python -m bench.starlette_aiohttp PORT MEMBER …`` with members as ``host:port``.
"""

# mypy: disable-error-code="import-not-found"
# aiohttp is in the bench's environment alone.

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from yarl import URL

from bench.starlette_httpx import HOP_BY_HOP, METHODS


def make_app(members: list[str]) -> Starlette:
    turn = itertools.cycle(members)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Without these, aiohttp opens at most 100 connections, and decodes what a proxy must pass on.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as app.state.session:
            yield

    async def proxy(request: Request) -> Response:
        session: aiohttp.ClientSession = request.app.state.session
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        answer = await session.request(
            request.method,
            URL(str(request.url.replace(scheme="http", netloc=next(turn))), encoded=True),
            headers=[(n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers.raw if n not in HOP_BY_HOP],
            data=request.stream() if has_body else None,
            allow_redirects=False,
        )
        response = StreamingResponse(
            answer.content.iter_any(), status_code=answer.status, background=BackgroundTask(answer.release)
        )
        response.raw_headers = [(n.lower(), v) for n, v in answer.raw_headers if n.lower() not in HOP_BY_HOP]
        return response

    return Starlette(routes=[Route("/{path:path}", proxy, methods=METHODS)], lifespan=lifespan)


def main() -> None:
    uvicorn.run(
        make_app(sys.argv[2:]),
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
