from __future__ import annotations

import math
import random
import tracemalloc
from bisect import bisect_left
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.admin.prometheus import BUCKETS
from balancer.telemetry.latencies import BOUNDS, Classes, cumulated, percentile


def counted(durations: list[float]) -> Classes:
    classes: Classes = defaultdict(int)
    for seconds in durations:
        classes[bisect_left(BOUNDS, seconds)] += 1
    return classes


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_percentile_of_nothing_is_0(share: float) -> None:
    assert percentile({}, share) == 0.0


@given(
    st.lists(st.floats(0.00001, 9999, exclude_min=True), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
)
def test_percentile_is_right_to_5_per_cent_and_no_larger_than_the_right_one(
    durations: list[float], share: float
) -> None:
    right = sorted(durations)[max(1, math.ceil(share * len(durations))) - 1]
    found = percentile(counted(durations), share)
    assert 0.95 * right <= found <= right <= max(durations)


@pytest.mark.parametrize("seconds", [0.0001, 0.001, 0.0025, 0.05, 1.0, 10.0, 75.0])
def test_round_durations_are_shown_as_they_are(seconds: float) -> None:
    """A duration is a little longer than what made it: a member that sleeps for a second takes 1.001 s."""
    assert percentile(counted([seconds * 1.001]), 0.5) == pytest.approx(seconds, rel=0.04)


def test_percentile_beyond_the_last_class_is_its_beginning() -> None:
    assert percentile(counted([1e9]), 0.5) == BOUNDS[-1] == 10_000
    assert percentile(counted([0.000001]), 0.5) == 0.0


def test_histogram_has_what_is_up_to_each_bound() -> None:
    classes = counted([0.001, 0.0011, 0.2, 100.0])
    assert cumulated(classes, [0.001, 0.25, 50.0]) == [(0.001, 1), (0.25, 3), (50.0, 3)]
    assert cumulated({}, [0.001]) == [(0.001, 0)]


def test_buckets_of_the_prometheus_histogram_are_classes() -> None:
    assert set(BUCKETS) <= set(BOUNDS)
    assert (len(BUCKETS), BUCKETS[0], BUCKETS[-1]) == (18, 0.0001, 50.0)


def test_durations_of_a_busy_member_take_a_few_kilobytes() -> None:
    rng = random.Random(1)
    durations = [rng.lognormvariate(-5, 1.0) for _ in range(100_000)]
    tracemalloc.start()
    try:
        classes = counted(durations)
        assert tracemalloc.get_traced_memory()[0] < 16_000
    finally:
        tracemalloc.stop()
    assert len(classes) < 200
