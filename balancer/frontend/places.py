"""The places of a listener's connections, counted from the moment in which they are accepted. No I/O.

Rules:
* A connection has a place before it has said a word. Behind a trusted proxy, its PROXY header names the client later.
* Connections that have not come to HTTP, because a PROXY header or a TLS handshake is still under way, are bounded by
  MAX_HANDSHAKES in all and by a part of that for one client. They count for the other limits as well.
* Where a limit is reached, a handshake that has lasted for PATIENCE_SECONDS makes room for a new connection. So those
  that stall keep out no others, and those that are quick are not broken off.
* A connection too many is answered with a 503, REFUSED_MAX of them at a time. Any more are closed immediately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mypy_extensions import mypyc_attr

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.clients import client_keys
from balancer.telemetry.client_limits import ClientLimits
from balancer.words import counted

# One client may have this part of MAX_HANDSHAKES.
CLIENT_PART = 16
# Seconds after which a handshake makes room for a new connection. Two round trips and a busy core take less.
PATIENCE_SECONDS = 1.0
# Connections at a time that only wait for the answer that there are too many.
REFUSED_MAX = 100


class Place:
    """The place of a connection.

    ``since``: a reading of ``LoopTime`` at its accept. ``refusal``: the only answer that its connection gets, if any.
    ``client``: by which its client is counted, or None until that is known. ``drop``: ends the connection during its
    handshake. ``is_arriving``: it has not come to HTTP.
    """

    __slots__ = ("_is_free", "_places", "client", "drop", "is_arriving", "refusal", "since")

    def __init__(self, places: Places, since: float, refusal: Refusal | None) -> None:
        self._places = places
        self._is_free = False
        self.since = since
        self.refusal = refusal
        self.client: str | None = None
        self.drop: Callable[[], object] | None = None
        self.is_arriving = True

    def arrive(self) -> None:
        """Note that the connection has come to HTTP."""
        self.is_arriving = False
        self._places.end_handshake(self)

    def free(self) -> None:
        """Give the place back: the connection has ended."""
        if not self._is_free:
            self._is_free = True
            self._places.free(self)


@mypyc_attr(allow_interpreted_subclasses=True)
class Places:
    """The places of all connections, with their limits. ``limits``: counts those that clients reach.

    ``held``: places of connections that are served; ``refused``: of those that get a refusal. ``per_client``: places
    held, by client. ``handshakes``, ``handshakes_of``: those that have not come to HTTP, oldest first, and by client.
    ``key_of``: returns the client that an address belongs to.
    """

    def __init__(self, settings: Settings, limits: ClientLimits) -> None:
        self._settings = settings
        self._limits = limits
        self.key_of = client_keys(settings.client_prefix_v6)
        self.held = 0
        self.refused = 0
        self.per_client: Counter[str] = Counter()
        self.handshakes: dict[Place, None] = {}
        self.handshakes_of: dict[str, dict[Place, None]] = {}

    def take(self, peer: str, now: float, handshake: bool = False) -> Place | None:
        """Return a place for a connection that was accepted, or None if it is to be closed immediately.

        ``peer``: the address that it comes from. ``handshake``: something comes before HTTP.
        """
        most, limit, refusal = self._settings.max_handshakes, self._settings.max_connections, None
        if handshake and most and len(self.handshakes) >= most and not self._make_room(self.handshakes, now):
            self._limits.reached("handshakes", peer, f"is refused a handshake, by MAX_HANDSHAKES={most}")
            return None
        if limit and self.held >= limit and not self._make_room(self.handshakes, now):
            refusal = self._refuse("connections", peer)
            if refusal is None:
                return None
        place = Place(self, now, refusal)
        if refusal:
            self.refused += 1
        else:
            self.held += 1
        if handshake:
            self.handshakes[place] = None
        return place

    def name(self, place: Place, peer: str, now: float, for_many: bool = False) -> bool:
        """Count a place for its client. Returns False, with the place free, if its connection is to be closed.

        ``for_many``: clients without number come from there, so that its handshakes are not bounded by themselves.
        """
        client = self.key_of(peer)
        each = self._settings.max_connections_per_client
        is_full = each and place.refusal is None and self.per_client[client] >= each
        if is_full and not self._make_room(self.handshakes_of.get(client) or {}, now):
            refusal = self._refuse("connections_per_client", peer)
            if refusal is None:
                place.free()
                return False
            place.refusal = refusal
            self.held -= 1
            self.refused += 1
        if place in self.handshakes and not for_many and not self._begin_handshake(place, client, peer, now):
            place.free()
            return False
        place.client = client
        if place.refusal is None:
            self.per_client[client] += 1
        return True

    def _begin_handshake(self, place: Place, client: str, peer: str, now: float) -> bool:
        """Count a handshake for its client. Returns False if it has too many."""
        most = self._settings.max_handshakes
        same = self.handshakes_of.get(client) or {}
        if most and len(same) >= max(1, most // CLIENT_PART) and not self._make_room(same, now):
            words = f"is refused a handshake, by a {CLIENT_PART}th of MAX_HANDSHAKES={most}"
            self._limits.reached("handshakes", peer, words)
            return False
        self.handshakes_of.setdefault(client, same)[place] = None
        return True

    def _make_room(self, handshakes: dict[Place, None], now: float) -> bool:
        """End the oldest of these handshakes, if it takes long. Returns whether it has."""
        place = next((it for it in handshakes if it.refusal is None), None)
        if place is None or now - place.since < PATIENCE_SECONDS or place.drop is None:
            return False
        words = f"has not ended its handshake after {now - place.since:.1f} s, and makes room for another connection"
        self._limits.reached("handshakes", place.client or "", words)
        place.drop()
        place.free()
        return True

    def _refuse(self, bound: str, peer: str) -> Refusal | None:
        """Return the refusal of a connection that exceeds a bound of LIMITS, or None if it gets no answer."""
        limit = getattr(self._settings, f"max_{bound}")
        self._limits.reached(bound, peer, f"is refused a connection, by MAX_{bound.upper()}={limit}")
        if self.refused >= REFUSED_MAX:
            return None
        there = "there is" if limit == 1 else "there are"
        words = f"{there if bound == 'connections' else 'you have'} {counted(limit, 'connection')} already"
        return Refusal(503, "too_many_connections", words, retry_after=1)

    def drop_handshakes(self) -> None:
        """End all connections that have not come to HTTP: the listener closes."""
        for place in list(self.handshakes):
            if place.drop:
                place.drop()

    def end_handshake(self, place: Place) -> None:
        """Count a handshake off that has ended, if the connection had one."""
        if place in self.handshakes:
            del self.handshakes[place]
            if (same := self.handshakes_of.get(place.client or "")) and place in same:
                del same[place]
                if not same:
                    del self.handshakes_of[place.client or ""]

    def free(self, place: Place) -> None:
        """Count a connection off that has ended."""
        self.end_handshake(place)
        if place.refusal:
            self.refused -= 1
            return
        self.held -= 1
        if place.client is not None:
            self.per_client[place.client] -= 1
            if not self.per_client[place.client]:
                del self.per_client[place.client]
