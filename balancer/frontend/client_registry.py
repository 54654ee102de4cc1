"""The connections of a listener, and their limits."""

from __future__ import annotations

import asyncio
import gc

from mypy_extensions import mypyc_attr

from balancer import malloc
from balancer.config.settings import Settings
from balancer.dispatch.active_requests import ActiveRequests
from balancer.frontend.client_connection import ClientConnection
from balancer.frontend.kernel_figures import acknowledged, read_little, received, untaken
from balancer.frontend.places import Place, Places
from balancer.loop_time import Timer, loop_time
from balancer.telemetry.client_limits import ClientLimits

# Seconds between checks of limits, and connections that are checked in one turn of the event loop.
SWEEP_SECONDS = 1.0
SWEEP_BATCH = 500
# Connections at their peak from which on memory is given back once half of them have left.
TRIM_PEAK = 100
# Bytes that a client may have taken without a sign of it, where buffers alone show what it takes: a piece on a Unix
# socket, of up to 104 KiB, is there until its last byte has been read. An account that they go to opens full.
LUMP = 1 << 20


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientRegistry:
    """The connections of a listener, and their limits.

    ``limits``: those that clients have reached. ``places``: of the connections that were accepted, whatever they speak.
    ``connections``: those that have come to HTTP. ``emptied``: set once the last of them has ended.
    """

    def __init__(self, proxy: ActiveRequests, settings: Settings, limits: ClientLimits | None = None) -> None:
        self.proxy = proxy
        self.settings = settings
        self.limits = limits or ClientLimits()
        self.places = Places(settings, self.limits)
        self.connections: set[RegisteredConnection] = set()
        self.emptied = asyncio.Event()
        proxy.connections = self.connections
        self._peak = 0
        self._sweeper: Timer | None = None
        # Each answer is the last of its connection; seconds that a connection may idle after an answer.
        self.stopping = False
        self.idle_grace = 0.0

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

    def admit(self, connection: RegisteredConnection) -> None:
        """Add a connection that has come to HTTP. Raises Refusal where there are too many."""
        self.connections.add(connection)
        if self._sweeper is None:
            self._sweeper = loop_time().call_later(SWEEP_SECONDS, self._sweep, [])
        place = connection.place
        place.arrive()
        if place.refusal:
            raise place.refusal

    def remove(self, connection: RegisteredConnection) -> None:
        """Remove a connection that has ended."""
        self.connections.discard(connection)
        connection.place.free()
        if not self.connections:
            self.emptied.set()

    def _start_round(self) -> list[RegisteredConnection]:
        """Return all connections; give memory back whenever half of a peak has left."""
        connections = list(self.connections)
        self._peak = max(self._peak, len(connections))
        if self._peak > TRIM_PEAK and len(connections) < self._peak / 2:
            self._peak = len(connections)
            gc.collect()
            malloc.trim()
        return connections

    def _sweep(self, left: list[RegisteredConnection]) -> None:
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


@mypyc_attr(allow_interpreted_subclasses=True)
class RegisteredConnection(ClientConnection):
    """A connection of a listener. ``registry``: the listener's. ``place``: where it is counted."""

    transport: asyncio.Transport

    __slots__ = ("place", "registry")

    def __init__(self, registry: ClientRegistry, place: Place) -> None:
        super().__init__(registry.settings)
        self.registry = registry
        self.place = place

    @property
    def taken(self) -> int:
        acked = acknowledged(self.transport)
        if acked is not None:
            return acked
        return LUMP + self.drained - self.untaken

    def limit_reached(self, limit: str, words: str) -> None:
        self.registry.limits.reached(limit, self.peer, words)

    @property
    def is_closing(self) -> bool:
        return self.transport.is_closing()

    @property
    def untaken(self) -> int:
        return untaken(self.transport)

    @property
    def came(self) -> int:
        return received(self.transport)

    def abort(self) -> None:
        self.transport.abort()

    def close(self) -> None:
        """Close the connection once what was sent has left."""
        if not self.transport.can_write_eof():
            read_little(self.transport)  # TLS reads on until the client ends it, too.
        self.transport.close()
