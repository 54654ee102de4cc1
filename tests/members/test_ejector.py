"""Members that are worse than the others are ejected, tried, and restored; where all are alike, none is."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.members.ejection import EjectionKind
from balancer.members.ejector import FIRST_SECONDS, JITTER, MAX_SECONDS, TRIAL_SECONDS
from balancer.members.health import HealthEvent
from balancer.members.outcome import Outcome
from tests.support.ejection import ERROR, GOOD, JudgedPool, only

FAILURES = [
    ERROR,
    Outcome(503, "", 0.005, 0.005),
    Outcome(0, "not_http", 0.005, 0.005),
    Outcome(0, "died", 0.005, 0.005),
    Outcome(200, "truncated", 0.005, 0.1),
    Outcome(0, "timeout", 60.0, 60.0),
]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("members", [2, 3, 50])
def test_member_that_fails_while_others_do_not_is_ejected_after_seven_failures(failure: Outcome, members: int) -> None:
    pool = JudgedPool(members)
    bad = pool.members[0]
    pool.serve(60, 100, only(bad, GOOD))
    served = pool.serve(10, 100, only(bad, failure))
    assert 6 <= served[bad] <= 8
    assert bad.ejection and bad.ejection.kind is EjectionKind.FAILURES
    assert f"{served[bad]} of {served[bad]}, others 0 of " in bad.ejection.reason
    assert [member for _, member, _ in pool.changes] == [bad]


@pytest.mark.parametrize("members", [1, 2, 3, 50])
def test_no_member_is_ejected_while_all_fail_alike(members: int) -> None:
    pool = JudgedPool(members)
    pool.serve(60, 100, lambda member: GOOD)
    pool.serve(60, 100, lambda member: ERROR)
    pool.serve(60, 100, lambda member: GOOD)
    assert pool.changes == []


def test_no_member_is_ejected_while_all_fail_by_chance_at_a_rate_that_changes() -> None:
    pool, rng = JudgedPool(10), Random(2)
    for _ in range(40):
        rate = rng.choice([0.01, 0.1, 0.3, 0.5, 0.9])
        pool.serve(10, 200, lambda member: ERROR if rng.random() < rate else GOOD)  # noqa: B023
    assert pool.changes == []


def test_trial_of_a_member_as_quick_as_the_others_ends_well_whatever_they_take() -> None:
    for latency in (0.001, 0.0305, 0.031, 0.3):
        pool = JudgedPool(3)
        pool.ejector.eject(pool.members[0], EjectionKind.MANUAL, "by hand", 10)
        pool.serve(20, 100, lambda member: Outcome(200, "", latency))  # noqa: B023
        assert pool.stages(pool.members[0]) == ["ejected", "trial", "restored"]


@pytest.mark.parametrize("outcome", [Outcome(501, "", 0.005), Outcome(505, "", 0.005), Outcome(0, "refused", 0.005)])
def test_outcome_that_is_no_fault_of_the_member_counts_as_none(outcome: Outcome) -> None:
    pool = JudgedPool(3)
    pool.serve(30, 100, only(pool.members[0], outcome))
    assert pool.changes == []


def test_member_that_fails_a_third_of_its_requests_is_ejected() -> None:
    pool, rng = JudgedPool(3), Random(1)
    bad = pool.members[0]
    pool.serve(60, 100, lambda member: GOOD)
    pool.serve(20, 100, lambda member: ERROR if member is bad and rng.random() < 1 / 3 else GOOD)
    assert "ejected" in pool.stages(bad)
    assert {member for _, member, _ in pool.changes} == {bad}


def test_slow_member_is_ejected_within_three_seconds_and_back_soon_after_it_is_quick() -> None:
    pool = JudgedPool(3)
    bad = pool.members[0]
    pool.serve(20, 100, lambda member: GOOD)
    began = pool.now
    pool.serve(10, 100, only(bad, Outcome(200, "", 0.05, 0.05)))
    assert pool.stages(bad)[0] == "ejected" and pool.changes[0][0] - began <= 3
    assert bad.ejection and bad.ejection.kind is EjectionKind.LATENCY and "others" in bad.ejection.reason
    pool.serve(20, 100, lambda member: GOOD)
    assert pool.stages(bad)[-1] == "restored"


def test_member_that_is_slower_by_next_to_nothing_stays() -> None:
    pool = JudgedPool(3)
    quick, slower = Outcome(200, "", 0.0003, 0.0003), Outcome(200, "", 0.003, 0.003)
    pool.serve(60, 100, lambda member: slower if member is pool.members[0] else quick)
    assert pool.changes == []


def test_member_whose_requests_hang_is_ejected_before_any_of_them_times_out() -> None:
    pool = JudgedPool(3)
    bad = pool.members[0]
    pool.serve(20, 100, lambda member: GOOD)
    for _ in range(500):
        pool.wait(0.01)
        member = pool.request()
        if member is not bad:
            pool.finish(member, GOOD)
    assert bad.ejection and bad.ejection.kind is EjectionKind.LATENCY
    assert bad.in_flight < 100


def test_streams_that_stay_open_at_one_member_alone_do_not_make_it_slow() -> None:
    pool = JudgedPool(3)
    pool.members[0].in_flight = pool.members[0].requests = 100
    pool.serve(60, 100, lambda member: GOOD)
    assert pool.changes == []


def test_all_members_slow_at_once_ejects_none() -> None:
    pool, rng = JudgedPool(10), Random(1)
    for _ in range(30):
        scale = rng.choice([0.005, 0.5])
        pool.serve(3, 200, lambda member: Outcome(200, "", scale * rng.lognormvariate(0, 1)))  # noqa: B023
    assert pool.changes == []


@pytest.mark.parametrize(
    ("members", "share", "out"), [(2, 0.5, 1), (3, 0.2, 0), (10, 0.5, 4), (10, 0.2, 2), (4, 1.0, 2)]
)
def test_no_more_members_are_out_than_the_bound(members: int, share: float, out: int) -> None:
    pool = JudgedPool(members, share)
    bad = pool.members[: max(1, min(4, members // 2))]
    pool.serve(60, 100, lambda member: GOOD)
    most = 0
    for _ in range(200):
        pool.serve(0.2, 200, lambda member: ERROR if member in bad else GOOD)
        most = max(most, sum(member.ejection is not None for member in pool.members))
    assert most == out
    assert all(member in bad for _, member, _ in pool.changes)


def test_failure_on_trial_ejects_again_for_twice_as_long_up_to_the_longest() -> None:
    pool = JudgedPool(3)
    bad = pool.members[0]
    pool.serve(60, 100, lambda member: GOOD)
    pool.serve(1500, 50, only(bad, ERROR))
    times = [time for time, member, stage in pool.changes if stage == "ejected"]
    trials = [time for time, member, stage in pool.changes if stage == "trial"]
    assert "restored" not in pool.stages(bad)
    lasted = [trial - time for time, trial in zip(times, trials, strict=False)]
    for number, seconds in enumerate(lasted):
        due = min(FIRST_SECONDS * 2**number, MAX_SECONDS)
        assert due <= seconds <= due * (1 + JITTER) + 1
    assert lasted[-1] >= MAX_SECONDS
    assert bad.ejection and bad.ejection.times == len(times)
    assert bad.requests < 60 * 100 / 3 + 7 + 3 * len(times) + 10


@pytest.mark.parametrize("members", [2, 3, 50])
def test_member_that_is_good_again_gets_its_share_back(members: int) -> None:
    pool = JudgedPool(members)
    bad = pool.members[0]
    pool.serve(60, 100, lambda member: GOOD)
    assert pool.serve(FIRST_SECONDS, 100, only(bad, ERROR))[bad] <= 8
    pool.serve(FIRST_SECONDS * JITTER + 2 * TRIAL_SECONDS, 100, lambda member: GOOD)
    assert pool.stages(bad) == ["ejected", "trial", "restored"]
    assert bad.ejection is None and bad.weight == 1


def test_request_from_before_the_trial_does_not_end_it() -> None:
    pool = JudgedPool(3)
    bad = pool.members[0]
    pool.serve(60, 100, lambda member: GOOD)
    pool.serve(1, 100, only(bad, ERROR))
    pool.wait(FIRST_SECONDS * (1 + JITTER))
    assert bad.ejection and bad.ejection.on_trial
    bad.in_flight += 1
    pool.finish(bad, Outcome(0, "timeout", 30.0, 30.0))
    assert bad.ejection.on_trial


def test_ejection_leaves_with_the_member() -> None:
    pool = JudgedPool(3)
    bad = pool.members[0]
    endpoints = frozenset(member.endpoint for member in pool.members)
    pool.ejector.eject(bad, EjectionKind.MANUAL, "by hand", 30)
    pool.name(endpoints - {bad.endpoint})
    assert bad.ejection is None
    pool.wait(60)
    pool.name(endpoints)
    assert pool.stages(bad) == ["ejected"]
    assert all(member.ejection is None for member in pool.members)


def test_ejected_members_get_requests_while_no_other_is_up() -> None:
    pool = JudgedPool(2)
    bad, good = pool.members
    pool.ejector.eject(bad, EjectionKind.MANUAL, "by hand", 300)
    assert pool.membership.available == (good,)
    pool.membership.observe(good, HealthEvent.REFUSED, pool.now)
    assert pool.membership.available == (bad,)
    pool.name(frozenset({good.endpoint, bad.endpoint}))
    pool.membership.observe(good, HealthEvent.PROBE_OK, pool.now + 1)
    assert pool.membership.available == (good,)
    pool.ejector.restore(bad)
    assert set(pool.membership.available) == {bad, good}


def test_ejected_member_that_was_down_comes_back_on_trial() -> None:
    pool = JudgedPool(2)
    bad = pool.members[0]
    pool.ejector.eject(bad, EjectionKind.MANUAL, "by hand", 300)
    pool.ejector.came_up(bad)
    assert bad.ejection and bad.ejection.on_trial and bad.weight == pytest.approx(0.1)


def test_long_good_time_makes_the_next_ejection_a_first_one() -> None:
    pool = JudgedPool(3)
    bad = pool.members[0]
    for _ in range(2):
        pool.serve(60, 100, lambda member: GOOD)
        pool.serve(5, 100, only(bad, ERROR))
    assert bad.ejection and bad.ejection.times == 2
    pool.serve(700, 20, lambda member: GOOD)
    pool.serve(5, 100, only(bad, ERROR))
    assert bad.ejection and bad.ejection.times == 1


SCHEDULE = st.lists(
    st.tuples(
        st.sampled_from([1.0, 20.0, 100.0]),  # requests a second
        st.sampled_from([1.0, 5.0, 30.0]),  # seconds
        st.lists(st.sampled_from(range(4)), min_size=8, max_size=8),  # how each member answers
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(members=st.integers(1, 8), percent=st.integers(0, 100), schedule=SCHEDULE, seed=st.integers(0, 1000))
def test_no_schedule_of_outcomes_ejects_too_many_or_for_ever(
    members: int, percent: int, schedule: list[tuple[float, float, list[int]]], seed: int
) -> None:
    pool, rng = JudgedPool(members, percent / 100, seed), Random(seed)
    moods = (GOOD, ERROR, Outcome(0, "not_http", 0.1, 0.1), Outcome(200, "", 2.0, 2.0))
    served: Counter[object] = Counter()
    for rate, seconds, answers in schedule:
        of = dict(zip(pool.members, answers, strict=False))
        for _ in range(max(1, round(rate * seconds))):
            pool.wait(1 / rate)
            member = pool.request()
            served[member] += 1
            pool.finish(member, moods[of[member]] if rng.random() < 0.9 else GOOD)
            out = [other for other in pool.members if other.ejection]
            assert len(out) <= members * percent / 100
            assert len(out) < members
            for other in out:
                ejection = other.ejection
                assert ejection and ejection.until - ejection.since <= MAX_SECONDS * (1 + JITTER)
                assert ejection.on_trial or ejection.until >= pool.now - 1
    # None is left without a request: once all is well, the longest ejection and a trial later all have their shares.
    pool.wait(MAX_SECONDS * (1 + JITTER) + 1)
    before = dict(served)
    served += pool.serve(60, 20 * members, lambda member: GOOD)
    assert all(served[member] > before.get(member, 0) for member in pool.members)
    assert all(member.ejection is None for member in pool.members)
