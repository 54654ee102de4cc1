"""What the responses of the admin port have in common: fields for browsers, and errors as JSON."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from balancer.admin.auth import Denial, deny_host
from balancer.config.settings import Settings

# No page but the balancer's own may run, frame or feed anything here.
SECURITY = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
FRESH = {"cache-control": "no-store"}


def problem(status: int, error: str, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error of the API: one word for programs, a sentence for people."""
    return JSONResponse({"error": error, "reason": reason}, status, FRESH | (headers or {}))


def refusal(denial: Denial) -> JSONResponse:
    """Return the refusal of a request; a 401 has the scheme that it takes (RFC 9110 section 15.5.2)."""
    return problem(*denial, {"www-authenticate": "Bearer"} if denial.status == 401 else None)


class Secured:
    """Adds the fields of SECURITY to every response, and refuses requests under the name of another host."""

    def __init__(self, app: ASGIApp, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        # A server in front may pass on two, and others here look at the last.
        hosts = Headers(scope=scope).getlist("host") if scope["type"] == "http" else []
        for host in hosts:
            if denial := deny_host(self._settings(), host):
                await refusal(denial)(scope, receive, secured)
                return

        await self._app(scope, receive, secured if scope["type"] == "http" else send)


class Unusable(HTTPException):
    """A request that cannot be served; ``error`` is one word for it."""

    def __init__(self, status: int, error: str, reason: str) -> None:
        super().__init__(status, reason)
        self.error = error


def headers_by_name(headers: Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
