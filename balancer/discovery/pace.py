"""How soon to ask DNS again. No I/O.

Docker answers for an alias that has members. A name that it does not know goes on to the name servers of the host, and
these may refuse a client that asks too often (Pi-hole: 1,000 queries a minute). Rules:
* While members are available, DNS is asked every ``interval`` seconds.
* While none is, it is asked every URGENT_INTERVAL as long as requests wait for one, and for QUICK_SECONDS after the
  last member went, after a request met none, and after the start.
* Then it is asked every ``interval`` again, and every IDLE_INTERVAL once it has named no address for IDLE_SECONDS.
"""

from __future__ import annotations

from math import inf

# While no member is available, news is worth a query, and a probe, this often, in seconds.
URGENT_INTERVAL = 0.1
QUICK_SECONDS = 10.0
IDLE_SECONDS = 60.0
IDLE_INTERVAL = 5.0


class Pace:
    """The state that the rules need. Times are clock readings in seconds."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._quick_until = -inf
        self._named_at = -inf

    def wanted(self, now: float) -> None:
        """A member is missed: by a request, or because the last one has just gone."""
        self._quick_until = now + QUICK_SECONDS

    def answered(self, named: bool, now: float) -> None:
        """DNS has answered. ``named``: it has named an address."""
        if named or self._named_at == -inf:
            self._named_at = now

    def delay(self, available: bool, waiting: bool, now: float) -> float:
        """Seconds between the last round and the next. ``waiting``: whether requests wait for a member."""
        if available:
            return self._interval
        if waiting or now < self._quick_until:
            return min(URGENT_INTERVAL, self._interval)
        idle = now - self._named_at > IDLE_SECONDS
        return max(IDLE_INTERVAL, self._interval) if idle else self._interval
