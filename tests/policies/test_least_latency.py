"""The policy ``least_latency``: what latencies, failures and silence do to shares."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from balancer.members.member import Member
from balancer.policies import LeastLatency, Outcome
from tests.support.policies import ANY, members


class Pool:
    """A policy over idle members that answer at once, on a clock that the tests move."""

    def __init__(self, *weights: int) -> None:
        self.now = 1000.0
        self.members = members(*weights)
        self.policy = LeastLatency(Random(1), lambda: self.now)
        self.policy.build(self.members)

    def report(self, member: Member, first_byte: float, status: int = 200, failure: str = "") -> None:
        self.policy.finished(member, Outcome(status, failure, first_byte, first_byte))

    def choices(self, requests: int = 1000) -> Counter[Member | None]:
        return Counter(self.policy.choose(ANY) for _ in range(requests))

    def serve(
        self, seconds: float, took: dict[Member, float], status: dict[Member, int] | None = None
    ) -> Counter[Member]:
        """Have 100 requests a second, one by one, answered in the time that ``took`` has, or in 20 ms."""
        chosen: Counter[Member] = Counter()
        for _ in range(round(100 * seconds)):
            self.now += 0.01
            member = self.policy.choose(ANY)
            assert member
            chosen[member] += 1
            self.report(member, took.get(member, 0.02), (status or {}).get(member, 200))
        return chosen


def test_members_without_an_outcome_are_drawn_alike() -> None:
    pool = Pool(1, 1, 1, 1)
    assert max(pool.choices().values()) < 320


def test_first_outcome_of_a_pool_leaves_its_members_alike() -> None:
    pool = Pool(1, 1, 1, 1)
    pool.report(pool.members[0], 0.5)
    assert max(pool.choices().values()) < 320


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
def test_slow_member_is_not_chosen_and_is_asked_again_within_seconds(weights: tuple[int, ...]) -> None:
    pool = Pool(*weights)
    slow = pool.members[2]
    pool.serve(1.0, {})
    pool.report(slow, 0.2)
    assert pool.serve(1.0, {})[slow] == 0
    assert pool.serve(5.0, {})[slow] > 0


def test_slow_member_is_spared_as_long_as_it_is_slow() -> None:
    pool = Pool(1, 1, 1, 1, 1)
    assert pool.serve(30.0, {pool.members[0]: 0.2})[pool.members[0]] < 0.02 * 3000


def test_latencies_within_twice_each_other_are_the_same() -> None:
    pool = Pool(1, 1)
    chosen = pool.serve(20.0, {pool.members[0]: 0.03})
    assert 800 < chosen[pool.members[0]] < 1200


def test_requests_in_flight_weigh_against_latency() -> None:
    pool = Pool(1, 1)
    slow, fast = pool.members
    pool.report(fast, 0.02)
    pool.report(slow, 0.16)  # Eight times as slow; the band halves that.
    for in_flight, chosen in ((2, fast), (4, slow)):
        fast.in_flight = in_flight
        assert set(pool.choices(50)) == {chosen}


def test_member_that_fails_at_once_does_not_win() -> None:
    pool = Pool(1, 1, 1, 1, 1)
    failing = pool.members[0]
    assert pool.serve(30.0, {failing: 0.001}, {failing: 500})[failing] < 0.02 * 3000


def test_member_that_always_fails_is_told_from_those_that_fail_at_times() -> None:
    pool = Pool(1, 1, 1, 1, 1)
    failing, rng = pool.members[0], Random(2)
    chosen: Counter[Member] = Counter()
    for _ in range(3000):
        pool.now += 0.01
        member = pool.policy.choose(ANY)
        assert member
        chosen[member] += 1
        pool.report(member, 0.02, 500 if member is failing or rng.random() < 0.01 else 200)
    assert chosen[failing] < 0.03 * 3000


@pytest.mark.parametrize("outcome", [Outcome(200, "truncated", 0.001), Outcome(0, "died", 0.001)])
def test_reset_is_a_failure(outcome: Outcome) -> None:
    pool = Pool(1, 1)
    pool.serve(1.0, {})
    pool.policy.finished(pool.members[0], outcome)
    pool.policy.finished(pool.members[0], outcome)
    assert pool.choices()[pool.members[0]] == 0


@pytest.mark.parametrize("status", [404, 501, 505])
def test_status_that_is_not_the_members_fault_is_no_failure(status: int) -> None:
    pool = Pool(1, 1)
    chosen = pool.serve(20.0, {}, {pool.members[0]: status})
    assert 800 < chosen[pool.members[0]] < 1200


def test_pool_in_which_all_fail_is_shared_alike() -> None:
    pool = Pool(1, 1, 1, 1)
    pool.serve(1.0, {})
    chosen = pool.serve(20.0, {}, dict.fromkeys(pool.members, 500))
    assert all(400 < requests < 600 for requests in chosen.values())


def test_pool_in_which_all_have_always_failed_is_shared_alike() -> None:
    pool = Pool(1, 1)
    chosen = pool.serve(20.0, {}, dict.fromkeys(pool.members, 500))
    assert all(800 < requests < 1200 for requests in chosen.values())


def test_new_member_begins_at_the_median() -> None:
    pool = Pool(1, 1, 1, 1)
    took = {pool.members[0]: 0.2}
    pool.serve(20.0, took)
    new = members(*[1] * 5)[4]
    pool.members.append(new)
    pool.policy.update(pool.members, [new], [])
    chosen = Counter(pool.policy.choose(ANY) for _ in range(1000))
    assert 150 < chosen[new] < 350


def test_member_that_hangs_does_not_draw_the_requests() -> None:
    """No outcome says how slow it is: its cost alone would decay until it had them all."""
    pool = Pool(1, 1, 1)
    hung = pool.members[0]
    pool.serve(2.0, {})
    for _ in range(6000):
        pool.now += 0.01
        member = pool.policy.choose(ANY)
        assert member
        member.in_flight += 1
        member.requests += 1
        if member is not hung:
            member.in_flight -= 1
            pool.report(member, 0.02)
    assert hung.in_flight < 10


def test_member_that_left_is_forgotten() -> None:
    pool = Pool(1, 1)
    gone = pool.members.pop()
    pool.serve(1.0, {})
    pool.policy.update(pool.members, [], [gone])
    pool.report(gone, 0.5)
    assert set(pool.choices(10)) == set(pool.members)
    pool.members.append(gone)
    pool.policy.build(pool.members)
    assert set(pool.choices(100)) == set(pool.members)
