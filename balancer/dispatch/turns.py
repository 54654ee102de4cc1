"""Whose turn is next among the clients with requests in the queue, and how much of the queue each may hold. No I/O.

Rules for slots (``Turns``):
* A client's requests keep their order. Clients take turns: a slot goes to the client that has waited longest for one.
* Clients are in tiers by the slots that they hold: less than their share, less than two shares, and so on. A client
  gets a slot only while none in a tier below waits. So one that keeps its slots for long does not get them all.
* A free slot goes to any client that waits: a client alone gets all of them.
* Slots count that a client got from the queue. Requests that came while none waited are not looked at (for each of
  them that would cost time, and they have ended soon after the queue began to move).

Rules for places and bytes (``SharedBound``):
* A client may hold all of them. Once all are held, the next request of a client within its share takes those of the
  clients above their shares: the latest request of the one that holds most gives way.
* A client without anything there is within its share, whatever it brings, and its first request does not give way.

Each step takes the same time for any number of requests and clients. (Tiers, and clients above their share, are at
most as many as shares.)
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.dispatch.queue import QueuedRequest

# A product that should be a whole number may be less by so much.
_ROUNDING = 1e-9


def part(whole: float, share: float) -> float:
    """Return a share of a number, rounded down."""
    return whole if whole == inf else int(whole * share + _ROUNDING)


class SharedBound:
    """A bound of the queue, such as that of its bytes, and what each client holds of it. ``total``: what all hold."""

    def __init__(self, limit: int, share: float) -> None:
        self.limit = limit
        self.share = max(1, int(part(limit, share)))
        self.total = 0
        # By client: what it holds in all, and what each of its requests holds, in order of arrival.
        self._held: dict[str, int] = {}
        self._requests: dict[str, OrderedDict[QueuedRequest, int]] = {}
        # Those with more than their share, and more than one request.
        self._above: set[str] = set()

    def add(self, queued: QueuedRequest, amount: int) -> None:
        """Count a request that has joined the queue, and holds so much, at least 1."""
        self._requests.setdefault(queued.client, OrderedDict())[queued] = amount
        self._count(queued.client, amount)

    def remove(self, queued: QueuedRequest) -> None:
        """Count a request off that has left the queue, if it was counted."""
        requests = self._requests.get(queued.client) or OrderedDict()
        if queued in requests:
            self._count(queued.client, -requests.pop(queued))

    def _count(self, client: str, amount: int) -> None:
        self.total += amount
        held = self._held[client] = self.held_by(client) + amount
        if held > self.share and len(self._requests[client]) > 1:
            self._above.add(client)
        else:
            self._above.discard(client)
        if not held:
            del self._held[client], self._requests[client]

    def held_by(self, client: str) -> int:
        """Return what a client holds."""
        return self._held.get(client, 0)

    def has_room(self, amount: int) -> bool:
        """Whether there is room for so much more."""
        return self.total + amount <= self.limit

    def may_take(self, client: str, amount: int) -> bool:
        """Whether so much more of a client fits in, once the clients above their shares have given way."""
        held = self.held_by(client)
        return (not held or held + amount <= self.share) and self.total - self._excess() + amount <= self.limit

    def _excess(self) -> float:
        """Return what clients above their shares hold too much; each keeps its first request, whatever that holds."""
        return sum(
            self._held[client] - max(self.share, next(iter(self._requests[client].values()))) for client in self._above
        )

    def last_of_most(self) -> QueuedRequest:
        """Return the latest request of the client that holds most, of those above their shares."""
        client = max(self._above, key=self._held.__getitem__)
        return next(reversed(self._requests[client]))


class _Client:
    """A client with requests in the queue, or with slots from it. ``held``: the number of these slots."""

    __slots__ = ("held", "tier", "waiting")

    def __init__(self) -> None:
        self.held = 0
        self.tier = 0
        self.waiting: OrderedDict[QueuedRequest, None] = OrderedDict()


class Turns:
    """The clients whose requests wait. ``slots``: those of all members that are available; infinite without a limit."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._clients: dict[str, _Client] = {}
        # Those that wait, by tier; the next is the first of the lowest one.
        self._tiers: list[OrderedDict[_Client, None]] = [OrderedDict() for _ in range(ceil(1 / share))]
        self.slots = inf

    def head(self) -> QueuedRequest | None:
        """Return the request whose turn is next, or None."""
        for tier in self._tiers:
            if tier:
                return next(iter(next(iter(tier)).waiting))
        return None

    def in_front(self, name: str) -> int:
        """Return how many requests have a turn before the next one that this client queues, as it looks now."""
        client = self._clients.get(name) or _Client()
        own = len(client.waiting)
        clients = sum(map(len, self._tiers[: self._tier(client) + 1])) - (own > 0)
        return own + clients * (own + 1)

    def join(self, queued: QueuedRequest) -> None:
        """Add a request at the end of those of its client."""
        client = self._clients.setdefault(queued.client, _Client())
        client.waiting[queued] = None
        if len(client.waiting) == 1:
            self._enter(client)

    def leave(self, queued: QueuedRequest) -> None:
        """Remove a request. Its client keeps its turn."""
        client = self._clients[queued.client]
        del client.waiting[queued]
        if not client.waiting:
            del self._tiers[client.tier][client]
            self._forget(queued.client)

    def take(self, queued: QueuedRequest) -> None:
        """Note that a request, which has left, has got a slot: its client comes after all others of its tier."""
        client = self._clients.setdefault(queued.client, _Client())
        client.held += 1
        if client.waiting:
            del self._tiers[client.tier][client]
            self._enter(client)

    def give_back(self, queued: QueuedRequest) -> None:
        """Note that a request has given its slot back."""
        client = self._clients[queued.client]
        client.held -= 1
        if client.waiting and self._tier(client) != client.tier:
            del self._tiers[client.tier][client]
            self._enter(client)
        self._forget(queued.client)

    def _enter(self, client: _Client) -> None:
        client.tier = self._tier(client)
        self._tiers[client.tier][client] = None

    def _tier(self, client: _Client) -> int:
        share = max(1, part(self.slots, self._share))
        return min(int(client.held / share), len(self._tiers) - 1)

    def _forget(self, name: str) -> None:
        client = self._clients[name]
        if not (client.waiting or client.held):
            del self._clients[name]
