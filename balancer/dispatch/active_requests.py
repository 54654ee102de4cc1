"""Requests of clients in flight, from every front end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from balancer.dispatch.context import RequestContext
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import PENDING, ActiveRequest, RequestHandler
from balancer.dispatch.refusals import refuse_unrecorded
from balancer.errors import SHUTTING_DOWN, ClientGone, Refusal, TruncatedResponse
from balancer.http.request import Request


class ActiveRequests:
    """The requests in flight of all front ends, and the dispatcher that serves them.

    ``connections``: the open client connections, or None where a server beneath ASGI has them. ``dispatcher``: the one
    for all requests, or None where ``choose`` has to be called for each.
    """

    connections: Collection[object] | None = None

    def __init__(self, dispatcher: Dispatcher | None) -> None:
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

    async def serve(self, active: ActiveRequest, context: RequestContext, task: asyncio.Task[Any]) -> None:
        """Serve a request of any front end. ``task`` is the task that runs this."""
        active.context = context
        self.in_flight.add(active)
        try:
            await context.dispatcher.run(context, active)
        except (TruncatedResponse, ClientGone):
            pass  # The front end finds the response incomplete and breaks the connection.
        except asyncio.CancelledError:
            reason = active.close_reason
            if reason is None:
                raise
            task.uncancel()
            if isinstance(reason, Refusal) and active.state is PENDING:
                with suppress(ClientGone):  # The client may have left since the request was ended.
                    await refuse_unrecorded(reason, active, context.id)
        finally:
            self.in_flight.discard(active)
            active.unwatch()

    @property
    def active(self) -> int:
        """Number of requests in flight."""
        return len(self.in_flight)

    async def end_streams(self) -> None:
        """End endless responses before the balancer exits, so that their clients connect to another one.

        WebSockets are closed with 1001; server-sent events end as a complete response, after an event.
        """
        ends = [active.begin_shutdown() for active in self.in_flight]
        await asyncio.gather(*(end for end in ends if end))

    def abort_all(self) -> None:
        """End every request still in flight before the balancer exits; one without a response gets a 503."""
        for active in list(self.in_flight):
            active.end(SHUTTING_DOWN)


async def end_event_stream(active: ActiveRequest) -> None:
    """End server-sent events after an event, as if the member had, so that the client connects again."""
    active.ends_after_event = active.is_event_stream
    if active.ends_after_event:
        await end_between_events(active)


async def end_between_events(active: ActiveRequest) -> None:
    """End server-sent events if the last bytes sent end an event."""
    if active.task and active.is_between_events:
        await active.finish()
        active.end(SHUTTING_DOWN)
