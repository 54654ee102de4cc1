"""The policies that count requests: turns, shares and the comparison of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.discovery.snapshot import Endpoint
from balancer.hooks import HookRequest
from balancer.members.member import Member
from balancer.policies import HashRing, LeastLatency, LeastRequests, Policy, RandomChoice, RoundRobin
from balancer.policies.weights import TABLE_MAX, WEIGHT_STEPS
from balancer.types import Address
from tests.support.nought import Nought
from tests.support.policies import ANY, built, given_cookie, keyed, members, of, one, owners, request, shares


def test_policy_without_members_chooses_none() -> None:
    assert RoundRobin(Nought()).choose(ANY) is None
    assert built([]).choose(ANY, members(1)) is None


def test_balancers_that_start_together_begin_at_different_members() -> None:
    fit = members(*[1] * 100)
    first = set()
    for seed in range(30):
        policy = RoundRobin(Random(seed))
        policy.build(fit)
        first.add(policy.choose(ANY))
    assert len(first) > 20


def test_member_with_less_to_do_of_two_is_always_chosen() -> None:
    fit = members(1, 1)
    policy = LeastRequests(Random(1))
    policy.build(fit)
    for busy, idle in (fit, reversed(fit)):
        busy.in_flight, idle.in_flight = 1, 0
        assert {policy.choose(ANY) for _ in range(100)} == {idle}


def test_members_take_turns() -> None:
    a, b, c = members(1, 1, 1)
    policy = built([a, b, c])
    assert [policy.choose(ANY) for _ in range(5)] == [a, b, c, a, b]


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
def test_round_keeps_weights_to_one_part_in_a_hundred(weights: list[int], turns: list[int]) -> None:
    fit = members(*weights)
    policy = built(fit)
    assert [shares(policy, fit, sum(turns)) for _ in range(2)] == [turns, turns]


EVERY: dict[str, Callable[[], Policy]] = {
    "round_robin": lambda: RoundRobin(Random(1)),
    "random": lambda: RandomChoice(Random(1)),
    "least_requests": lambda: LeastRequests(Random(1)),
    "least_latency": lambda: LeastLatency(Random(1), lambda: 0.0),
    "hash": keyed,
}
every_policy = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


@every_policy
@given(
    weights=st.lists(st.integers(0, 9), max_size=6),
    tries=st.lists(st.tuples(st.sets(st.integers(0, 5)), st.binary(max_size=3)), max_size=20),
)
def test_excluded_member_is_never_chosen_and_another_always(
    make: Callable[[], Policy], weights: list[int], tries: list[tuple[set[int], bytes]]
) -> None:
    fit = members(*weights)
    policy = make()
    policy.build(fit)
    for indices, key in tries:
        excluded = {it for index, it in enumerate(fit) if index in indices}
        chosen = policy.choose(request((b"x-key", key)), excluded)
        assert (chosen is None) if excluded == set(fit) else (chosen in set(fit) - excluded)


def test_turn_goes_on_behind_the_member_that_was_chosen_instead() -> None:
    a, b, c = members(1, 1, 1)
    policy = built([a, b, c])
    assert [policy.choose(ANY, {a}), policy.choose(ANY), policy.choose(ANY)] == [b, c, a]


def test_member_that_was_taken_out_is_not_chosen() -> None:
    a, b, c = members(1, 1, 1)
    policy = built([a, b, c])
    policy.choose(ANY)
    policy.build([a, c])
    assert {policy.choose(ANY) for _ in range(4)} == {a, c}


def test_choice_among_a_thousand_members_looks_at_one() -> None:
    class Counting(list[Member]):
        looks = 0

        def __getitem__(self, index: Any) -> Any:
            Counting.looks += 1
            return super().__getitem__(index)

    policy = RoundRobin(Nought())
    policy.build(Counting(Member(Endpoint(Address(f"10.0.{n // 250}.{n % 250}", 80)), 0.0) for n in range(1000)))
    for _ in range(2500):
        policy.choose(ANY)
    assert Counting.looks == 2500


@pytest.mark.parametrize("weights", [range(1, 301), [1, 2, 3, 4, 5] * 60, [1] * 299 + [50]])
def test_many_unequal_members_get_their_shares_to_within_a_few_turns(weights: Sequence[int]) -> None:
    fit = members(*weights)
    assert len(fit) > TABLE_MAX
    policy = built(fit)
    shares(policy, fit, 12_345)
    floored = [max(it, max(weights) / WEIGHT_STEPS) for it in weights]
    for got, weight in zip(shares(policy, fit, 20_000), floored, strict=True):
        assert abs(got - 20_000 * weight / sum(floored)) < 4


# Distributions. Limits are five standard deviations: with these seeds they hold for certain.


@pytest.mark.parametrize("name", ["random", "least_requests", "least_latency"])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (3, 1), (1, 2, 3, 4), (100, 0)])
def test_idle_members_are_drawn_in_proportion_to_weights(name: str, weights: tuple[int, ...]) -> None:
    fit = members(*weights)
    policy = EVERY[name]()
    policy.build(fit)
    requests = 20_000
    floored = [max(it, max(weights) / WEIGHT_STEPS) for it in weights]
    for got, weight in zip(shares(policy, fit, requests), floored, strict=True):
        part = weight / sum(floored)
        assert abs(got - requests * part) < 5 * (requests * part * (1 - part)) ** 0.5


def test_draws_that_exclude_a_member_keep_the_proportions_of_the_rest() -> None:
    fit = members(1, 2, 3)
    policy = RandomChoice(Random(1))
    policy.build(fit)
    chosen = Counter(policy.choose(ANY, {fit[2]}) for _ in range(9000))
    assert abs(chosen[fit[0]] - 3000) < 5 * (9000 * 2 / 9) ** 0.5


def test_two_choices_keep_queues_shorter_than_one() -> None:
    """Each step gives a request out and ends one of a random member: the longest queue tells policies apart."""

    def longest(policy: Policy) -> int:
        fit, rng, peak = members(*[1] * 100), Random(2), 0
        policy.build(fit)
        for step in range(30_000):
            chosen = policy.choose(ANY)
            assert chosen
            chosen.in_flight += 1
            peak = max(peak, chosen.in_flight)
            if step > 300:
                busy = [it for it in fit if it.in_flight]
                rng.choice(busy).in_flight -= 1
        return peak

    assert longest(LeastRequests(Random(1))) < longest(RandomChoice(Random(1))) / 1.5


def test_slow_member_gets_less_by_least_requests() -> None:
    """One of four takes four times as long: by turns it would get a quarter, here it gets about a thirteenth."""
    fit = members(1, 1, 1, 1)
    policy = LeastRequests(Random(1))
    policy.build(fit)
    ends: list[tuple[int, Member]] = []
    chosen: Counter[Member] = Counter()
    for now in range(40_000):
        while ends and ends[0][0] <= now:
            ends.pop(0)[1].in_flight -= 1
        member = policy.choose(ANY)
        assert member
        member.in_flight += 1
        chosen[member] += 1
        ends.append((now + (40 if member is fit[0] else 10), member))
        ends.sort(key=lambda it: it[0])
    assert chosen[fit[0]] < 40_000 / 8
    assert min(chosen[it] for it in fit[1:]) > 40_000 / 4


def test_weights_count_when_two_members_are_compared() -> None:
    strong, weak = members(3, 1)
    policy = LeastRequests(Random(1))
    policy.build([strong, weak])
    strong.in_flight, weak.in_flight = 5, 2
    assert Counter(policy.choose(ANY) for _ in range(100))[strong] > 80


Change = tuple[int, int]
changes = st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4)), max_size=90), min_size=1, max_size=5)


@every_policy
@given(changes)
@settings(max_examples=60, deadline=None)
def test_policy_that_follows_changes_knows_what_one_built_at_once_knows(
    make: Callable[[], Policy], changes: list[list[Change]]
) -> None:
    """Members come, go and change their weights (0: gone), few or many at a time, across the limits of size."""
    everybody = members(*[0] * 100)
    followed = make()
    followed.build([])
    present: dict[Member, None] = {}
    for step in changes:
        come: dict[Member, None] = {}
        gone: dict[Member, None] = {}
        for index, weight in step:
            member = everybody[index]
            member.weight = weight
            (come if weight else gone)[member] = None
            (gone if weight else come).pop(member, None)
            (present.__setitem__ if weight else present.pop)(member, None)
        fit = sorted(present, key=lambda it: everybody.index(it))
        followed.update(fit, list(come), list(gone))
        built = make()
        built.build(fit)
        if isinstance(followed, HashRing):
            assert owners(followed, 100) == owners(built, 100)
        requests = 300
        got = shares(followed, fit, requests)
        assert sum(got) == (requests if fit else 0), "somebody who has gone was chosen"
        if isinstance(followed, RoundRobin) and fit:
            total = sum(it.weight for it in fit)
            # Those of 64 members or fewer stand in a round, which may begin anywhere.
            slack = 8 if len(fit) > TABLE_MAX else 1 + requests * 4 / total
            assert all(abs(one - requests * it.weight / total) <= slack for one, it in zip(got, fit, strict=True))


def test_turn_comes_neither_twice_nor_never_where_others_come_and_go() -> None:
    a, b, c, d, e = members(1, 1, 1, 1, 1)
    policy = built([b, d, e])
    assert policy.choose(ANY) is b
    policy.update([a, b, d, e], [a], [])
    assert policy.choose(ANY) is d
    policy.update([a, c, d, e], [c], [b])
    assert [policy.choose(ANY) for _ in range(4)] == [e, a, c, d]


BROWSER = request((b"host", b"a"), (b"cookie", b"member=0; session=\xe9"), (b"x-tenant", b"b\xe9"))


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "round_robin"},
        {"policy": "least_requests"},
        {"policy": "least_latency"},
        {"policy": "random"},
        {"policy": "hash"},
        {"policy": "hash", "hash_key": ("header", "X-Tenant")},
        {"policy": "hash", "hash_key": ("cookie", "session")},
        {"policy": "hash", "sticky_cookie": "member"},
    ],
    ids=str,
)
def test_policy_decides_the_same_for_a_request_as_plug_ins_see_it(settings: dict[str, Any]) -> None:
    raw, seen = of(**settings), of(**settings)
    for _ in range(9):
        member, other = one(raw, BROWSER), one(seen, HookRequest(BROWSER))
        assert member.address == other.address
        cookies = raw.response_headers(BROWSER, member)
        assert seen.response_headers(HookRequest(BROWSER), other) == cookies
        returning = request(*map(given_cookie, [cookies] if cookies else []))
        assert one(raw, returning).address == one(seen, HookRequest(returning)).address
