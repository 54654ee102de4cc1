"""State machines as literal tables, checked where the environment has BALANCER_CHECK_STATES=1, as the tests do.

Elsewhere a change of phase is the assignment of an attribute and nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

CHECK_STATES: Final = os.environ.get("BALANCER_CHECK_STATES") == "1"


class IllegalTransition(Exception):
    """A change of phase that its table does not allow: a defect of the class that made it."""


class CheckedPhase:
    """A descriptor around the one that stores ``phase``; setting it raises IllegalTransition by the table.

    ``first``: the phase of a new object.
    """

    def __init__(self, stored: Any, transitions: Mapping[Any, frozenset[Any]], first: Enum) -> None:
        self._stored = stored
        self._transitions = transitions
        self._first = first

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self._stored.__get__(instance)

    def __set__(self, instance: object, after: Enum) -> None:
        before = self._stored.__get__(instance) if self._is_set(instance) else None
        if after not in ({self._first} if before is None else self._transitions[before]):
            raise IllegalTransition(f"{before} -> {after} of a {type(instance).__name__}")
        self._stored.__set__(instance, after)

    def _is_set(self, instance: object) -> bool:
        try:
            self._stored.__get__(instance)
        except AttributeError:
            return False
        return True


def check_phases(stateful: type, transitions: Mapping[Any, frozenset[Any]], first: Enum) -> None:
    """Check every change of the slot ``phase`` of a class and of its subclasses from here on."""
    setattr(stateful, "phase", CheckedPhase(vars(stateful)["phase"], transitions, first))  # noqa: B010
