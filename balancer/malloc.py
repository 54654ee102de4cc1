"""How glibc keeps memory: what pieces of bodies use is kept for the next ones, and returned when clients have left."""

from __future__ import annotations

import ctypes
from typing import Any

_malloc_trim: Any
_mallopt: Any

try:
    _malloc_trim, _mallopt = ctypes.CDLL(None).malloc_trim, ctypes.CDLL(None).mallopt
except (AttributeError, OSError):  # not glibc
    _malloc_trim = _mallopt = None

# Parameters of mallopt(3), and their values in bytes. A read of an upload has 250 KiB: by default the end of the heap
# may come and go with each, by chance of what lies there, and the kernel has to clear it anew.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT, MAPPED = 4 * 2**20, 2**20


def keep() -> None:
    """Have up to KEPT bytes of freed memory kept at the end of the heap, and pieces below MAPPED in the heap."""
    if _mallopt:
        _mallopt(_M_TRIM_THRESHOLD, KEPT)
        _mallopt(_M_MMAP_THRESHOLD, MAPPED)


def trim() -> None:
    """Return freed memory: after slow clients of large bodies glibc by itself keeps most of it. Takes about 1 ms."""
    if _malloc_trim:
        _malloc_trim(0)
