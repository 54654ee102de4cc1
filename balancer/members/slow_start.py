"""The weights of members that have come up: they rise by tenths. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from balancer.members.member import Member

# Members whose weight rises in one step, so that thousands that came up together do not make a long one.
WARMED_PER_STEP = 100


class SlowStart:
    """Members that warm up. ``on_rise``: called with a member whose tenths have changed.

    ``seconds``: in which the weight of a member that came up rises to its full value.
    """

    def __init__(self, seconds: float, on_rise: Callable[[Member], None]) -> None:
        self._seconds = seconds
        self._on_rise = on_rise
        self._tenths: dict[Member, int] = {}
        # Next steps: when, a number that makes entries comparable, the member, and when it began to warm up.
        self._steps: list[tuple[float, int, Member, float]] = []
        self._stepped = 0

    def tenths(self, member: Member) -> int:
        """Return how many tenths of its weight a member has: 10 unless it warms up."""
        return self._tenths.get(member, 10)

    def begin(self, member: Member, now: float) -> None:
        """Let a member that came up begin with a tenth."""
        if self._seconds:
            member.warm_since = now
            self._tenths[member] = 0
            self._rise(member, now)

    def end(self, member: Member) -> None:
        """Forget a member that is no longer up."""
        self._tenths.pop(member, None)

    def step(self, now: float) -> None:
        """Raise the weights that are due, of WARMED_PER_STEP members at most."""
        for _ in range(WARMED_PER_STEP):
            if not (self._steps and self._steps[0][0] <= now):
                break
            _, _, member, began = heappop(self._steps)
            if member in self._tenths and began == member.warm_since:
                self._rise(member, now)

    def next_at(self) -> float:
        """Return when ``step`` has something to do next, a clock reading in seconds."""
        return self._steps[0][0] if self._steps else inf

    def _rise(self, member: Member, now: float) -> None:
        tenths = min(10, max(1, int(10 * (now - member.warm_since) / self._seconds)))
        before = self._tenths[member]
        if tenths == 10:
            del self._tenths[member]
        else:
            self._tenths[member] = tenths
            self._stepped += 1
            # Later than now in any case, whatever the rounding.
            at = max(member.warm_since + (tenths + 1) * self._seconds / 10, now + self._seconds / 1000)
            heappush(self._steps, (at, self._stepped, member, member.warm_since))
        if tenths != before:
            self._on_rise(member)
