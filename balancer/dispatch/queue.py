"""The queue of requests that wait for a member. No I/O: the caller wakes them.

It has three bounds: the number of requests, the bytes of their bodies in hand, and the wait. The pace of the last ones
promises that wait, while the queue moves. A request that would time out in the queue is rejected immediately.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from balancer.errors import Refusal
from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.words import counted


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request that waits for a member. ``tried``: members that failed it, which get it again only if no other can.

    ``give``: called with the member when the wait is over; returns False if the request waits no more.
    ``in_hand``: bytes of its body that are kept. ``place``: the number of requests in front of it when it joined the
    queue.
    """

    request: AnyRequest
    tried: frozenset[Member] = frozenset()
    give: Callable[[Member], bool] = lambda member: False
    in_hand: int = 0
    place: int = 0


class PendingQueue:
    """A first-in, first-out queue of at most ``limit`` requests whose kept bodies have ``bytes_limit`` bytes."""

    def __init__(self, limit: int, bytes_limit: int) -> None:
        self._limit = limit
        self._bytes_limit = bytes_limit
        # Every request checks this. (To find the first entry of a plain dictionary takes time for each that was
        # deleted before it.)
        self.waiting: OrderedDict[QueuedRequest, None] = OrderedDict()
        self._bytes = 0
        # Seconds of waiting for each place in front, by the request served last; 0 while that is not known.
        self._pace = 0.0

    def __len__(self) -> int:
        return len(self.waiting)

    def push(self, queued: QueuedRequest, patience: float, moving: bool) -> None:
        """Add a request. Raises Refusal where there is no use or no room.

        ``patience``: seconds that the request can wait. ``moving``: it waits for its turn, not for a member to come up.
        """
        place = len(self.waiting)
        if place >= self._limit:
            words = f"{counted(self._limit, 'request waits', 'requests wait')} for a member already"
            raise Refusal(503, "queue_full", words, retry_after=1)
        if self._bytes + queued.in_hand > self._bytes_limit:
            words = f"the requests that wait hold {counted(self._bytes, 'byte')} already"
            raise Refusal(503, "queue_full", words, retry_after=1)
        if moving and self._pace * place > patience:
            words = f"every member is busy, and the wait would be {self._pace * place:.1f} s"
            raise Refusal(503, "overloaded", words, retry_after=1)
        queued.place = place
        self.waiting[queued] = None
        self._bytes += queued.in_hand

    def discard(self, queued: QueuedRequest) -> None:
        """Remove a request, if it is in the queue."""
        if queued in self.waiting:
            del self.waiting[queued]
            self._bytes -= queued.in_hand
            if not self.waiting:
                self._pace = 0.0

    def head(self) -> QueuedRequest | None:
        """Return the request that has waited longest, or None."""
        return next(iter(self.waiting), None)

    def record_wait(self, queued: QueuedRequest, waited: float) -> None:
        """Note that a request had its turn after ``waited`` seconds."""
        if self.waiting and queued.place:
            self._pace = waited / queued.place
