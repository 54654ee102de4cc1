from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.http.retry_after import retry_after

# Mon, 23 Nov 2026 08:00:00 GMT.
NOW = 1795420800.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0),
        (b"1", 1),
        (b"120", 120),
        (b"Mon, 23 Nov 2026 08:00:01 GMT", 1),
        (b"Mon, 23 Nov 2026 07:59:59 GMT", 0),
        (b"Monday, 23-Nov-26 08:00:02 GMT", 2),
        (b"Mon Nov 23 08:00:03 2026", 3),
        (b"", inf),
        (b"-1", inf),
        (b"1.5", inf),
        (b"+1", inf),
        (b"1, 2", inf),
        (b"soon", inf),
        (b"9" * 5000, inf),
        (b"\xb2", inf),
        (b"Mon, 99 Nov 2026 08:00:01 GMT", inf),
    ],
)
def test_retry_after_is_read_in_either_form(value: bytes, seconds: float) -> None:
    assert retry_after([(b"server", b"x"), (b"retry-after", value)], NOW) == seconds


def test_response_without_a_retry_after_says_nothing_of_a_time() -> None:
    assert retry_after([(b"server", b"x")], NOW) == inf


@given(st.binary(max_size=60) | st.from_regex(rb"[A-Z][a-z]{2}, [0-9 :+-]{0,40}(GMT|[+-][0-9]{1,8})?", fullmatch=True))
def test_any_value_is_a_time_or_none(value: bytes) -> None:
    assert retry_after([(b"retry-after", value)], NOW) >= 0
