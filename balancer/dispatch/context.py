"""A request under way, with all that is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.dispatch.record import RequestRecord
from balancer.errors import Refusal
from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.upstream.base import PendingResponse

if TYPE_CHECKING:
    from balancer.dispatch.interfaces import RequestHandler, Span
    from balancer.dispatch.replay import ReplayableBody


class RequestContext(RequestRecord):
    """A request under way. ``span``: its part of a trace, where it is traced.

    ``dispatcher``: who has begun it, and is to be asked for all that follows. ``given`` and ``response``: the member
    that it was sent to without waiting, if it was. ``hook_request``: the request as plug-ins know it, if there are any;
    ``refusal``: what a hook has refused it, or its response, with. ``own``: a call of this program, which came from no
    client; ``prefix``: the path of the mount that it came through, or b"".
    """

    dispatcher: RequestHandler
    span: Span | None = None
    is_local_call = False
    prefix = b""
    given: Member | None = None
    response: PendingResponse | None = None
    body: ReplayableBody | None = None
    hook_request: AnyRequest = None
    refusal: Refusal | None = None

    @property
    def pool(self) -> str:
        return self.dispatcher.name

    def stop_listening(self) -> None:
        """``Dispatcher.run`` takes over."""
        if self.response:
            self.response.listener = None
