"""The queue of requests that wait while no member is available. No I/O: the caller brings the waking."""

from __future__ import annotations

from collections.abc import Callable

from balancer.errors import Refusal


class Hold:
    """Bounded, first come first served.

    A request keeps its place until it leaves, so that one that was woken for nothing is still in front.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: dict[object, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, wake: Callable[[], None]) -> object:
        """Join the queue; returns the ticket to leave with. Raises Refusal when the queue is full."""
        if len(self._waiting) >= self.limit:
            raise Refusal(503, "hold_full", f"no member is available and {self.limit} requests wait already", 1)
        ticket = object()
        self._waiting[ticket] = wake
        return ticket

    def leave(self, ticket: object) -> None:
        self._waiting.pop(ticket, None)

    def wake(self) -> None:
        """A member is available: everybody looks again, in order of arrival."""
        for wake in list(self._waiting.values()):
            wake()
