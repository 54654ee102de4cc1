"""The connections of a listener, and their limits."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from balancer import malloc
from balancer.config.settings import Settings
from balancer.dispatch.active_requests import ActiveRequests
from balancer.errors import Refusal
from balancer.frontend.client_connection import ClientConnection
from balancer.http.memo import Memo
from balancer.http.request import Request
from balancer.loop_time import Timer, loop_time
from balancer.telemetry.client_limits import ClientLimits
from balancer.words import counted

# Seconds between checks of limits, and connections that are checked in one turn of the event loop.
SWEEP_SECONDS = 1.0
SWEEP_BATCH = 500
# Connections at their peak from which on memory is given back once half of them have left.
TRIM_PEAK = 100


class ClientRegistry:
    """The connections of a listener, and their limits. ``limits``: those that clients have reached."""

    def __init__(self, proxy: ActiveRequests, settings: Settings, limits: ClientLimits | None = None) -> None:
        self.proxy = proxy
        self.settings = settings
        self.limits = limits or ClientLimits()
        self.connections: set[ClientConnection] = set()
        proxy.connections = self.connections
        # Connections that only wait for the answer that there are too many: they do not count.
        self._rejected: set[ClientConnection] = set()
        self._peak = 0
        self._per_address: Counter[str] = Counter()
        self._sweeper: Timer | None = None
        # Set once the last connection has ended; None where nothing waits for that.
        self._emptied: asyncio.Event | None = None
        # Requests without a body that have come before, by their bytes and their origin.
        self.requests: Memo[tuple[bytes, str], Request] = Memo()
        proxy.on_switch.append(self._clear_requests)
        # Each answer is the last of its connection; seconds that a connection may idle after an answer.
        self.stopping = False
        self.idle_grace = 0.0

    def _clear_requests(self) -> None:
        """Empty the cache: routes have changed, and each request has to find its own anew."""
        self.requests = Memo()

    def stop(self, idle_grace: float) -> None:
        """Make each answer the last of its connection: the listener is about to close.

        A client that has its answer may be sending the next request: its connection idles for ``idle_grace`` seconds.
        """
        self.idle_grace = idle_grace
        self.stopping = True

    def shut_down_connections(self) -> None:
        """Have every connection finish its requests, and close."""
        for connection in list(self.connections):
            connection.shutdown()

    async def wait_empty(self) -> None:
        """Wait until the last connection has ended."""
        self._emptied = self._emptied or asyncio.Event()
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def admit(self, connection: ClientConnection) -> None:
        """Count a new connection. Raises Refusal where there are too many."""
        self.connections.add(connection)
        if self._sweeper is None:
            self._sweeper = loop_time().call_later(SWEEP_SECONDS, self._sweep, [])
        if bound := self._bound_reached(connection.peer):
            self._rejected.add(connection)
            limit = getattr(self.settings, f"max_{bound}")
            there = "there is" if limit == 1 else "there are"
            words = f"{there if bound == 'connections' else 'you have'} {counted(limit, 'connection')} already"
            self.limits.reached(bound, connection.peer, f"is refused a connection, by MAX_{bound.upper()}={limit}")
            raise Refusal(503, "too_many_connections", words, retry_after=1)
        self._per_address[connection.peer] += 1

    def _bound_reached(self, peer: str) -> str:
        """Return the bound of LIMITS that one more connection of this client exceeds, or ""."""
        limit, each = self.settings.max_connections, self.settings.max_connections_per_client
        if limit and len(self.connections) - len(self._rejected) > limit:
            return "connections"
        return "connections_per_client" if each and self._per_address[peer] >= each else ""

    def remove(self, connection: ClientConnection) -> None:
        """Remove a connection that has ended."""
        if connection in self.connections:
            self.connections.remove(connection)
            if self._emptied and not self.connections:
                self._emptied.set()
            if connection in self._rejected:
                self._rejected.remove(connection)
                return
            self._per_address[connection.peer] -= 1
            if not self._per_address[connection.peer]:
                del self._per_address[connection.peer]

    def _start_round(self) -> list[ClientConnection]:
        """Return all connections; give memory back whenever half of a peak has left."""
        connections = list(self.connections)
        self._peak = max(self._peak, len(connections))
        if self._peak > TRIM_PEAK and len(connections) < self._peak / 2:
            self._peak = len(connections)
            gc.collect()
            malloc.trim()
        return connections

    def _sweep(self, left: list[ClientConnection]) -> None:
        """Check all connections, a batch a turn, so that requests pass in between."""
        clock = loop_time()
        now = clock.time()
        left = left or self._start_round()
        batch, left = left[:SWEEP_BATCH], left[SWEEP_BATCH:]
        for connection in batch:
            connection.check_timeouts(now)
        if self.connections:
            self._sweeper = clock.call_later(0 if left else SWEEP_SECONDS, self._sweep, left)
        else:
            self._sweeper = None


class RegisteredConnection(ClientConnection):
    """A connection of a listener. ``registry``: the listener's."""

    __slots__ = ("registry",)

    def __init__(self, registry: ClientRegistry) -> None:
        super().__init__(registry.settings)
        self.registry = registry

    def limit_reached(self, limit: str, words: str) -> None:
        self.registry.limits.reached(limit, self.peer, words)
