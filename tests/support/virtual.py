"""An event loop whose clock is virtual: it never waits, it leaps to the next thing that is due."""

from __future__ import annotations

import asyncio
import selectors
from asyncio import Handle, TimerHandle
from collections.abc import Callable
from contextvars import Context
from typing import Any


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


class SteppedLoop(VirtualLoop):
    """``after_step``: called behind every callback, and so behind every step of a task."""

    after_step: Callable[[], None] = staticmethod(lambda: None)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        return super().call_soon(self._step, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return super().call_at(when, self._step, callback, *args, context=context)

    def _step(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)
        self.after_step()
