"""Requests of clients in flight, from every front end. This module has no coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

from mypy_extensions import mypyc_attr

from balancer.dispatch import serving
from balancer.dispatch.context import RequestContext
from balancer.dispatch.fast_path import FastPathDispatcher
from balancer.dispatch.interfaces import ActiveRequest, RequestHandler
from balancer.errors import SHUTTING_DOWN, Refusal
from balancer.http.request import Request


@mypyc_attr(allow_interpreted_subclasses=True)
class ActiveRequests:
    """The requests in flight of all front ends, and the dispatcher that serves them.

    ``connections``: the open client connections, or None where a server beneath ASGI has them. ``dispatcher``: the one
    for all requests, or None where ``choose`` has to be called for each.
    """

    connections: Collection[object] | None = None

    def __init__(self, dispatcher: FastPathDispatcher | None) -> None:
        self.dispatcher = dispatcher
        self.in_flight: set[ActiveRequest] = set()

    def choose(self, request: Request) -> RequestHandler:
        """Return the handler of a request; called in the step that begins it."""
        assert self.dispatcher
        return self.dispatcher

    def refused(self, request: Request, refusal: Refusal) -> bytes:
        """Record a request that a front end has refused before any dispatcher had it; return its id."""
        assert self.dispatcher
        return self.dispatcher.refused(request, refusal)

    def serve(
        self, active: ActiveRequest, context: RequestContext, task: asyncio.Task[Any]
    ) -> Coroutine[Any, Any, None]:
        """Serve a request of any front end. ``task`` is the task that runs this."""
        return serving.serve(self, active, context, task)

    @property
    def active(self) -> int:
        """Number of requests in flight."""
        return len(self.in_flight)

    def end_streams(self) -> Coroutine[Any, Any, None]:
        """End endless responses before the balancer exits, so that their clients connect to another one."""
        return serving.end_streams(self)

    def abort_all(self) -> None:
        """End every request still in flight before the balancer exits; one without a response gets a 503."""
        for active in list(self.in_flight):
            active.end(SHUTTING_DOWN)
