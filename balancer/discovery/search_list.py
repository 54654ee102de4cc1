"""Which name to ask DNS for: the alias as it is, or with a domain of the system's search list behind it. No I/O.

Rules:
* The order is that of resolv.conf(5): a name with fewer dots than ``ndots`` is looked for in the search list first,
  and as it is last; one with as many or more the other way round; one that ends with a dot only as it is.
* The name that had addresses is the one in use, and is asked for alone: one query a round.
* Names before the one in use are asked for again every RECHECK_ROUNDS. A wildcard in some domain of the search list
  may have answered while no member was there yet.
* When the one in use has no addresses any more, all are asked for in the next round and then every LOOK_ROUNDS, and
  the first that has some is in use. A failure (SERVFAIL, a time-out) is no such news.
* There is no member only when every name says so. One that has failed, and was never answered since the start,
  has no say once another has been found: in a cluster without a way out, the alias as it is fails for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from balancer.discovery.snapshot import Outcome

# In rounds of discovery: one a second, ten a second while no member is available.
RECHECK_ROUNDS = 30
LOOK_ROUNDS = 10

# Characters that a name may have with its final dot (RFC 1035 section 3.1: 255 octets on the wire).
NAME_MAX = 254


def candidates(alias: str, domains: Sequence[str], ndots: int) -> list[str]:
    """The absolute names that an alias may stand for, the preferred first. ``domains``: the search list."""
    if alias.endswith("."):
        return [alias]
    whole = f"{alias}."
    searched = [f"{whole}{domain.strip('.')}.".replace("..", ".") for domain in domains]
    order = [*searched, whole] if alias.count(".") < ndots else [whole, *searched]
    return [it for it in dict.fromkeys(order) if len(it) <= NAME_MAX] or [whole]


class SearchList:
    """Which of ``count`` names, by their places in the order of preference, to ask for in each round."""

    def __init__(self, count: int) -> None:
        self.in_use = 0
        # What each name has said since the one in use had no addresses any more.
        self._said: list[Outcome | None] = [None] * count
        self._answered: set[int] = set()
        self._found = False
        self._rest = 0  # rounds until the next in which others are asked for as well

    def begin(self) -> list[int]:
        """The names to ask for in a new round, one after the other until one has addresses."""
        if self._rest:
            self._rest -= 1
            return [self.in_use]
        if self._said[self.in_use] is Outcome.FOUND:
            self._rest = RECHECK_ROUNDS - 1
            return list(range(self.in_use + 1))
        self._rest = LOOK_ROUNDS - 1
        return list(range(len(self._said)))

    def on_outcome(self, name: int, outcome: Outcome) -> None:
        """Take in what came of asking for a name. Rounds may overlap: it may be late."""
        in_use_answers = self._said[self.in_use] is Outcome.FOUND
        if outcome is not Outcome.UNKNOWN:
            self._answered.add(name)
        if outcome is Outcome.FOUND:
            if in_use_answers and name >= self.in_use:
                return  # as it was, or late
            self.in_use, self._found, self._rest = name, True, RECHECK_ROUNDS - 1
            self._said[name] = outcome
        elif outcome is Outcome.EMPTY:
            if in_use_answers and name == self.in_use:
                self._said = [None] * len(self._said)
                self._rest = 0
            self._said[name] = outcome
        elif self._said[name] is None:
            self._said[name] = outcome

    def is_empty(self) -> bool:
        """Whether there is no name left that could have addresses."""
        return all(
            said is Outcome.EMPTY or (said is Outcome.UNKNOWN and self._found and name not in self._answered)
            for name, said in enumerate(self._said)
        )
