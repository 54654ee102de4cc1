"""A proxy as one would write it first: Starlette and ``httpx.AsyncClient`` as they come, on uvicorn.

``python -m bench.starlette_httpx PORT MEMBER …`` with members as ``host:port``.
"""

from __future__ import annotations

import itertools
import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}


def make_app(members: list[str]) -> Starlette:
    client = httpx.AsyncClient()
    turn = itertools.cycle(members)

    async def proxy(request: Request) -> Response:
        url = request.url.replace(scheme="http", netloc=next(turn))
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        outgoing = client.build_request(
            request.method,
            str(url),
            headers=[pair for pair in request.headers.raw if pair[0] not in HOP_BY_HOP],
            content=request.stream() if has_body else None,
        )
        answer = await client.send(outgoing, stream=True)
        response = StreamingResponse(
            answer.aiter_raw(), status_code=answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [(n.lower(), v) for n, v in answer.headers.raw if n.lower() not in HOP_BY_HOP]
        return response

    return Starlette(routes=[Route("/{path:path}", proxy, methods=METHODS)])


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
