"""The coroutines of requests in flight: serving one in a task, and ending streams before the balancer exits.

They are functions beside ``ActiveRequests``: that class is compiled, and coroutines are not
(docs/decisions/compilation.md).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from balancer.dispatch.context import RequestContext
from balancer.dispatch.interfaces import PENDING, ActiveRequest
from balancer.dispatch.refusals import refuse_unrecorded
from balancer.errors import SHUTTING_DOWN, ClientGone, Refusal, TruncatedResponse

if TYPE_CHECKING:
    from balancer.dispatch.active_requests import ActiveRequests


async def serve(
    requests: ActiveRequests, active: ActiveRequest, context: RequestContext, task: asyncio.Task[Any]
) -> None:
    """Serve a request of any front end. ``task`` is the task that runs this."""
    active.context = context
    requests.in_flight.add(active)
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
        requests.in_flight.discard(active)
        active.unwatch()


async def end_streams(requests: ActiveRequests) -> None:
    """End endless responses before the balancer exits, so that their clients connect to another one.

    WebSockets are closed with 1001; server-sent events end as a complete response, after an event.
    """
    ends = [active.begin_shutdown() for active in requests.in_flight]
    await asyncio.gather(*(end for end in ends if end))


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
