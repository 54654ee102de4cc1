from __future__ import annotations

import pytest

from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.errors import Refusal
from balancer.http.request import Request

ANY = Request("GET", b"/", [], "192.0.2.1")


def waiting(hold: PendingQueue, count: int, in_hand: int = 0) -> list[QueuedRequest]:
    queued_requests = [QueuedRequest(ANY, in_hand=in_hand) for _ in range(count)]
    for queued in queued_requests:
        hold.push(queued, 10.0, moving=False)
    return queued_requests


def refusal(hold: PendingQueue, queued: QueuedRequest, patience: float = 10.0, moving: bool = False) -> Refusal:
    with pytest.raises(Refusal) as caught:
        hold.push(queued, patience, moving)
    return caught.value


def test_request_that_has_waited_longest_is_first() -> None:
    hold = PendingQueue(10, 0)
    a, b, c = waiting(hold, 3)
    assert hold.head() is a
    hold.discard(b)
    hold.discard(a)
    assert hold.head() is c
    hold.discard(c)
    assert hold.head() is None


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_full_queue_refuses_and_says_when_to_come_back(limit: int) -> None:
    hold = PendingQueue(limit, 0)
    waiting(hold, limit)
    told = refusal(hold, QueuedRequest(ANY))
    assert (told.status, told.token, told.retry_after) == (503, "queue_full", 1)
    assert str(told) == f"{'1 request waits' if limit == 1 else f'{limit} requests wait'} for a member already"
    assert len(hold) == limit


def test_bytes_in_hand_are_bounded() -> None:
    hold = PendingQueue(10, 100)
    first, _ = waiting(hold, 2, in_hand=50)
    told = refusal(hold, QueuedRequest(ANY, in_hand=1))
    assert (told.status, told.token, told.retry_after) == (503, "queue_full", 1)
    assert str(told) == "the requests that wait hold 100 bytes already"
    waiting(hold, 1)
    hold.discard(first)
    waiting(hold, 1, in_hand=50)


def test_place_is_free_again_once_its_request_has_left() -> None:
    hold = PendingQueue(1, 0)
    (queued,) = waiting(hold, 1)
    hold.discard(queued)
    hold.discard(queued)
    assert len(hold) == 0
    waiting(hold, 1)
    assert len(hold) == 1


def test_request_without_a_turn_in_time_is_refused_at_once() -> None:
    hold = PendingQueue(100, 0)
    queued_requests = waiting(hold, 20)
    for queued in queued_requests[:11]:
        hold.discard(queued)
    hold.record_wait(queued_requests[10], waited=5.0)  # half a second for each of the ten in front
    told = refusal(hold, QueuedRequest(ANY), patience=4.0, moving=True)
    assert (told.status, told.token, told.retry_after) == (503, "overloaded", 1)
    assert str(told) == "every member is busy, and the wait would be 4.5 s"
    hold.push(QueuedRequest(ANY), 5.0, moving=True)


def test_pace_of_before_says_nothing_while_no_member_is_available() -> None:
    hold = PendingQueue(100, 0)
    queued_requests = waiting(hold, 20)
    for queued in queued_requests[:11]:
        hold.discard(queued)
    hold.record_wait(queued_requests[10], waited=5.0)
    hold.push(QueuedRequest(ANY), 1.0, moving=False)


def test_pace_is_forgotten_with_the_queue() -> None:
    hold = PendingQueue(100, 0)
    queued_requests = waiting(hold, 3)
    hold.discard(queued_requests[0])
    hold.discard(queued_requests[1])
    hold.record_wait(queued_requests[1], waited=100.0)
    refusal(hold, QueuedRequest(ANY), patience=1.0, moving=True)
    hold.discard(queued_requests[2])
    waiting(hold, 3)
    hold.push(QueuedRequest(ANY), 1.0, moving=True)
