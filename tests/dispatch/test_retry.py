from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.dispatch.retry import (
    BUDGET_FLOOR,
    BUDGET_SECONDS,
    BUDGET_SHARE,
    IDEMPOTENT,
    Budget,
    decide,
    may_repeat_answered,
)
from balancer.errors import ConnectFailed, ConnectionDied, ProtocolViolation, ResponseTimeout, UpstreamError

REFUSED = ConnectFailed("refused")
UNSENT = ConnectionDied("closed while idle", sent=False)
DIED = ConnectionDied("closed by peer", sent=True)
SILENT = ResponseTimeout("no answer in 60 s", sent=True)
GARBLED = ProtocolViolation("not HTTP", sent=True)

methods = st.sampled_from(["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "get"])


@pytest.mark.parametrize(
    ("fault", "method", "in_hand", "repeats", "told"),
    [
        (REFUSED, "GET", True, 0, None),
        (REFUSED, "POST", True, 0, None),
        (REFUSED, "POST", True, 50, None),
        (REFUSED, "POST", False, 0, (502, "member_failed")),
        (UNSENT, "PATCH", True, 0, None),
        (DIED, "GET", True, 0, None),
        (DIED, "PUT", True, 0, None),
        (DIED, "GET", True, 1, None),
        (DIED, "GET", True, 2, (502, "member_failed")),
        (DIED, "PUT", False, 0, (502, "member_failed")),
        (DIED, "POST", True, 0, (502, "member_failed")),
        (DIED, "get", True, 0, (502, "member_failed")),
        (SILENT, "GET", True, 0, (504, "response_timeout")),
        (SILENT, "POST", True, 0, (504, "response_timeout")),
        (GARBLED, "GET", True, 0, None),
        (GARBLED, "GET", True, 2, (502, "bad_response")),
        (GARBLED, "POST", True, 0, (502, "bad_response")),
    ],
)
def test_failed_request_is_retried_or_answered_by_the_rules(
    fault: UpstreamError, method: str, in_hand: bool, repeats: int, told: tuple[int, str] | None
) -> None:
    refusal = decide(fault, method, in_hand, repeats, 2)
    assert (refusal and (refusal.status, refusal.token)) == told
    assert refusal is None or refusal.reason == str(fault)


@given(st.sampled_from([DIED, SILENT, GARBLED]), methods, st.booleans(), st.integers(0, 6), st.integers(0, 5))
def test_request_that_a_member_may_have_seen_is_repeated_to_the_limit_and_only_if_idempotent(
    fault: UpstreamError, method: str, in_hand: bool, repeats: int, limit: int
) -> None:
    if decide(fault, method, in_hand, repeats, limit) is None:
        assert method in IDEMPOTENT and in_hand and repeats < limit


@given(methods, st.booleans(), st.booleans(), st.integers(0, 6), st.integers(0, 5))
def test_request_with_an_answer_is_repeated_to_the_limit_and_only_if_idempotent_or_with_a_key(
    method: str, has_key: bool, in_hand: bool, repeats: int, limit: int
) -> None:
    expected = in_hand and repeats < limit and (has_key or method in IDEMPOTENT)
    assert may_repeat_answered(method, has_key, in_hand, repeats, limit) is expected


def test_repeat_that_the_budget_does_not_allow_is_told_the_client() -> None:
    refusal = decide(DIED, "GET", True, 0, 2, afford=lambda: False)
    assert refusal
    assert (refusal.status, refusal.token, refusal.retry_after) == (502, "member_failed", 1)
    assert str(refusal) == "closed by peer; too many repeats already"


@pytest.mark.parametrize(("fault", "method"), [(REFUSED, "POST"), (DIED, "POST"), (SILENT, "GET"), (UNSENT, "GET")])
def test_only_a_repeat_costs_the_budget(fault: UpstreamError, method: str) -> None:
    def afford() -> bool:
        raise AssertionError("asked")

    decide(fault, method, True, 0, 2, afford)


def spent(budget: Budget, now: float) -> int:
    count = 0
    while budget.spend(now):
        count += 1
    return count


def test_budget_is_a_fifth_of_the_requests_and_a_floor() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.count_request(100.5)
    assert spent(budget, 100.9) == BUDGET_FLOOR + 200
    assert not budget.spend(109.9)


def test_budget_that_is_asked_for_room_is_not_spent() -> None:
    budget = Budget()
    assert all(budget.has_room(100.0) for _ in range(2 * BUDGET_FLOOR))
    assert spent(budget, 100.0) == BUDGET_FLOOR
    assert not budget.has_room(100.0)


def test_retry_budget_ignores_what_is_long_ago() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.count_request(100.0)
    assert spent(budget, 105.0) == BUDGET_FLOOR + 200
    assert spent(budget, 110.0) == 0, "the requests are forgotten, the repeats are not"
    assert spent(budget, 115.0) == BUDGET_FLOOR
    assert spent(budget, 10_000.0) == BUDGET_FLOOR


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 300), st.integers(0, 200)), max_size=40))
def test_repeats_never_exceed_the_budget(steps: list[tuple[float, int, int]]) -> None:
    budget, now = Budget(), 50.0
    requests: list[float] = []
    repeats: list[float] = []
    for passed, come, wanted in steps:
        now += passed
        for _ in range(come):
            budget.count_request(now)
            requests.append(now)
        allowed = sum(budget.spend(now) for _ in range(wanted))
        repeats += [now] * allowed
        if allowed:
            window = [it for it in repeats if int(it) > int(now) - BUDGET_SECONDS]
            recent = sum(int(it) > int(now) - BUDGET_SECONDS for it in requests)
            assert len(window) < BUDGET_FLOOR + BUDGET_SHARE * recent + 1
