"""An event loop whose clock is virtual: it never waits, it leaps to the next thing that is due."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable


class _Leaping(selectors.SelectSelector):
    """Instead of waiting for a time-out, moves the clock on by it. No socket is ever ready."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and nothing is due: a deadlock"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """``after_each``: called whenever everything that was ready has run."""

    def __init__(self, after_each: Callable[[], None] = lambda: None) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)
        self.after_each = after_each

    def time(self) -> float:
        return self._leaping.now

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        self.after_each()
