"""The pace of DNS queries. No I/O.

Docker answers for an alias that has members. It forwards other names to the name servers of the host, which may refuse
a client that sends too many queries (Pi-hole: 1,000 a minute). Rules:
* While members are available, a query goes out every ``interval`` seconds.
* While none is, one goes out every URGENT_INTERVAL as long as requests wait for a member. So it is for QUICK_SECONDS
  after the last member went, after a request met none, and after the start.
* Then every ``interval`` again, and every IDLE_INTERVAL once DNS has named no address for IDLE_SECONDS.
"""

from __future__ import annotations

from math import inf

# Seconds between queries, and between probes of a member, while no member is available.
URGENT_INTERVAL = 0.1
QUICK_SECONDS = 10.0
IDLE_SECONDS = 60.0
IDLE_INTERVAL = 5.0


class Pace:
    """The state of these rules. Times are clock readings in seconds."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._quick_until = -inf
        self._named_at = -inf

    def speed_up(self, now: float) -> None:
        """Query often from here on: a request met no member, or the last one has just gone."""
        self._quick_until = now + QUICK_SECONDS

    def record_answer(self, named: bool, now: float) -> None:
        """Note an answer of DNS. ``named``: it has an address."""
        if named or self._named_at == -inf:
            self._named_at = now

    def delay(self, available: bool, waiting: bool, now: float) -> float:
        """Return the seconds between the last round and the next. ``waiting``: whether requests wait for a member."""
        if available:
            return self._interval
        if waiting or now < self._quick_until:
            return min(URGENT_INTERVAL, self._interval)
        idle = now - self._named_at > IDLE_SECONDS
        return max(IDLE_INTERVAL, self._interval) if idle else self._interval
