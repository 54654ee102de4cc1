"""The sticky cookie: a client stays at its member until that is gone."""

from __future__ import annotations

import pytest

from balancer.config.settings import Settings
from balancer.members.member import Member
from balancer.policies import Policy, make_policy
from balancer.policies.sticky import cookie_of
from tests.support.nought import Nought
from tests.support.policies import ANY, given_cookie, members, one, request


def sticky(name: str = "member") -> tuple[Policy, list[Member]]:
    policy = make_policy(Settings(sticky_cookie=name), Nought(), lambda: 0.0)
    fit = members(1, 1, 1)
    policy.build(fit)
    return policy, fit


def test_client_stays_where_its_cookie_says() -> None:
    policy, _ = sticky()
    first = one(policy, ANY)
    returning = request((b"cookie", b"theme=dark"), given_cookie(policy.response_headers(ANY, first)))
    assert {one(policy, returning) for _ in range(9)} == {first}
    assert policy.response_headers(returning, first) == []


def test_new_clients_are_spread_as_without_cookies() -> None:
    policy, fit = sticky()
    assert [policy.choose(ANY) for _ in range(6)] == [*fit, *fit]


def test_client_whose_member_is_busy_goes_elsewhere_and_keeps_its_cookie() -> None:
    policy, fit = sticky()
    returning = request(given_cookie(policy.response_headers(ANY, fit[1])))
    other = one(policy, returning, {fit[1]})
    assert other is not fit[1]
    assert policy.response_headers(returning, other) == []
    assert one(policy, returning) is fit[1]


def test_once_its_member_is_gone_a_client_gets_a_new_cookie() -> None:
    policy, fit = sticky()
    returning = request(given_cookie(policy.response_headers(ANY, fit[1])))
    policy.build([fit[0], fit[2]])
    moved = one(policy, returning)
    assert one(policy, request(given_cookie(policy.response_headers(returning, moved)))) is moved


def test_cookie_hides_the_address_and_is_not_for_scripts() -> None:
    policy, fit = sticky("srv")
    [(_, plain)] = policy.response_headers(ANY, fit[0])
    [(_, secure)] = policy.response_headers(request(scheme="https"), fit[0])
    value, *attributes = plain.split(b"; ")
    assert value.startswith(b"srv=") and b"10.0" not in value
    assert attributes == [b"Path=/", b"HttpOnly", b"SameSite=Lax"]
    assert secure == plain + b"; Secure"


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        (b"member=a", b"a"),
        (b"theme=dark; member=a; x=y", b"a"),
        (b"theme=dark;member=a ;x=y", b"a"),
        (b" \t member=a=b ", b"a=b"),
        (b"member=; member=a", b""),
        (b"member; member=a", b""),
        (b"member ; member=a", b""),
        (b"member", b""),
        (b"member =b; member=a", b"a"),
        (b"xmember=b; member2=c; member=a", b"a"),
        (b"x=member=b; member=a", b"a"),
        (b"Member=b", b""),
        (b";;;member=a", b"a"),
    ],
)
def test_value_is_that_of_the_first_cookie_of_the_name(cookies: bytes, value: bytes) -> None:
    assert cookie_of(b"member", request((b"cookie", cookies))) == value
    assert cookie_of(b"member", request((b"cookie", b"theme=dark"), (b"cookie", cookies))) == value
