"""The lines of the balancer's own log that say how members change."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from math import inf

from balancer.members.health import State
from balancer.members.member import Member

log = logging.getLogger(__name__)

# Members that a log line names, and changes of state that are logged in a second, each.
NAMED = 20
FLIPS_LOGGED = 100


class FlipLog:
    """A line for each change of a member's state; of more than FLIPS_LOGGED in a second one line says how many."""

    def __init__(self) -> None:
        self._since = -inf
        self._lines = 0
        self._others: Counter[State] = Counter()

    def flipped(self, member: Member, before: State) -> None:
        if member.since - self._since >= 1:
            self.flush(member.since)
        # Suspicions come and go with single probes; what comes of them is worth a line.
        passing = {before, member.state} == {State.UP, State.SUSPECT}
        level = logging.DEBUG if passing else logging.INFO
        if self._lines < FLIPS_LOGGED:
            self._lines += log.isEnabledFor(level)
            log.log(level, "%s %s: %s", member.address, member.state.value, member.reason)
        else:
            self._others[member.state] += 1

    def flush(self, now: float) -> None:
        """A second may be over. ``now``: a reading of the clock that members' times are of."""
        if now - self._since >= 1:
            if self._others:
                log.info(
                    "more changes of state: %s", ", ".join(f"{n} {state.value}" for state, n in self._others.items())
                )
                self._others.clear()
            self._since, self._lines = now, 0


def named(members: Sequence[Member]) -> str:
    """Their addresses, for a log line; of very many, the first."""
    names = ", ".join(str(member.address) for member in members[:NAMED])
    return names if len(members) <= NAMED else f"{names} and {len(members) - NAMED} more"
