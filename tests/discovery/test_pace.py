"""How often DNS is asked."""

from __future__ import annotations

import pytest

from balancer.discovery.pace import IDLE_INTERVAL, IDLE_SECONDS, QUICK_SECONDS, URGENT_INTERVAL, Pace


def queries(pace: Pace, begin: float, end: float, available: bool = False, waiting: bool = False) -> int:
    """How many rounds there are in a time in which nothing else changes and DNS names no address."""
    count = 0
    while begin < end:
        pace.record_answer(False, begin)
        begin += pace.delay(available, waiting, begin)
        count += 1
    return count


def test_alias_without_members_is_asked_for_quickly_then_at_the_interval_then_slowly() -> None:
    pace = Pace(1.0)
    pace.speed_up(0.0)
    assert queries(pace, 0.0, QUICK_SECONDS) == pytest.approx(QUICK_SECONDS / URGENT_INTERVAL, abs=2)
    assert queries(pace, QUICK_SECONDS + 1, IDLE_SECONDS) == pytest.approx(IDLE_SECONDS - QUICK_SECONDS - 1, abs=2)
    assert queries(pace, IDLE_SECONDS + 1, IDLE_SECONDS + 61) == 60 / IDLE_INTERVAL


@pytest.mark.parametrize("waiting", [False, True], ids=["one that was refused", "one that waits"])
def test_request_makes_it_quick_again(waiting: bool) -> None:
    pace = Pace(1.0)
    queries(pace, 0.0, 200.0)
    assert pace.delay(False, False, 200.0) == IDLE_INTERVAL
    pace.speed_up(200.0)
    assert pace.delay(False, waiting, 200.0 + QUICK_SECONDS - 0.1) == URGENT_INTERVAL
    assert pace.delay(False, waiting, 200.0 + QUICK_SECONDS) == (URGENT_INTERVAL if waiting else IDLE_INTERVAL)


def test_members_that_are_named_and_not_up_are_asked_for_at_the_interval() -> None:
    pace = Pace(1.0)
    for second in range(200):
        pace.record_answer(True, float(second))
    assert pace.delay(False, False, 200.0) == 1.0


def test_interval_with_members_is_the_setting() -> None:
    pace = Pace(30.0)
    pace.speed_up(0.0)
    assert pace.delay(True, True, 0.0) == 30.0
    assert pace.delay(False, False, 1000.0) == 30.0  # never sooner than it was asked for
