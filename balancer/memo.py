"""What was made of bytes that come again and again. No I/O.

A client that keeps its connection sends the same request head many times over, and so does a member with the
heads of its responses, at least within the second of their ``Date``. To look such a head up costs a tenth of parsing,
checking and rewriting it, and the outcome cannot differ: it depends on these bytes and on nothing else that changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Heads that are remembered, and the longest of them in bytes. Longer ones are rarely the same twice.
ENTRIES = 512
HEAD_MAX = 2048
# How many keys that came once are told from those that come for the first time.
_SEEN = 1024


class Memo(Generic[Key, Value]):
    """Values by key. With ENTRIES of them it begins anew: what comes often is soon back.

    ``get``: the value of a key, or None.
    """

    def __init__(self) -> None:
        self._values: dict[Key, Value] = {}
        self.get = self._values.get
        self._seen = array("q", bytes(8 * _SEEN))

    def __len__(self) -> int:
        return len(self._values)

    def wants(self, key: Key) -> bool:
        """Whether a key has come before, and lately. To keep what comes only once would cost more than it is worth."""
        mark = hash(key)
        place = mark % _SEEN
        if self._seen[place] == mark:
            return True
        self._seen[place] = mark
        return False

    def keep(self, key: Key, value: Value) -> None:
        """Remember a value."""
        if len(self._values) >= ENTRIES:
            self._values.clear()  # (To look for the oldest entry of a dictionary takes time that grows with it.)
        self._values[key] = value
