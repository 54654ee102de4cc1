from __future__ import annotations

from functools import partial

import pytest

from balancer.errors import Refusal
from balancer.hold import Hold


def test_requests_are_woken_in_order_of_arrival() -> None:
    hold, woken = Hold(10), list[str]()
    for name in "abc":
        hold.enter(partial(woken.append, name))
    hold.wake()
    assert woken == ["a", "b", "c"]


def test_a_request_that_was_woken_for_nothing_keeps_its_place() -> None:
    hold, woken = Hold(10), list[str]()
    first = hold.enter(lambda: woken.append("first"))
    hold.wake()
    hold.enter(lambda: woken.append("second"))
    hold.wake()
    hold.leave(first)
    hold.wake()
    assert woken == ["first", "first", "second", "second"]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_full_queue_refuses_and_says_when_to_come_back(limit: int) -> None:
    hold = Hold(limit)
    for _ in range(limit):
        hold.enter(lambda: None)
    with pytest.raises(Refusal, match=f"no member is available and {limit} requests wait already") as caught:
        hold.enter(lambda: None)
    assert (caught.value.status, caught.value.token, caught.value.retry_after) == (503, "hold_full", 1)
    assert len(hold) == limit


def test_a_place_is_free_again_once_its_request_has_left() -> None:
    hold = Hold(1)
    ticket = hold.enter(lambda: None)
    hold.leave(ticket)
    hold.leave(ticket)
    assert len(hold) == 0
    hold.enter(lambda: None)
    assert len(hold) == 1


def test_a_request_may_leave_while_all_are_woken() -> None:
    hold, woken = Hold(10), list[str]()

    def leave() -> None:
        woken.append("first")
        hold.leave(first)

    first = hold.enter(leave)
    hold.enter(lambda: woken.append("second"))
    hold.wake()
    assert woken == ["first", "second"]
    assert len(hold) == 1
