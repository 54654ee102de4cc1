"""The admin application: liveness, readiness and the members."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from balancer.admin.metrics import metrics_endpoint
from balancer.loadbalancer import LoadBalancer


def admin_app(pools: Callable[[], Sequence[LoadBalancer]]) -> Starlette:
    """``/healthz`` (the process answers), ``/readyz`` (it has a member to give requests to), ``/members``.

    ``pools``: those that the data listener gives requests to just now, at least one.
    """

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        counts = {it.settings.alias: len(it.membership.available) for it in pools()}
        if not all(counts.values()):
            return PlainTextResponse("no member is available\n", 503)
        return PlainTextResponse(f"{sum(counts.values())} members are available\n")

    async def members(request: Request) -> Response:
        return JSONResponse(status(pools()[0], time.monotonic()))

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/members", members),
            Route("/metrics", metrics_endpoint(pools)),
        ]
    )


def status(balancer: LoadBalancer, now: float) -> dict[str, object]:
    """The members and the DNS answer they come from; ages and durations in seconds."""
    snapshot = balancer.snapshot
    return {
        "alias": balancer.settings.alias,
        "dns": snapshot
        and {
            "age": round(now - snapshot.when, 3),
            "answers": [
                {
                    "record": it.record,
                    "rcode": it.rcode,
                    "endpoints": len(it.endpoints),
                    "over_tcp": it.over_tcp,
                }
                for it in snapshot.answers
            ],
        },
        "held": len(balancer.dispatcher.hold),
        "members": [
            {
                "address": str(it.address),
                "state": it.state.value,
                "reason": it.reason,
                "since": round(now - it.since, 3),
                "in_flight": it.in_flight,
                "requests": it.requests,
            }
            for it in sorted(balancer.membership.members.values(), key=lambda member: member.address)
        ],
    }
