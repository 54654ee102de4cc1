"""The connections of the admin port: few, and none that waits keeps another out.

* A connection beyond a bound takes the place of the one that has waited for its client for longest. So a crowd that
  idles, or sends half heads, does not lock operators out.
* Where all have requests in progress, it gets a 503.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from balancer.config.settings import Settings
from balancer.dispatch.active_requests import ActiveRequests
from balancer.frontend.client_connection import BODY, DISCARDING, HEAD, IDLE, LINGERING, NEW
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.places import Place, Places
from balancer.telemetry.client_limits import ClientLimits

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

    def __init__(self, proxy: ActiveRequests, settings: Settings, limits: ClientLimits) -> None:
        super().__init__(proxy, settings, limits)
        self.places = _Places(settings, limits, self._make_room)

    def _make_room(self, client: str) -> None:
        """Close the connection that has waited for longest, where a new one of ``client`` finds no place."""
        counted = [it for it in self.connections if it.place.refusal is None]
        if self.places.per_client[client] >= MAX_CONNECTIONS_PER_CLIENT:
            bound, counted = "connections_per_client", [it for it in counted if it.place.client == client]
        elif self.places.held >= MAX_CONNECTIONS:
            bound = "connections"
        else:
            return
        waiting = [it for it in counted if (it.phase in _WAITING and it.is_waiting) or it.unread]
        if waiting:
            longest = min(waiting, key=lambda it: it.waits_since)
            self.limits.reached(bound, longest.peer, "loses a connection of the admin port that waits to a new one")
            self.remove(longest)
            longest.abort()


class _Places(Places):
    """Places of which one becomes free, if possible, before another is taken."""

    def __init__(self, settings: Settings, limits: ClientLimits, make_room: Callable[[str], None]) -> None:
        super().__init__(settings, limits)
        self._make_place_for = make_room

    def take(self, peer: str, now: float, handshake: bool = False) -> Place | None:
        self._make_place_for(self.key_of(peer))
        return super().take(peer, now, handshake)
