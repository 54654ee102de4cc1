"""The requests of clients that are under way, by whatever front end they came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from balancer.dispatch.context import RequestContext
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import RequestHandler, Sink
from balancer.dispatch.refusals import refuse
from balancer.errors import SHUTTING_DOWN, ClientGone, Refusal, TruncatedResponse
from balancer.http.headers import Headers
from balancer.http.request import Request

# After these bytes a stream of server-sent events may end (HTML, section 9.2.5).
END_OF_EVENT = (b"\n\n", b"\r\n\r\n", b"\r\r")


class ActiveRequest:
    """One request of one client, by whatever way it came.

    ``task`` serves it, until there is nothing left to cancel; ``started``: the response has begun;
    ``cancelled``: ``end`` has ended it. ``context``: what the dispatcher makes of it, while it is under way.
    """

    context: RequestContext
    task: asyncio.Task[Any] | None = None
    started = False
    cancelled = False
    refusal: Refusal | None = None
    # Of the response: its fields, and the last piece of its body that has been sent whole.
    _headers: Headers = []  # noqa: RUF012 - replaced, never changed
    _sent = b""
    _leaving = False

    def end(self, refusal: Refusal | None = None) -> None:
        """Cancel the request; ``refusal`` is what the client is told if its response has not begun."""
        if not self.cancelled and self.task:
            self.cancelled, self.refusal = True, refusal
            self.cancel()

    def cancel(self) -> None:
        if self.task:
            self.task.cancel(self.refusal.token if self.refusal else "client_gone")

    async def begin_shutdown(self) -> None:
        """The balancer is about to exit: end here what would not end by itself."""
        fields = dict(self._headers)
        self._leaving = fields.get(b"content-type", b"").startswith(b"text/event-stream") and not (
            fields.keys() & {b"content-length", b"content-encoding"}
        )
        if self._leaving:
            await self._end_between_events()

    async def _end_between_events(self) -> None:
        """End a stream of server-sent events as if the member had, so that the client connects again."""
        if self.task and self._sent.endswith(END_OF_EVENT):
            await self._complete()
            self.end(SHUTTING_DOWN)

    async def _complete(self) -> None:
        """Send the end of the response."""
        raise NotImplementedError

    def watch(self, began_before: float) -> None:
        """Have a client that leaves noticed, if the request has lasted since ``began_before``."""

    def unwatch(self) -> None:
        """Stop watching for the client to leave."""


class ActiveRequests:
    """The requests of all front ends that are under way, and the dispatcher that they go to.

    ``visits``: these requests. ``connections``: the clients' that are open, where the
    front end knows them: through ASGI they are the server's business. ``dispatcher``: the one that has all requests, or
    None where ``choose`` has to be asked for each. ``on_switch``: called when that has changed its mind.
    """

    connections: Collection[object] | None = None

    def __init__(self, dispatcher: Dispatcher | None) -> None:
        self.dispatcher = dispatcher
        self.on_switch: list[Callable[[], None]] = []
        self.in_flight: set[ActiveRequest] = set()

    def choose(self, request: Request) -> RequestHandler:
        """Who serves a request; asked within the step that begins it."""
        assert self.dispatcher
        return self.dispatcher

    def refused(self, request: Request, refusal: Refusal) -> None:
        """A request that a front end has answered by itself, because nothing could be made of it."""
        assert self.dispatcher
        self.dispatcher.refused(request, refusal)

    async def serve(self, active: ActiveRequest, context: RequestContext, sink: Sink, task: asyncio.Task[Any]) -> None:
        """Answer a client's request, whatever front end it came by. ``task`` is the one that runs this."""
        active.context = context
        self.in_flight.add(active)
        try:
            await context.dispatcher.run(context, sink)
        except (TruncatedResponse, ClientGone):
            pass  # The front end finds the response incomplete and breaks the connection.
        except asyncio.CancelledError:
            if not active.cancelled:
                raise
            task.uncancel()
            if active.refusal and not active.started:
                with suppress(ClientGone):  # The client may have left since it was cut.
                    await refuse(active.refusal, sink)
        finally:
            self.in_flight.discard(active)
            active.unwatch()

    @property
    def active(self) -> int:
        """Requests in progress."""
        return len(self.in_flight)

    async def end_streams(self) -> None:
        """The balancer is about to exit: end what would not end by itself, so that its client goes elsewhere.

        WebSockets are closed with 1001; server-sent events end as a complete response, after an event.
        """
        await asyncio.gather(*(it.begin_shutdown() for it in list(self.in_flight)))

    def abort_all(self) -> None:
        """The balancer is about to exit: end every request still in progress, those without a response by a 503."""
        for active in list(self.in_flight):
            active.end(SHUTTING_DOWN)
