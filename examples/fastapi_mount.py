"""A FastAPI application that answers some requests itself and gives all below /api to the workers behind "apps".

uvicorn fastapi_mount:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from balancer import LoadBalancer, Settings


class TokenRequired:
    """Lets nobody through to the workers without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith("/api") and not self.permits(Headers(scope=scope)):
            await PlainTextResponse("a token is required\n", 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def permits(self, headers: Headers) -> bool:
        return headers.get("authorization") == f"Bearer {self.token}"


workers = LoadBalancer(Settings.load(os.environ))  # or LoadBalancer("apps", policy="least_requests")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with workers:  # without this, the first request starts it
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(TokenRequired, token=os.environ.get("TOKEN", "secret"))


@app.get("/")
async def members() -> dict[str, str]:
    return {str(address): member.state.value for address, member in workers.membership.members.items()}


app.mount("/api", workers)
