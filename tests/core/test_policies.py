from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.membership import Endpoint, Member
from balancer.policies import WEIGHT_STEPS, RoundRobin
from balancer.settings import Address


def members(*weights: int) -> list[Member]:
    return [Member(Endpoint(Address(f"10.0.0.{it}", 80), weight=weight), 0.0) for it, weight in enumerate(weights)]


def built(fit: list[Member]) -> RoundRobin:
    policy = RoundRobin()
    policy.build(fit)
    return policy


def shares(policy: RoundRobin, fit: list[Member], requests: int) -> list[int]:
    chosen = Counter(policy.choose() for _ in range(requests))
    return [chosen[it] for it in fit]


def test_nobody_is_chosen_where_nobody_is() -> None:
    assert RoundRobin().choose() is None
    assert built([]).choose(members(1)) is None


def test_members_take_turns() -> None:
    a, b, c = members(1, 1, 1)
    policy = built([a, b, c])
    assert [policy.choose() for _ in range(5)] == [a, b, c, a, b]


@given(size=st.integers(1, 300), weight=st.integers(0, 65535), before=st.integers(0, 50), requests=st.integers(0, 1000))
def test_every_member_gets_the_same_share_to_within_one(size: int, weight: int, before: int, requests: int) -> None:
    policy = built(members(1, 1, 1))
    shares(policy, [], before)
    fit = members(*[weight] * size)
    policy.build(fit)
    got = shares(policy, fit, requests)
    assert sum(got) == requests
    assert max(got) - min(got) <= 1


@given(
    weights=st.lists(st.integers(0, WEIGHT_STEPS), max_size=11), factor=st.integers(1, 655), rounds=st.integers(1, 3)
)
def test_shares_are_in_proportion_to_weights(weights: list[int], factor: int, rounds: int) -> None:
    turns = [max(1, it) for it in weights] + [WEIGHT_STEPS]
    fit = members(*(it * factor for it in weights), WEIGHT_STEPS * factor)
    assert shares(built(fit), fit, rounds * sum(turns)) == [rounds * it for it in turns]


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([3, 1], [3, 1]),
        ([1, 0], [1, 1]),
        ([0, 0, 0], [1, 1, 1]),
        ([65535, 32768, 0], [100, 50, 1]),
        ([1000, 10, 1], [100, 1, 1]),
    ],
)
def test_a_round_keeps_weights_to_one_part_in_a_hundred(weights: list[int], turns: list[int]) -> None:
    fit = members(*weights)
    policy = built(fit)
    assert [shares(policy, fit, sum(turns)) for _ in range(2)] == [turns, turns]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.lists(st.sets(st.integers(0, 5)), max_size=20))
def test_an_excluded_member_is_chosen_only_where_there_is_no_other(weights: list[int], tries: list[set[int]]) -> None:
    fit = members(*weights)
    policy = built(fit)
    for indices in tries:
        excluded = {it for index, it in enumerate(fit) if index in indices}
        chosen = policy.choose(excluded)
        assert chosen in fit
        assert chosen not in excluded or excluded == set(fit)


def test_the_turn_goes_on_behind_the_member_that_was_chosen_instead() -> None:
    a, b, c = members(1, 1, 1)
    policy = built([a, b, c])
    assert [policy.choose({a}), policy.choose(), policy.choose()] == [b, c, a]


def test_requests_go_round_even_while_everybody_is_excluded() -> None:
    fit = members(1, 1, 1)
    policy = built(fit)
    assert [policy.choose(fit) for _ in range(4)] == [*fit, fit[0]]


def test_a_member_that_was_taken_out_is_not_chosen() -> None:
    a, b, c = members(1, 1, 1)
    policy = built([a, b, c])
    policy.choose()
    policy.build([a, c])
    assert {policy.choose() for _ in range(4)} == {a, c}


def test_a_choice_among_a_thousand_members_looks_at_one() -> None:
    class Counting(list[Member]):
        looks = 0

        def __getitem__(self, index: Any) -> Any:
            Counting.looks += 1
            return super().__getitem__(index)

    policy = RoundRobin()
    policy.build(Counting(Member(Endpoint(Address(f"10.0.{n // 250}.{n % 250}", 80)), 0.0) for n in range(1000)))
    for _ in range(2500):
        policy.choose()
    assert Counting.looks == 2500
