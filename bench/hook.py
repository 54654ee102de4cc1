"""The hook of the candidates whose name ends with ``-hook``."""

from __future__ import annotations

from balancer.hooks import HookRequest, HookResponse, Hooks


class Stamp(Hooks):
    """Reads one header of each request, and sets one of its response."""

    def on_request(self, request: HookRequest) -> None:
        request.notes["agent"] = request.headers.get("user-agent")

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        response.headers.set("x-served-by", str(response.member))
