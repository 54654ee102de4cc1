"""What was made of bytes that come again and again. No I/O.

``Memo`` is for whole heads, ``Known`` and ``remembering`` for what is made of one field or of one address. Whatever a
client sends may become a key. So each has a bound in bytes: so many entries, and none of a key that is long.

A client that keeps its connection sends the same request head many times over, and so does a member with the
heads of its responses, at least within the second of their ``Date``. To look such a head up costs a tenth of parsing,
checking and rewriting it, and the outcome cannot differ: it depends on these bytes and on nothing else that changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Heads that are remembered, and the longest of them in bytes. Longer ones are rarely the same twice.
ENTRIES = 512
HEAD_MAX = 2048
# How many keys that came once are told from those that come for the first time.
_SEEN = 1024
# Bytes of the longest key of ``Known``: fields and addresses that come again are shorter.
KEY_MAX = 256


class Known(dict[Key, Value]):
    """Values by key: ``known[key]`` makes what is missing, and remembers it if the key is short.

    With ``entries`` of them it begins anew, as ``Memo`` does. ``size``: gives the bytes of a key.
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


def remembering(
    entries: int, size: Callable[[Any], int] = len
) -> Callable[[Callable[[Key], Value]], Callable[[Key], Value]]:
    """Have a function of one argument remember its values; see ``Known``. A value that is there costs no call."""
    return lambda make: Known(make, entries, size).__getitem__


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

    def seen_before(self, key: Key) -> bool:
        """Whether a key has come before, and lately. To keep what comes only once would cost more than it is worth."""
        mark = hash(key)
        place = mark % _SEEN
        if self._seen[place] == mark:
            return True
        self._seen[place] = mark
        return False

    def put(self, key: Key, value: Value) -> None:
        """Remember a value."""
        if len(self._values) >= ENTRIES:
            self._values.clear()  # (To look for the oldest entry of a dictionary takes time that grows with it.)
        self._values[key] = value
