"""The admin application: the status page, the API (``openapi.json``), liveness and readiness."""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from balancer.admin.actions import ACTIONS, action_endpoint
from balancer.admin.auth import CHALLENGE, has_token, prove
from balancer.admin.places import deny_page
from balancer.admin.pool_view import Usage, View
from balancer.admin.prometheus import metrics_endpoint
from balancer.admin.readiness import readiness_endpoint
from balancer.admin.responses import FRESH, Secured, Unusable, headers_by_name, problem, refusal
from balancer.admin.status_feed import StatusFeed
from balancer.admin.subscriber import Subscriber
from balancer.config.settings import Settings
from balancer.telemetry.client_limits import ClientLimits
from balancer.telemetry.stats import Stats

HERE = Path(__file__).parent


class Supervised(NamedTuple):
    """The supervisor of the processes that serve: its process id, and how many reloads came before."""

    pid: int
    generation: int


def admin_app(
    pools: Callable[[], Sequence[View]],
    settings: Callable[[], Settings],
    feed: StatusFeed,
    unrouted: Callable[[], Stats | None] = lambda: None,
    processes: Callable[[], Sequence[Usage]] = lambda: [Usage.own()],
    supervised: Supervised | None = None,
    stopping: Callable[[], bool] = lambda: False,
    limits: ClientLimits | None = None,
) -> Starlette:
    """Return the application of the admin port.

    ``pools``: those that the data listener gives requests to. ``settings``: those in effect, with the token of now.
    ``feed``: runs beside it. ``unrouted``: figures of requests that no route led to a pool. ``processes``: those that
    serve. ``supervised``: their supervisor. ``stopping``: whether the balancer is about to stop. ``limits``: those that
    clients of the admin port have reached.
    """
    limits = limits or ClientLimits()

    async def healthz(request: Request) -> Response:
        if not processes():
            return PlainTextResponse("no process has reported of late\n", 503)
        return PlainTextResponse("ok\n")

    async def members(request: Request) -> Response:
        found = pools()
        if not found:
            raise Unusable(503, "not_yet", "no process has reported yet")
        return JSONResponse(status(found[0], time.monotonic()))

    routes: list[BaseRoute] = [
        Route("/healthz", healthz),
        Route("/readyz", readiness_endpoint(pools, stopping)),
        Route("/members", members),
        Route("/metrics", metrics_endpoint(pools, unrouted, processes, limits)),
        *_api(settings, feed, processes, supervised),
        Route("/api/stream", Stream(settings, feed, limits)),
        *_page(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _in_json})
    app.add_middleware(Secured, settings=settings)
    return app


def _api(
    settings: Callable[[], Settings],
    feed: StatusFeed,
    processes: Callable[[], Sequence[Usage]],
    supervised: Supervised | None,
) -> list[BaseRoute]:
    async def state(request: Request) -> Response:
        running = {
            "supervisor": supervised.pid if supervised else None,
            "generation": supervised.generation if supervised else 0,
            "proof": await _proof(request.query_params.get("challenge"), settings().admin_token, supervised),
            "processes": [process._asdict() for process in processes()],
        }
        return JSONResponse(feed.status() | running, headers=FRESH)

    async def events(request: Request) -> Response:
        return JSONResponse({"events": feed.events()}, headers=FRESH)

    async def settings_in_effect(request: Request) -> Response:
        rows = [{"name": name, "value": value, "meaning": meaning} for name, value, meaning in settings().rows()]
        return JSONResponse({"settings": rows}, headers=FRESH)

    return [
        Route("/api/status", state),
        Route("/api/events", events),
        Route("/api/settings", settings_in_effect),
        *(
            Route(f"/api/members/{{address}}/{name}", action_endpoint(settings, feed, act), methods=["POST"])
            for name, act in ACTIONS.items()
        ),
    ]


async def _proof(challenge: str | None, token: str | None, supervised: Supervised | None) -> str | None:
    if challenge is not None and not CHALLENGE.fullmatch(challenge):
        raise Unusable(400, "bad_challenge", "the challenge takes 64 hexadecimal digits in lower case")
    if not (challenge and token and supervised):
        return None
    # In a thread: the first one takes the time of a thousand requests.
    return await asyncio.to_thread(prove, token, challenge, supervised.pid, supervised.generation)


async def _in_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if isinstance(error, Unusable):
        return problem(error.status_code, error.error, error.detail, headers)
    if error.status_code == 405:
        return problem(405, "method_not_allowed", f"{request.scope['path']} takes {headers.get('Allow')}", headers)
    return problem(404, "not_found", "there is no such path; /openapi.json says what there is", headers)


class Stream:
    """Server-sent events: the whole state once, then its changes."""

    def __init__(self, settings: Callable[[], Settings], feed: StatusFeed, limits: ClientLimits) -> None:
        self._settings = settings
        self._feed = feed
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise HTTPException(405, headers={"Allow": "GET"})
        settings, headers = self._settings(), headers_by_name(Headers(scope=scope))
        client: str = scope["client"][0] if scope["client"] else ""
        if denial := deny_page(settings, self._feed.subscribers, client, headers):
            if denial.status == 503:
                self._limits.reached("admin_pages", client, f"is refused a stream of the admin port: {denial.reason}")
            await refusal(denial)(scope, receive, send)
            return
        with Subscriber(self._feed, None if has_token(settings, headers) else client) as subscriber:
            fields = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": fields})
            # A client that leaves cancels this.
            while piece := await subscriber.next():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _page() -> list[BaseRoute]:
    """Return the files of the page, read once: few and small."""
    files = {f"/static/{path.name}": path for path in sorted((HERE / "static").iterdir())}
    index = files.pop("/static/index.html")
    return [_file(name, path) for name, path in ({"/": index, "/openapi.json": HERE / "openapi.json"} | files).items()]


def _file(name: str, path: Path) -> Route:
    content = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = {"etag": f'"{sha256(content).hexdigest()[:16]}"', "cache-control": "no-cache"}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(name, file)


def status(pool: View, now: float) -> dict[str, object]:
    """Return the members and the DNS answer they come from; ages and durations in seconds."""
    snapshot = pool.snapshot
    return {
        "alias": pool.settings.alias,
        "dns": snapshot
        and {
            "age": round(now - snapshot.when, 3),
            "answers": [
                {
                    "record": answer.record,
                    "rcode": answer.rcode,
                    "endpoints": len(answer.endpoints),
                    "over_tcp": answer.over_tcp,
                }
                for answer in snapshot.answers
            ],
        },
        "queued": pool.queued,
        "members": [
            {
                "address": str(member.address),
                "state": member.state.value,
                "reason": member.reason,
                "since": round(now - member.since, 3),
                "in_flight": member.in_flight,
                "requests": member.requests,
            }
            for member in sorted(pool.members.values(), key=lambda member: member.address)
        ],
    }
