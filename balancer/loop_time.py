"""Time in which an event loop runs: the clock of all deadlines.

A process may stand still for a minute, as in ``docker compose pause``. When it goes on, every deadline would be over,
and uvloop calls timers before it reads what has come meanwhile. So deadlines count the time in which the loop ran.

Rules:
* A timer that fires late by more than LATE_SECONDS shows that the loop stood still. That time is left out for all.
* While timers are set, one of them fires every BEAT_SECONDS, which bounds the error.
* After such a gap, timers wait for GRACE_SECONDS, in which the loop reads what has come.
* A loop may be late in every turn, and never so late: each takes 0.3 s, and a connection takes five of them. Where a
  time-out says that another machine is down, a patient timer counts STEP_SECONDS of a turn at most. It ends all the
  same after PATIENCE times its delay.

What has to do with other machines stays in real time, such as the age of an idle connection to a member. So do figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

BEAT_SECONDS = 0.5
LATE_SECONDS = 0.5
GRACE_SECONDS = 0.05
STEP_SECONDS = 0.1
PATIENCE = 5.0
# Loops round the time of a timer to milliseconds.
_ROUNDING = 0.002

_clocks: dict[asyncio.AbstractEventLoop, LoopTime] = {}


def loop_time() -> LoopTime:
    """Return the clock of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _clocks.get(loop)
    if found is None:
        for past in [known for known in _clocks if known.is_closed()]:
            del _clocks[past]
        found = _clocks[loop] = LoopTime(loop)
    return found


class LoopTime:
    """The clock of one event loop. ``lost``: seconds in which the loop stood still, as far as that has been noticed."""

    __slots__ = ("_beat", "_loop", "_noticed_at", "_timers", "lost")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._noticed_at = 0.0
        # Timers that are set, and the one that fires while there are others.
        self._timers = 0
        self._beat: Timer | None = None
        self.lost = 0.0

    def time(self) -> float:
        """Return the seconds in which the loop has run, from any moment on."""
        return self._loop.time() - self.lost

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call back once the loop has run for ``delay`` seconds."""
        self._timers += 1
        if self._beat is None:
            self._beat = Timer(self, self._loop, BEAT_SECONDS, self._on_beat, ())
        return Timer(self, self._loop, delay, callback, args)

    def call_patiently(self, delay: float, callback: Callable[..., object], *args: Any) -> PatientTimer:
        """Call back once the loop has run for ``delay`` seconds in short turns, or for PATIENCE times that."""
        return PatientTimer(self, delay, callback, args)

    def ended(self) -> None:
        """Count a timer off that has fired or was cancelled."""
        self._timers -= 1

    def notice(self, late: float) -> None:
        """Note that a timer has fired ``late`` seconds after its time."""
        if late > LATE_SECONDS:
            self.lost += late
            self._noticed_at = self._loop.time()

    def grace_left(self) -> float:
        """Return the seconds that timers still wait after a gap."""
        return self._noticed_at + GRACE_SECONDS - self._loop.time() if self.lost else 0.0

    def _on_beat(self) -> None:
        self._timers += 1  # ``ended`` follows for this one, too.
        self._beat = Timer(self, self._loop, BEAT_SECONDS, self._on_beat, ()) if self._timers > 0 else None


class Timer:
    """A call that is due once the loop has run for some time. ``due``: a reading of ``LoopTime``."""

    __slots__ = ("_args", "_callback", "_clock", "_handle", "_loop", "_yielded", "due")

    def __init__(
        self,
        clock: LoopTime,
        loop: asyncio.AbstractEventLoop,
        delay: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._callback = callback
        self._args = args
        self._yielded = False
        self.due = clock.time() + delay
        self._handle: asyncio.TimerHandle | None = loop.call_later(delay, self._fire)

    def cancel(self) -> None:
        """Do not call back, unless that has been done."""
        if self._handle:
            self._handle.cancel()
            self._handle = None
            self._clock.ended()

    def _fire(self) -> None:
        clock = self._clock
        clock.notice(clock.time() - self.due)
        left = self.due - clock.time()
        if left <= _ROUNDING and not self._yielded and (grace := clock.grace_left()) > 0:
            # Once only: in a loop that is always late, a timer has to fire all the same.
            self._yielded, left = True, grace + _ROUNDING
        if left > _ROUNDING:
            self._handle = self._loop.call_later(left, self._fire)
            return
        self._handle = None
        clock.ended()
        self._callback(*self._args)


class PatientTimer:
    """A call that is due once the loop has had time enough for others to answer; see ``LoopTime.call_patiently``."""

    __slots__ = ("_args", "_callback", "_clock", "_ends", "_left", "_timer")

    def __init__(self, clock: LoopTime, delay: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._clock = clock
        self._callback = callback
        self._args = args
        self._left = delay
        self._ends = clock.time() + PATIENCE * delay
        self._timer = self._next_step()

    def _next_step(self) -> Timer:
        step = min(self._left, STEP_SECONDS)
        self._left -= step
        return self._clock.call_later(step, self._on_step)

    def _on_step(self) -> None:
        if self._left > _ROUNDING and self._clock.time() < self._ends:
            self._timer = self._next_step()
        else:
            self._callback(*self._args)

    def cancel(self) -> None:
        """Do not call back, unless that has been done."""
        self._timer.cancel()


class Limit:
    """A limit of time on what is awaited within, as ``asyncio.timeout`` is one. It raises TimeoutError.

    ``seconds``: from the beginning on, or None for no limit until ``renew``. ``patient``: see ``call_patiently``.
    """

    def __init__(self, seconds: float | None, patient: bool = False) -> None:
        self._seconds = seconds
        self._patient = patient
        self._scope = asyncio.timeout(None)
        self._clock = loop_time()
        self._timer: Timer | PatientTimer | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a limit at present."""
        return self._timer is not None

    def renew(self, seconds: float) -> None:
        """Let it end ``seconds`` from now on."""
        self._cancel()
        call_later = self._clock.call_patiently if self._patient else self._clock.call_later
        self._timer = call_later(max(0.0, seconds), self._expire)

    async def __aenter__(self) -> Limit:
        await self._scope.__aenter__()
        if self._seconds is not None:
            self.renew(self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        await self._scope.__aexit__(kind, error, trace)

    def expired(self) -> bool:
        """Whether the time is over."""
        return self._scope.expired()

    def _expire(self) -> None:
        self._scope.reschedule(asyncio.get_running_loop().time())

    def _cancel(self) -> None:
        if self._timer:
            self._timer.cancel()
