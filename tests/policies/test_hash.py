"""The policy ``hash``: which member a key leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.settings import Settings
from balancer.hooks import HookRequest
from balancer.http.request import Request
from balancer.members.member import Member
from balancer.policies import HashRing, RoundRobin
from balancer.policies.hash_ring import PIECE_MAX, RING_POINTS
from balancer.policies.load_bound import CHUNK
from tests.support.nought import Nought
from tests.support.policies import ANY, given_cookie, keyed, members, of, one, owners, request


@pytest.mark.parametrize("size", [2, 3, 10, 50])
def test_hash_spreads_keys_within_reason(size: int) -> None:
    fit = members(*[1] * size)
    policy = keyed()
    policy.build(fit)
    got = Counter(owners(policy, 20_000))
    assert min(got[it] for it in fit) > 0.7 * 20_000 / size
    assert max(got[it] for it in fit) < 1.35 * 20_000 / size


def test_ring_of_thousands_is_looked_at_in_one_small_piece() -> None:
    fit = members(*[1] * 2000)
    policy = keyed()
    policy.build(fit)
    sizes = [len(it) for it in policy._pieces]
    assert sum(sizes) == 2000 * RING_POINTS
    assert max(sizes) < 2 * PIECE_MAX
    assert all(list(it) == sorted(it) for it in policy._pieces)


def test_hash_where_nearly_all_are_excluded_does_not_search_the_whole_ring() -> None:
    class Busy(set[Member]):
        asked = 0

        def __contains__(self, member: object) -> bool:
            Busy.asked += 1
            return super().__contains__(member)

    fit = members(*[1] * 2000)
    policy = keyed()
    policy.build(fit)
    assert policy.choose(request((b"x-key", b"k")), Busy(fit[:-1])) is fit[-1]
    assert Busy.asked < 5000


def test_hash_honours_weights() -> None:
    fit = members(3, 1)
    policy = keyed()
    policy.build(fit)
    assert 0.68 < owners(policy).count(fit[0]) / 4000 < 0.82


@given(st.sets(st.integers(0, 19), min_size=1), st.integers(0, 19))
def test_only_the_keys_of_a_member_that_comes_or_goes_move(present: set[int], other: int) -> None:
    everybody = members(*[1] * 20)
    policy = keyed()
    policy.build([everybody[it] for it in sorted(present | {other})])
    before = owners(policy, 300)
    policy.build([everybody[it] for it in sorted(present - {other})])
    after = owners(policy, 300)
    assert all(old is new for old, new in zip(before, after, strict=True) if old is not everybody[other])


def test_hash_is_the_same_in_every_process() -> None:
    fit = members(1, 1, 1)
    policy = keyed()
    policy.build(fit)
    assert [fit.index(it) for it in owners(policy, 12) if it] == [0, 1, 0, 0, 1, 2, 0, 0, 1, 2, 1, 2]


def test_requests_without_a_key_take_turns() -> None:
    fit = members(1, 1)
    policy = keyed()
    policy.build(fit)
    assert [policy.choose(ANY) for _ in range(4)] == [*fit, *fit]


@pytest.mark.parametrize(
    ("settings", "same", "other"),
    [
        ({}, request(client="10.1.1.1"), request(client="10.1.1.2")),
        ({"hash_key": ("header", "X-Tenant")}, request((b"x-tenant", b"a")), request((b"x-tenant", b"b"))),
        (
            {"hash_key": ("cookie", "session")},
            request((b"cookie", b"a=b; session=1")),
            request((b"cookie", b"session=2;a=b")),
        ),
    ],
)
def test_hash_goes_by_its_key(settings: dict[str, Any], same: Request, other: Request) -> None:
    policy = of(policy="hash", **settings)
    assert len({one(policy, same) for _ in range(9)}) == 1
    assert one(policy, same) is not one(policy, other)


def test_behind_a_trusted_proxy_the_client_is_who_it_says() -> None:
    policy = of(
        policy="hash", trusted_proxies=Settings.load({"BALANCER_TRUSTED_PROXIES": "10.0.0.0/8"}).trusted_proxies
    )

    def behind(proxy: str, hops: bytes) -> Member:
        return one(policy, request((b"x-forwarded-for", hops), client=proxy))

    direct = one(policy, request(client="192.0.2.7"))
    assert behind("10.0.0.1", b"192.0.2.7") is direct
    assert behind("10.0.0.9", b"1.2.3.4, 192.0.2.7, 10.0.0.3") is direct
    assert behind("192.0.2.7", b"192.0.2.99") is direct


def test_ring_goes_by_text_as_by_bytes() -> None:
    text = HashRing(lambda it: it.headers.get("x-key"), RoundRobin(Nought()))
    fit = members(*[1] * 20)
    raw = keyed()
    for policy in (text, raw):
        policy.build(fit)
    for key in range(50):
        it = request((b"x-key", b"%d" % key))
        assert text.choose(HookRequest(it)) is raw.choose(it)
    assert [text.choose(HookRequest(ANY)) for _ in range(3)] == fit[:3]


# Bounded loads.

HOT = request((b"x-key", b"hot"))


def bounded(fit: Sequence[Member], factor: int = 125) -> HashRing:
    policy = HashRing(lambda it: dict(it.headers).get(b"x-key", b""), RoundRobin(Nought()), factor)
    policy.build(fit)
    return policy


def begin(policy: HashRing, it: Request = HOT) -> Member:
    member = one(policy, it)
    member.in_flight += 1
    return member


def test_requests_of_a_hot_key_go_on_to_the_next_members_on_the_ring() -> None:
    fit = members(*[1] * 10)
    policy = bounded(fit)
    for requests in range(1, 200):
        begin(policy)
        assert max(it.in_flight for it in fit) <= ceil(1.25 * requests / 10)


def test_key_stays_where_it_is_while_the_load_is_low() -> None:
    fit = members(*[1] * 10)
    policy, free = bounded(fit), bounded(fit, 0)
    for key in range(200):
        it = request((b"x-key", b"%d" % key))
        owner = one(free, it)
        assert [one(policy, it) for _ in range(3)] == [owner] * 3
    for busy in fit:
        busy.in_flight = 4
    # Each has four of fifty and a quarter, rounded up six, that it may have.
    assert [begin(policy) for _ in range(2)] == [one(free, HOT)] * 2
    assert begin(policy) is not one(free, HOT)


def test_key_comes_back_once_its_owner_has_room() -> None:
    fit = members(*[1] * 10)
    policy = bounded(fit)
    owner = one(policy, HOT)
    owner.in_flight = 1
    assert one(policy, HOT) is not owner
    owner.in_flight = 0
    assert one(policy, HOT) is owner


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    factor=st.integers(101, 400),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=60),
)
def test_no_member_gets_more_than_its_bound(weights: list[int], factor: int, steps: list[tuple[int, int]]) -> None:
    fit = members(*weights)
    policy = bounded(fit, factor)
    floored = [max(it, max(weights) / 100) for it in weights] if any(weights) else [1] * len(fit)
    for key, ends in steps:
        busy = fit[ends % len(fit)]
        busy.in_flight = max(0, busy.in_flight - 1)
        member = begin(policy, request((b"x-key", b"%d" % key)))
        part = floored[fit.index(member)] / sum(floored)
        requests = sum(it.in_flight for it in fit)
        assert member.in_flight <= ceil(factor / 100 * requests * part + 1e-9)


def test_member_with_more_than_its_part_is_better_than_none() -> None:
    fit = members(1, 1)
    policy = bounded(fit)
    fit[0].in_flight = 9
    assert one(policy, HOT, {fit[1]}) is fit[0]
    assert policy.choose(HOT, set(fit)) is None


def test_requests_without_a_key_have_no_bound() -> None:
    fit = members(1, 1)
    policy = bounded(fit)
    fit[0].in_flight = 9
    assert [policy.choose(ANY) for _ in range(2)] == fit


def test_many_members_are_counted_some_at_each_choice() -> None:
    fit = members(*[1] * (10 * CHUNK))
    policy = bounded(fit)
    for it in fit:
        it.in_flight = 8
    for _ in range(10):
        one(policy, HOT)
    owner = one(policy, HOT)
    owner.in_flight = 10
    assert one(policy, HOT) is owner
    owner.in_flight = 11
    assert one(policy, HOT) is not owner
    gone = fit[3 * CHUNK :]
    policy.update(fit[: 3 * CHUNK], [], gone)
    policy.update(fit, gone, [])
    for _ in range(10):
        one(policy, HOT)
    assert policy._bound and policy._bound._total == sum(it.in_flight for it in fit)


def test_cookie_keeps_a_client_at_a_member_with_more_than_its_part() -> None:
    policy = of(policy="hash", hash_balance_factor=125, sticky_cookie="member")
    new = request()
    member = one(policy, new)
    member.in_flight = 9
    assert one(policy, request(given_cookie(policy.response_headers(new, member)))) is member
    assert one(policy, new) is not member
