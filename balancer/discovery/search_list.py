"""The name to query DNS for: the alias as it is, or with a domain of the system's search list behind it. No I/O.

Rules:
* The order is that of resolv.conf(5): a name with fewer dots than ``ndots`` is tried in the search list first, and as
  it is last. One with as many or more is tried the other way round, and one that ends with a dot only as it is.
* The name that had addresses is the one in use, and alone is queried: one query a round.
* Names before the one in use are queried again every RECHECK_ROUNDS. A wildcard in some domain of the search list
  may have answered while no member was there yet.
* When the one in use has no addresses any more, all are queried in the next round and then every LOOK_ROUNDS. The first
  that has some is in use. A failure (SERVFAIL, a time-out) does not count as that.
* There is no member only when every name is empty. One that has failed, and was never answered since the start, does
  not count once another has been found. In a cluster without a way out, the alias as it is fails for ever.
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
    """Return the absolute names that an alias may stand for, the preferred first. ``domains``: the search list."""
    if alias.endswith("."):
        return [alias]
    whole = f"{alias}."
    searched = [f"{whole}{domain.strip('.')}.".replace("..", ".") for domain in domains]
    order = [*searched, whole] if alias.count(".") < ndots else [whole, *searched]
    return [name for name in dict.fromkeys(order) if len(name) <= NAME_MAX] or [whole]


class SearchList:
    """The choice of names for each round, among ``count``, by their places in the order of preference."""

    def __init__(self, count: int) -> None:
        self.in_use = 0
        # Outcome of each name since the one in use had no addresses any more.
        self._outcomes: list[Outcome | None] = [None] * count
        self._answered: set[int] = set()
        self._found = False
        self._rest = 0  # rounds until the next in which others are queried as well

    def begin(self) -> list[int]:
        """Return the names to query in a new round, one after the other until one has addresses."""
        if self._rest:
            self._rest -= 1
            return [self.in_use]
        if self._outcomes[self.in_use] is Outcome.FOUND:
            self._rest = RECHECK_ROUNDS - 1
            return list(range(self.in_use + 1))
        self._rest = LOOK_ROUNDS - 1
        return list(range(len(self._outcomes)))

    def on_outcome(self, name: int, outcome: Outcome) -> None:
        """Take in the outcome of a name's query. Rounds may overlap: it may be late."""
        in_use_answers = self._outcomes[self.in_use] is Outcome.FOUND
        if outcome is not Outcome.UNKNOWN:
            self._answered.add(name)
        if outcome is Outcome.FOUND:
            if in_use_answers and name >= self.in_use:
                return  # as it was, or late
            self.in_use, self._found, self._rest = name, True, RECHECK_ROUNDS - 1
            self._outcomes[name] = outcome
        elif outcome is Outcome.EMPTY:
            if in_use_answers and name == self.in_use:
                self._outcomes = [None] * len(self._outcomes)
                self._rest = 0
            self._outcomes[name] = outcome
        elif self._outcomes[name] is None:
            self._outcomes[name] = outcome

    def is_empty(self) -> bool:
        """Whether no name is left that could have addresses."""
        return all(
            outcome is Outcome.EMPTY or (outcome is Outcome.UNKNOWN and self._found and name not in self._answered)
            for name, outcome in enumerate(self._outcomes)
        )
