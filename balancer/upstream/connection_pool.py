"""Connections to members while no coroutine waits for them: which are idle, which in use, and for how long.

Each member has a stack of idle connections: the one used last is used next, so that surplus ones expire. Taking one
and giving it back cost the same with one connection as with thousands: no lock, no scan of a list, no system call.

``balancer.upstream.sending`` has what waits: connecting, and sending a body.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf

from balancer import malloc
from balancer.http.chunked import chunk, last_chunk
from balancer.http.headers import Headers, trailers
from balancer.http.request import Body, Request
from balancer.loop_time import Timer, loop_time
from balancer.outbox import outbox
from balancer.types import Address
from balancer.upstream.base import Timeouts, Upstream
from balancer.upstream.connection import MemberConnection, PoolCallbacks
from balancer.upstream.exchange import MemberExchange

# Below the 5 s after which a uvicorn member closes an idle connection, by more than one sweep.
KEEPALIVE_SECONDS = 4.0
# Members whose idle connections are closed in one turn of the event loop; thousands would delay every request.
CLOSES_PER_TICK = 50
# Seconds between checks of limits: a quarter of the shortest, within these bounds.
SWEEP_MIN, SWEEP_MAX = 0.01, 0.5


class ConnectionPool(Upstream):
    """Connections to members. ``opened``: their number so far; ``requests``: sent on them so far."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._member_pools: dict[Address, MemberPool] = {}
        self._active: set[MemberConnection] = set()
        shortest = min(timeouts.response, timeouts.idle, timeouts.hung)
        self._sweep_seconds = min(SWEEP_MAX, max(SWEEP_MIN, shortest / 4))
        self._sweeper: Timer | None = None
        # Of members that are forgotten: idle connections that are still to be closed.
        self._forgotten: deque[MemberPool] = deque()
        self._closing: asyncio.Handle | None = None
        self.opened = 0
        self.requests = 0

    @property
    def active(self) -> int:
        """Number of connections in use."""
        return len(self._active)

    @property
    def idle(self) -> int:
        """Number of connections that wait for a request."""
        return sum(len(member_pool.idle) for member_pool in self._member_pools.values())

    def member_pool(self, address: Address) -> MemberPool:
        """Return the connections to a member, of which there may be none."""
        return self._member_pools.setdefault(address, MemberPool(self._active))

    def send_nowait(
        self,
        address: Address,
        request: Request,
        head: bytes,
        body: bytes,
        repeatable: bool,
        on_interim: Callable[[int, Headers], None],
    ) -> MemberExchange | None:
        member_pool = self._member_pools.get(address)
        connection = member_pool and member_pool.take()
        if not connection:
            return None
        self._use(connection)
        data = head
        if request.body:
            data += frame(body, request.body, request.chunked, last=True)
        response = MemberExchange(connection, request.method == "HEAD", repeatable, request.upgrade != b"", on_interim)
        connection.begin(response, data)
        return response

    def _use(self, connection: MemberConnection) -> None:
        """Count a connection that a request is about to be sent on."""
        self._active.add(connection)
        self.requests += 1

    def _sweep(self) -> None:
        """Check the limits of exchanges in progress, and of idle connections, oldest first."""
        clock = loop_time()
        now = clock.time()
        for connection in list(self._active):
            connection.check_deadline(now)
        # Members close idle connections in real time.
        idle_since = asyncio.get_running_loop().time() - KEEPALIVE_SECONDS
        for member_pool in self._member_pools.values():
            member_pool.expire(idle_since)
        if self._active or any(member_pool.idle for member_pool in self._member_pools.values()):
            self._sweeper = clock.call_later(self._sweep_seconds, self._sweep)
        else:
            self._sweeper = None
            malloc.trim()

    def on_member_answered(self, address: Address) -> None:
        if member_pool := self._member_pools.get(address):
            member_pool.last_byte_at = loop_time().time()

    def check_network(self, address: Address) -> None:
        for connection in self._active:
            if connection.address == address:
                connection.check_network()

    def forget(self, address: Address) -> None:
        member_pool = self._member_pools.pop(address, None)
        if member_pool:
            member_pool.forgotten = True
            if member_pool.idle:
                self._forgotten.append(member_pool)
                if self._closing is None:
                    self._closing = asyncio.get_running_loop().call_soon(self._close_forgotten)

    def _close_forgotten(self) -> None:
        for _ in range(min(CLOSES_PER_TICK, len(self._forgotten))):
            self._forgotten.popleft().expire(inf)
        self._closing = asyncio.get_running_loop().call_soon(self._close_forgotten) if self._forgotten else None

    def _close_all(self) -> None:
        """Close every connection."""
        for address in list(self._member_pools):
            self.forget(address)
        if self._closing:
            self._closing.cancel()
            self._closing = None
        while self._forgotten:
            self._forgotten.popleft().expire(inf)
        for connection in list(self._active):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None


class MemberPool(PoolCallbacks):
    """The connections to one member: ``idle`` is a stack, whose order of insertion is that of their last use."""

    def __init__(self, active: set[MemberConnection]) -> None:
        self._active = active
        self._loop = asyncio.get_running_loop()
        self.clock = loop_time()
        self.outbox = outbox()
        self.idle: dict[MemberConnection, None] = {}
        self.last_byte_at = -inf
        self.forgotten = False

    def take(self) -> MemberConnection | None:
        """Take an idle connection, or return None."""
        if self.idle:
            connection, _ = self.idle.popitem()
            if connection.idle_since > self._loop.time() - KEEPALIVE_SECONDS:
                return connection
            connection.abort()
            self.expire(inf)  # The others have been idle for longer.
        return None

    def expire(self, idle_since: float) -> None:
        """Close the connections that have been idle since then or longer."""
        while self.idle:
            connection = next(iter(self.idle))
            if connection.idle_since > idle_since:
                break
            del self.idle[connection]
            connection.abort()

    def ended(self, connection: MemberConnection) -> None:
        self._active.discard(connection)
        if self.forgotten:
            connection.abort()
        else:
            connection.idle_since = self._loop.time()
            self.last_byte_at = connection.idle_since - self.clock.lost
            self.idle[connection] = None

    def lost(self, connection: MemberConnection) -> None:
        self._active.discard(connection)
        self.idle.pop(connection, None)


def frame(piece: bytes, body: Body, chunked: bool, last: bool) -> bytes:
    """Return a piece of a body as it goes over the wire; with its end if it is the ``last``."""
    if not chunked:
        return piece
    return chunk(piece) + (last_chunk(trailers(body.trailers)) if last else b"")
