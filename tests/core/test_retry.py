from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ConnectFailed, ConnectionDied, Fault, ProtocolViolation, ResponseTimeout
from balancer.retry import IDEMPOTENT, MAX_REPEATS, decide

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
        (DIED, "GET", True, 1, (502, "member_failed")),
        (DIED, "PUT", False, 0, (502, "member_failed")),
        (DIED, "POST", True, 0, (502, "member_failed")),
        (DIED, "get", True, 0, (502, "member_failed")),
        (SILENT, "GET", True, 0, (504, "response_timeout")),
        (SILENT, "POST", True, 0, (504, "response_timeout")),
        (GARBLED, "GET", True, 0, (502, "bad_response")),
    ],
)
def test_what_becomes_of_a_failed_request(
    fault: Fault, method: str, in_hand: bool, repeats: int, told: tuple[int, str] | None
) -> None:
    refusal = decide(fault, method, in_hand, repeats)
    assert (refusal and (refusal.status, refusal.token)) == told
    assert refusal is None or refusal.reason == str(fault)


@given(st.sampled_from([DIED, SILENT, GARBLED]), methods, st.booleans(), st.integers(0, 3))
def test_a_request_that_a_member_may_have_seen_is_repeated_once_and_only_if_idempotent(
    fault: Fault, method: str, in_hand: bool, repeats: int
) -> None:
    if decide(fault, method, in_hand, repeats) is None:
        assert method in IDEMPOTENT and in_hand and repeats < MAX_REPEATS == 1


def test_a_request_is_not_repeated_once_a_byte_of_a_response_came_back() -> None:
    assert decide(ConnectionDied("reset", sent=True, received=True), "GET", True, 0) is not None
