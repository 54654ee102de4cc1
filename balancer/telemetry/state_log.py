"""Lines of the balancer's own log for changes of members."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf

from balancer.members.ejection import describe
from balancer.members.health import State
from balancer.members.member import Member

log = logging.getLogger(__name__)

# Members named in a log line, and changes of state that are logged in a second.
NAMED = 20
FLIPS_LOGGED = 100


class FlipLog:
    """A line for each change of a member's state; of more than FLIPS_LOGGED in a second, one line has the number.

    ``name``: returns the name of the pool where there are several, else "".
    """

    def __init__(self, name: Callable[[], str]) -> None:
        self._name = name
        self._since = -inf
        self._lines = 0
        self._others: Counter[State] = Counter()

    def flipped(self, member: Member, before: State) -> None:
        """Log a change of state."""
        if member.since - self._since >= 1:
            self.flush(member.since)
        # Suspicions come and go with single probes; their consequences are worth a line.
        passing = {before, member.state} == {State.UP, State.SUSPECT}
        level = logging.DEBUG if passing else logging.INFO
        if self._lines < FLIPS_LOGGED:
            self._lines += log.isEnabledFor(level)
            log.log(level, "%s%s %s: %s", of_pool(self._name()), member.address, member.state.value, member.reason)
        else:
            self._others[member.state] += 1

    def flush(self, now: float) -> None:
        """Log the changes left out of a second that is over. ``now``: a reading of the clock of members' times."""
        if now - self._since >= 1:
            if self._others:
                others = ", ".join(f"{n} {state.value}" for state, n in self._others.items())
                log.info("%smore changes of state: %s", of_pool(self._name()), others)
                self._others.clear()
            self._since, self._lines = now, 0


def of_pool(name: str) -> str:
    """Return the beginning of a log line about a pool: "" where there is one alone, which has no name."""
    return f"pool {name}: " if name else ""


def log_drain(name: str, member: Member, drained: bool, where: str = "") -> None:
    """Log that a member was drained by hand, or no longer is. ``name``: of its pool, or ""."""
    words = "drained" if drained else "no longer drained"
    log.info("%s%s %s by hand%s", of_pool(name), member.address, words, where)


def log_ejection(name: str, member: Member) -> None:
    """Log that a member was ejected, is on trial or restored. ``name``: of its pool, or ""."""
    log.info("%s%s %s", of_pool(name), member.address, describe(member.ejection))


def named(members: Sequence[Member]) -> str:
    """Return the addresses of members, for a log line; of very many, the first."""
    names = ", ".join(str(member.address) for member in members[:NAMED])
    return names if len(members) <= NAMED else f"{names} and {len(members) - NAMED} more"
