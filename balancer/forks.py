"""What a process must not share with those forked from it: random state, ids, an event loop that does not go on there.

Programs make their objects first and fork then: ``gunicorn --preload``, multiprocessing. An object registers what
makes it anew, which runs in the child before anything else does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

# What belongs to the process before this one: an event loop that is finalized takes its sockets from the selector,
# which is that process's own as well.
_abandoned: list[object] = []

_renewals: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()


def renew_in_child(owner: T, renew: Callable[[T], object]) -> None:
    """Have ``renew(owner)`` called in each process that is forked from now on, for as long as the owner lives."""
    _renewals[owner] = renew


def abandon(*things: object) -> None:
    """Keep what the process before this one still uses, so that nothing here closes or finalizes it."""
    _abandoned.append(things)


class OwnRandom(Random):
    """Random choices of this process: seeded anew in each process that is forked."""

    def __init__(self) -> None:
        super().__init__()
        renew_in_child(self, OwnRandom.seed)


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


os.register_at_fork(after_in_child=_renew_all)
