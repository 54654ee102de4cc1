"""The connections of the admin port: few, and none that waits keeps another out.

* A connection beyond a bound takes the place of the one that has waited for its client for longest. So a crowd that
  idles, or sends half heads, does not lock operators out.
* Where all have requests in progress, it gets a 503.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from balancer.config.settings import Settings
from balancer.frontend.client_connection import BODY, DISCARDING, HEAD, IDLE, LINGERING, NEW, ClientConnection
from balancer.frontend.client_registry import ClientRegistry

# Connections in all. A page takes one, and scrapers, probes and commands one each for a moment. With the largest head,
# body and answer in memory for each, that is some 40 MB for a hundred members.
MAX_CONNECTIONS = 256
# Those of one address: a quarter. Behind a published port of Docker, all clients may have the address of its gateway.
MAX_CONNECTIONS_PER_CLIENT = 64

# Phases in which the client owes bytes, or nothing but the end. (A client that does not read owes as well.)
_WAITING = frozenset({NEW, HEAD, BODY, IDLE, LINGERING, DISCARDING})


def admin_limits(settings: Settings) -> Settings:
    """Return the settings of the admin port's front end: the data port's limits, but plain HTTP and few connections."""
    return replace(
        settings,
        max_connections=MAX_CONNECTIONS,
        max_connections_per_client=MAX_CONNECTIONS_PER_CLIENT,
        proxy_protocol=False,
        http2=False,
    )


class AdminConnections(ClientRegistry):
    """The connections of the admin port, and their limits."""

    def admit(self, connection: ClientConnection) -> None:
        counted = self.connections - self._rejected
        key = self._key_of(connection.peer)
        if self._per_client[key] >= MAX_CONNECTIONS_PER_CLIENT:
            self._make_room("connections_per_client", [it for it in counted if self._key_of(it.peer) == key])
        elif len(counted) >= MAX_CONNECTIONS:
            self._make_room("connections", counted)
        super().admit(connection)

    def _make_room(self, bound: str, connections: Iterable[ClientConnection]) -> None:
        """Close the connection that has waited for its client for longest, if any does."""
        waiting = [it for it in connections if (it.phase in _WAITING and it.is_waiting) or it.unread]
        if waiting:
            longest = min(waiting, key=lambda it: it.waits_since)
            self.limits.reached(bound, longest.peer, "loses a connection of the admin port that waits to a new one")
            self.remove(longest)
            longest.abort()
