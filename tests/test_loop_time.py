"""Time in which the loop runs, on a virtual clock: a callback that moves it on stands for a loop that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from balancer.loop_time import BEAT_SECONDS, GRACE_SECONDS, PATIENCE, Limit, loop_time
from tests.support.virtual import VirtualLoop


class StandingLoop(VirtualLoop):
    """A loop that can stand still."""

    def stand_still(self, seconds: float) -> None:
        self._leaping.now += seconds


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        loop = StandingLoop()
        try:
            loop.run_until_complete(coroutine)
        finally:
            loop.close()

    return run


Run = Callable[[Coroutine[Any, Any, None]], None]


def here() -> StandingLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StandingLoop)
    return loop


async def fired_at(delay: float, pause_at: float, pause: float) -> float:
    """When a timer fires, in real time, of a loop that stands still in between."""
    fired: asyncio.Future[float] = here().create_future()
    loop_time().call_later(delay, lambda: fired.set_result(here().time()))
    here().call_later(pause_at, here().stand_still, pause)
    return await fired


@pytest.mark.parametrize("delay", [0.0, 0.2, 3.0])
def test_timer_fires_after_its_delay_where_the_loop_runs(delay: float, run: Run) -> None:
    async def check() -> None:
        assert await fired_at(delay, pause_at=100.0, pause=1.0) == pytest.approx(delay, abs=0.01)

    run(check())


@pytest.mark.parametrize("pause_at", [0.1, 4.9, 9.95])
def test_time_in_which_the_loop_stood_still_does_not_count(pause_at: float, run: Run) -> None:
    async def check() -> None:
        at = await fired_at(10.0, pause_at, pause=75.0)
        assert 10.0 + 75.0 - BEAT_SECONDS <= at <= 10.0 + 75.0 + 2 * GRACE_SECONDS

    run(check())


def test_several_pauses_add_up(run: Run) -> None:
    async def check() -> None:
        for at in (1.0, 20.0, 40.0):
            here().call_later(at, here().stand_still, 15.0)
        fired: asyncio.Future[float] = here().create_future()
        loop_time().call_later(10.0, lambda: fired.set_result(here().time()))
        # Of the later two, one comes before the timer is due in real time and one after it.
        assert 10.0 + 30.0 - 2 * BEAT_SECONDS <= await fired <= 10.0 + 45.0 + 2 * GRACE_SECONDS
        assert loop_time().lost == pytest.approx(here().time() - 10.0, abs=1.5)

    run(check())


def test_timer_that_was_due_in_the_pause_lets_the_loop_read_first(run: Run) -> None:
    async def check() -> None:
        read: list[float] = []
        fired: asyncio.Future[None] = here().create_future()
        loop_time().call_later(0.1, fired.set_result, None)
        here().stand_still(75.0)
        # What has come is read in the next turns of the loop.
        here().call_soon(here().call_soon, here().call_soon, read.append, 1.0)
        await fired
        assert read

    run(check())


def test_loop_that_is_always_late_has_its_timers_fire_all_the_same(run: Run) -> None:
    async def check() -> None:
        def drag() -> None:
            here().stand_still(2.0)
            here().call_later(0.01, drag)

        drag()
        assert await fired_at(1.0, pause_at=0.0, pause=0.0) < 60.0

    run(check())


def test_cancelled_timer_does_not_fire_and_leaves_nothing(run: Run) -> None:
    async def check() -> None:
        timer = loop_time().call_later(1.0, pytest.fail)
        timer.cancel()
        timer.cancel()
        await asyncio.sleep(2 * BEAT_SECONDS + 1.0)
        assert here()._scheduled == []  # type: ignore[attr-defined]

    run(check())


def test_limit_ends_what_takes_too_long_and_not_what_was_paused(run: Run) -> None:
    async def check() -> None:
        with pytest.raises(TimeoutError):
            async with Limit(1.0):
                await asyncio.sleep(3.0)
        assert here().time() == pytest.approx(1.0, abs=0.01)
        async with Limit(1.0):
            here().call_later(0.1, here().stand_still, 75.0)
            await asyncio.sleep(0.8)

    run(check())


async def patiently(delay: float, turn: float) -> float:
    """When a patient timer fires, in real time, of a loop whose turns take so long."""
    fired: asyncio.Future[float] = here().create_future()

    def drag() -> None:
        here().stand_still(turn)
        if not fired.done():
            here().call_soon(drag)

    loop_time().call_patiently(delay, lambda: fired.set_result(here().time()))
    if turn:
        drag()
    return await fired


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 1.0, 30.0])
def test_patient_timer_fires_after_its_delay_in_a_loop_that_is_in_time(delay: float, run: Run) -> None:
    async def check() -> None:
        assert await patiently(delay, turn=0.0) == pytest.approx(delay, abs=0.02)

    run(check())


@pytest.mark.parametrize(("turn", "at"), [(0.05, 1.0), (0.2, 2.0), (0.24, 2.4)])
def test_patient_timer_counts_a_long_turn_as_a_tenth_of_a_second(turn: float, at: float, run: Run) -> None:
    async def check() -> None:
        # This loop begins a timer behind the drag of a turn, so each step may take two of them.
        assert at - 0.01 <= await patiently(1.0, turn) <= 2 * at + turn

    run(check())


def test_patient_timer_has_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.loop_time.STEP_SECONDS", 0.01)

    async def check() -> None:
        assert await patiently(1.0, turn=0.2) == pytest.approx(PATIENCE, abs=0.5)

    run(check())


def test_patient_timer_that_is_cancelled_does_not_fire(run: Run) -> None:
    async def check() -> None:
        timer = loop_time().call_patiently(1.0, pytest.fail)
        await asyncio.sleep(0.5)
        timer.cancel()
        timer.cancel()
        await asyncio.sleep(2.0)

    run(check())


def test_limit_that_is_patient_ends_all_the_same(run: Run) -> None:
    async def check() -> None:
        with pytest.raises(TimeoutError):
            async with Limit(1.0, patient=True):
                await asyncio.sleep(3.0)
        assert here().time() == pytest.approx(1.0, abs=0.02)

    run(check())


def test_limit_can_be_set_later_and_renewed(run: Run) -> None:
    async def check() -> None:
        limit = Limit(None)
        with pytest.raises(TimeoutError):
            async with limit:
                await asyncio.sleep(5.0)
                assert not limit.is_set
                limit.renew(1.0)
                await asyncio.sleep(0.9)
                limit.renew(1.0)
                await asyncio.sleep(3.0)
        assert limit.expired()
        assert here().time() == pytest.approx(6.9, abs=0.01)

    run(check())


def test_each_loop_has_a_clock_and_closed_ones_are_forgotten(run: Run) -> None:
    from balancer import loop_time as module

    async def check() -> None:
        assert loop_time() is loop_time()
        assert [it for it in module._clocks if it.is_closed()] == []

    run(check())
    run(check())
