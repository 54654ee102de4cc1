"""The limits of the members of a pool that find themselves: what happens to requests in, limits out. No I/O.

Rules:
* The time to the first byte counts, so the pace of a client does not. Nor do answers that fail: they may be quick.
* WebSockets and server-sent events do not count for the limit once they have begun: a worker that has to be free for
  them answers others later, and is given fewer. Their heads say nothing of the member's speed.
* A time-out, a connection that dies, 429 and 503 tell of overload. So does a client that leaves without an answer after
  twice the time that the others took.
* A new member begins with the median of its peers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from math import inf
from statistics import median
from zlib import crc32

from balancer.dispatch.admission import Admission, Timer
from balancer.dispatch.limits import AutoLimit, Phase
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.outcome import Outcome
from balancer.types import Clock

# Failures, and statuses, of members that have too much to do.
OVERLOADED = frozenset({"timeout", "died", "truncated", "unreachable"})
REFUSALS = frozenset({429, 503})
# Peers of whose limits a new member gets the median.
PEERS = 15


class LimitFinder:
    """Finds the limit of each member of a pool, and tells its admission.

    ``call_later``: calls a function after so many seconds. ``parts``: balancers that share the members.
    """

    def __init__(
        self,
        membership: Membership,
        admission: Admission,
        call_later: Callable[[float, Callable[[], None]], Timer],
        clock: Clock,
        parts: int = 1,
    ) -> None:
        self._membership = membership
        self._admission = admission
        self._call_later = call_later
        self._clock = clock
        self._parts = parts
        self._limits: dict[Member, AutoLimit] = {}
        # Requests of each member that stream, where there are some.
        self._streams: dict[Member, int] = {}

    def learn(self, member: Member, outcome: Outcome) -> None:
        """Take in the outcome of an attempt."""
        if outcome.failure in OVERLOADED or outcome.status in REFUSALS:
            self._take_in(member, -1.0, inf)
        elif not outcome.failure and outcome.status < 500 and not outcome.is_stream:
            self._take_in(member, outcome.first_byte, inf)

    def left(self, member: Member, waited: float) -> None:
        """Take in that a client has left after ``waited`` seconds at a member, without an answer."""
        self._take_in(member, -1.0, waited)

    def count_stream(self, member: Member, change: int) -> None:
        """Count a request that begins to stream (1), or ends (-1)."""
        streams = self._streams.pop(member, 0) + change
        if streams:
            self._streams[member] = streams
        self._admission.set_limit(member, member.limit + change)

    def _take_in(self, member: Member, latency: float, waited: float) -> None:
        """Take in the end of a request: with a latency, or (-1) with none."""
        limit = self._limits.get(member) or self._add(member)
        streams = self._streams.get(member, 0)
        now, size, deadline = self._clock(), limit.size, limit.deadline
        in_flight = max(1, member.in_flight + 1 - streams)
        if latency < 0:
            limit.fail(in_flight, now, waited)
        else:
            limit.learn(latency, in_flight, now)
        if limit.size != size:
            self._set_first_limit()
        if limit.deadline != deadline and limit.deadline < inf:
            self._call_later(limit.deadline - now, partial(self._expire, member, limit))
        self._admission.set_limit(member, float(limit.limit + streams))

    def _expire(self, member: Member, limit: AutoLimit) -> None:
        limit.expire(self._clock())
        self._admission.set_limit(member, float(limit.limit + self._streams.get(member, 0)))

    def _add(self, member: Member) -> AutoLimit:
        """Return the limit of a member that has had none yet."""
        members = self._membership.members
        if len(self._limits) > 2 * len(members):
            self._limits = {it: limit for it, limit in self._limits.items() if members.get(it.address) is it}
        found = any(limit.phase is not Phase.GROW for limit in islice(self._limits.values(), PEERS))
        jitter = crc32(str(member.address).encode()) / 2**32
        start = member.limit - self._streams.get(member, 0)
        limit = self._limits[member] = AutoLimit(start, found, jitter, self._parts)
        return limit

    def _set_first_limit(self) -> None:
        """Let members that are yet to come begin with what those here have found."""
        sizes = [limit.size for limit in islice(self._limits.values(), PEERS)]
        self._membership.first_limit = float(round(median(sizes)))
