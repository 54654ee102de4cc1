"""The policy ``hash``: which member a key leads to."""

from __future__ import annotations

from collections import Counter
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
from tests.support.nought import Nought
from tests.support.policies import ANY, keyed, members, of, one, owners, request


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
