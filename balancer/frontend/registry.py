"""The connections of a listener, and the limits that they have to keep."""

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

# How often limits are checked, in seconds, and how many connections are looked at in one go.
SWEEP_SECONDS = 1.0
SWEEP_BATCH = 500
# How many connections are a crowd.
CROWD = 100


class ClientRegistry:
    """The connections of a listener, and the limits that they have to keep."""

    def __init__(self, proxy: ActiveRequests, settings: Settings) -> None:
        self.proxy = proxy
        self.settings = settings
        self.connections: set[ClientConnection] = set()
        proxy.connections = self.connections
        # Those of them that only wait for the answer that there are too many: they do not count.
        self._turned_away: set[ClientConnection] = set()
        self._crowd = 0
        self._per_address: Counter[str] = Counter()
        self._sweeper: asyncio.TimerHandle | None = None
        # Set once the last connection has ended, where that is waited for.
        self._emptied: asyncio.Event | None = None
        # Requests without a body that have come before, by their bytes and their origin.
        self.requests: Memo[tuple[bytes, str], Request] = Memo()
        proxy.on_switch.append(self._forget)
        # Each answer is the last of its connection from now on; how long those may idle that have had one.
        self.stopping = False
        self.idle_grace = 0.0

    def _forget(self) -> None:
        """Routes have changed: each request, also one that has come before, has to find its own anew."""
        self.requests = Memo()

    def stop(self, idle_grace: float) -> None:
        """The listener is about to close: what clients have asked for, or are just asking for, is answered.

        A client that has its answer may be sending the next request; it is given ``idle_grace`` seconds to do so.
        """
        self.idle_grace = idle_grace
        self.stopping = True

    def shut_down_connections(self) -> None:
        """Have every connection finish what it has been asked for, and close."""
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
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep, [])
        limit, each = self.settings.max_connections, self.settings.max_connections_per_client
        full = limit and len(self.connections) - len(self._turned_away) > limit
        if full or (each and self._per_address[connection.peer] >= each):
            self._turned_away.add(connection)
            words = f"there are {limit} connections already" if full else f"you have {each} connections already"
            raise Refusal(503, "too_many_connections", words, retry_after=1)
        self._per_address[connection.peer] += 1

    def remove(self, connection: ClientConnection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            if self._emptied and not self.connections:
                self._emptied.set()
            if connection in self._turned_away:
                self._turned_away.remove(connection)
                return
            self._per_address[connection.peer] -= 1
            if not self._per_address[connection.peer]:
                del self._per_address[connection.peer]

    def _round(self) -> list[ClientConnection]:
        """All connections. A crowd leaves its memory behind: have that given back whenever half of it has left."""
        connections = list(self.connections)
        self._crowd = max(self._crowd, len(connections))
        if self._crowd > CROWD and len(connections) < self._crowd / 2:
            self._crowd = len(connections)
            gc.collect()
            malloc.trim()
        return connections

    def _sweep(self, left: list[ClientConnection]) -> None:
        """Look at all connections, a batch at a time, so that requests pass in between."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        left = left or self._round()
        batch, left = left[:SWEEP_BATCH], left[SWEEP_BATCH:]
        for connection in batch:
            connection.check_timeouts(now)
        if self.connections:
            self._sweeper = loop.call_later(0 if left else SWEEP_SECONDS, self._sweep, left)
        else:
            self._sweeper = None
