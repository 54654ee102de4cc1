"""Caches of values made of bytes that come again and again. No I/O.

``Memo`` is for whole heads, ``ValueCache`` and ``cached`` for values of one field or of one address. Any bytes of a
client may become a key. So each has a bound in bytes: a number of entries, and none with a long key.

A client that keeps its connection sends the same request head many times over. So does a member with the heads of its
responses, at least within the second of their ``Date``. Looking such a head up costs a tenth of parsing, checking and
rewriting it. The outcome cannot differ: it depends on these bytes and on nothing else that changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Heads that are kept, and the longest of them in bytes. Longer ones rarely come twice.
ENTRIES = 512
HEAD_MAX = 2048
# Keys that have come once and are distinguished from new ones.
_SEEN = 1024
# Bytes of the longest key of ``ValueCache``: fields and addresses that come again are shorter.
KEY_MAX = 256


class ValueCache(dict[Key, Value]):
    """Values by key: ``cache[key]`` makes a missing one, and keeps it if the key is short.

    With ``entries`` of them it is cleared, as ``Memo`` is. ``size``: returns the bytes of a key.
    """

    def __init__(self, make: Callable[[Key], Value], entries: int, size: Callable[[Any], int] = len) -> None:
        self._make = make
        self._entries = entries
        self._size = size

    def __missing__(self, key: Key) -> Value:
        value = self._make(key)
        if self._size(key) <= KEY_MAX:
            if len(self) >= self._entries:
                self.clear()
            self[key] = value
        return value


def cached(
    entries: int, size: Callable[[Any], int] = len
) -> Callable[[Callable[[Key], Value]], Callable[[Key], Value]]:
    """Have a function of one argument keep its values; see ``ValueCache``. A value that is there costs no call."""
    return lambda make: ValueCache(make, entries, size).__getitem__


class Memo(Generic[Key, Value]):
    """Values by key. With ENTRIES of them it is cleared: frequent ones are soon back.

    ``get``: the value of a key, or None.
    """

    def __init__(self) -> None:
        self._values: dict[Key, Value] = {}
        self.get = self._values.get
        self._seen = array("q", bytes(8 * _SEEN))

    def __len__(self) -> int:
        return len(self._values)

    def seen_before(self, key: Key) -> bool:
        """Whether a key has come before, and lately. Keeping one that comes only once costs more than it saves."""
        hashed = hash(key)
        place = hashed % _SEEN
        if self._seen[place] == hashed:
            return True
        self._seen[place] = hashed
        return False

    def put(self, key: Key, value: Value) -> None:
        """Keep a value."""
        if len(self._values) >= ENTRIES:
            self._values.clear()  # (The search for the oldest entry of a dictionary takes time that grows with it.)
        self._values[key] = value
