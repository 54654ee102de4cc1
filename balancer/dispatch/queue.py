"""The queue of requests that wait for a member. No I/O: the caller wakes them.

It has three bounds: the number of requests, the bytes of their bodies in hand, and the wait. The pace of the last ones
promises that wait, while the queue moves. A request that would time out in the queue is rejected immediately.

``balancer.dispatch.turns`` has the rules by which its clients share turns, places and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from balancer.dispatch.turns import SharedBound, Turns
from balancer.errors import Refusal
from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.words import counted


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request that waits for a member. ``tried``: members that failed it, which get it again only if no other can.

    ``give``: called with the member when the wait is over; returns False if the request waits no more. ``refuse``:
    called when it has to give way to another. ``in_hand``: bytes of its body that are kept. ``client``: whose it is;
    see ``balancer.http.clients``.

    ``passed``: the number of requests that were served, or left, from its own arrival until it got its member or left.
    ``has_turn``: it has got its member in its turn, and has not given it back.
    """

    request: AnyRequest
    tried: frozenset[Member] = frozenset()
    give: Callable[[Member], bool] = lambda member: False
    refuse: Callable[[Refusal], object] = lambda refusal: None
    in_hand: int = 0
    client: str = ""
    passed: int = 0
    has_turn: bool = False


class PendingQueue:
    """A queue of at most ``limit`` requests whose kept bodies have ``bytes_limit`` bytes.

    ``share``: what a client has of both, and of the slots, while others want them. 1: first come, first served.
    """

    def __init__(self, limit: int, bytes_limit: int, share: float = 1.0) -> None:
        self._is_shared = share < 1
        self._places = SharedBound(limit, share)
        self._bytes = SharedBound(bytes_limit, share)
        self.turns = Turns(share)
        # Every request checks this.
        self.waiting: dict[QueuedRequest, None] = {}
        # Requests that have left the queue.
        self._left = 0
        # Seconds of waiting for each place in front, by the request served last; 0 while that is not known.
        self._pace = 0.0

    def __len__(self) -> int:
        return len(self.waiting)

    def push(self, queued: QueuedRequest, patience: float, moving: bool) -> None:
        """Add a request; others may have to give way to it. Raises Refusal where there is no use or no room.

        ``patience``: seconds that the request can wait. ``moving``: it waits for its turn, not for a member to come up.
        """
        if not self._is_shared:
            queued.client = ""
        self._check_room(queued)
        in_front = self.turns.in_front(queued.client)
        if moving and self._pace * in_front > patience:
            words = f"every member is busy, and the wait would be {self._pace * in_front:.1f} s"
            raise Refusal(503, "overloaded", words, retry_after=1)
        self._make_room(queued)
        queued.passed = -self._left
        self.waiting[queued] = None
        self.turns.join(queued)
        self._places.add(queued, 1)
        if queued.in_hand:
            self._bytes.add(queued, queued.in_hand)

    def has_room(self, queued: QueuedRequest) -> bool:
        """Whether there is room for a request without any other that gives way."""
        return self._places.has_room(1) and self._bytes.has_room(queued.in_hand)

    def _check_room(self, queued: QueuedRequest) -> None:
        """Raise Refusal if there is no room for a request, even if others give way."""
        client = queued.client
        if not self._places.has_room(1) and not self._places.may_take(client, 1):
            waits = counted(self._places.limit, "request waits", "requests wait")
            raise _full(f"{waits} for a member already{self._yours(self._places, client)}")
        if not self._bytes.has_room(queued.in_hand) and not self._bytes.may_take(client, queued.in_hand):
            held = counted(self._bytes.total, "byte")
            raise _full(f"the requests that wait hold {held} already{self._yours(self._bytes, client)}")

    def _yours(self, bound: SharedBound, client: str) -> str:
        """Return words for what a client above its share holds, where others hold something as well."""
        held = bound.held_by(client)
        return f", {held} of them yours, whose share is {bound.share}" if bound.share <= held < bound.total else ""

    def _make_room(self, queued: QueuedRequest) -> None:
        """Have requests of clients above their shares give way to one that fits in then."""
        for bound, amount in ((self._places, 1), (self._bytes, queued.in_hand)):
            while not bound.has_room(amount):
                last = bound.last_of_most()
                held = bound.held_by(last.client)
                unit = "requests" if bound is self._places else "bytes"
                self.discard(last)
                last.refuse(
                    _full(
                        f"the queue is full, and a client within its share of it comes first: {held} of its "
                        f"{bound.limit} {unit} were yours, whose share is {bound.share}"
                    )
                )

    def discard(self, queued: QueuedRequest) -> None:
        """Remove a request, if it is in the queue."""
        if queued in self.waiting:
            del self.waiting[queued]
            queued.passed += self._left
            self._left += 1
            self.turns.leave(queued)
            self._places.remove(queued)
            self._bytes.remove(queued)
            if not self.waiting:
                self._pace = 0.0

    def head(self) -> QueuedRequest | None:
        """Return the request whose turn is next, or None."""
        return self.turns.head()

    def take_turn(self, queued: QueuedRequest) -> None:
        """Note that a request, which has left the queue, has got a member."""
        queued.has_turn = True
        self.turns.take(queued)

    def end_turn(self, queued: QueuedRequest) -> None:
        """Note that a request has given its member back, if it got it in its turn."""
        if queued.has_turn:
            queued.has_turn = False
            self.turns.give_back(queued)

    def record_wait(self, queued: QueuedRequest, waited: float) -> None:
        """Note that a request had its turn after ``waited`` seconds."""
        if self.waiting and queued.passed:
            self._pace = waited / queued.passed


def _full(words: str) -> Refusal:
    return Refusal(503, "queue_full", words, retry_after=1)
