"""Returns unused memory to the system."""

from __future__ import annotations

import ctypes
from typing import Any

_malloc_trim: Any

try:
    _malloc_trim = ctypes.CDLL(None).malloc_trim
except (AttributeError, OSError):  # not glibc
    _malloc_trim = None


def trim() -> None:
    """Return freed memory: after slow clients of large bodies glibc by itself keeps most of it. Takes about 1 ms."""
    if _malloc_trim:
        _malloc_trim(0)
