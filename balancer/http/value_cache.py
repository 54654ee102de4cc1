"""Caches of values made of one field, or of one address, that comes again and again. No I/O.

Any bytes of a client may become a key. So each cache has a bound in bytes: a number of entries, and none with a long
key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Bytes of the longest key of ``ValueCache``: fields and addresses that come again are shorter.
KEY_MAX = 256


class ValueCache(dict[Key, Value]):
    """Values by key: ``cache[key]`` makes a missing one, and keeps it if the key is short.

    With ``entries`` of them it is cleared: frequent ones are soon back. (The search for the oldest entry of a
    dictionary takes time that grows with it.) ``size``: returns the bytes of a key.
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
