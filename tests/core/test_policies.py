from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.membership import Endpoint, Member
from balancer.policies import WEIGHT_STEPS, RoundRobin
from balancer.settings import Address

weights = st.lists(st.integers(0, 65535), min_size=1, max_size=12)
modest_weights = st.lists(st.integers(0, WEIGHT_STEPS), min_size=1, max_size=12)


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


@given(modest_weights, st.integers(1, 3))
def test_a_round_gives_each_member_as_many_turns_as_its_weight(weights: list[int], rounds: int) -> None:
    turns = [max(1, it) for it in weights] if any(weights) else [1] * len(weights)
    fit = members(*weights)
    got = shares(built(fit), fit, rounds * sum(turns))
    assert [it * sum(turns) for it in got] == [it * rounds * sum(turns) for it in turns] or len(set(weights)) == 1


@given(weights)
def test_a_share_is_its_weight_within_rounding(weights: list[int]) -> None:
    fit, heaviest = members(*weights), max(*weights, 1)
    policy = built(fit)
    policy.choose()
    got = shares(policy, fit, len(policy._round))
    for weight, share in zip(weights, got, strict=True):
        assert share / max(got) == pytest.approx(weight / heaviest, abs=1 / min(WEIGHT_STEPS, heaviest) + 1e-9) or (
            len(set(weights)) == 1
        )


@given(weights, st.data())
def test_a_member_is_chosen_twice_only_where_there_is_no_other(weights: list[int], data: st.DataObject) -> None:
    fit = members(*weights)
    policy = built(fit)
    for _ in range(20):
        tried = data.draw(st.sets(st.sampled_from(fit)))
        chosen = policy.choose(tried)
        assert chosen in fit
        assert chosen not in tried or tried == set(fit)


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
