"""Members, requests and shares for the tests of policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from random import Random
from typing import Any

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Endpoint
from balancer.hooks import HookRequest
from balancer.http.headers import Headers
from balancer.http.request import Request
from balancer.members.member import Member
from balancer.policies import HashRing, Policy, RoundRobin, make_policy
from balancer.types import Address
from tests.support.nought import Nought


def request(*headers: tuple[bytes, bytes], client: str = "192.0.2.1", scheme: str = "http") -> Request:
    return Request("GET", b"/", list(headers), client, scheme)


ANY = request()


def members(*weights: int) -> list[Member]:
    return [
        Member(Endpoint(Address(f"10.0.{it // 250}.{it % 250}", 80), weight=weight), 0.0)
        for it, weight in enumerate(weights)
    ]


def built(fit: list[Member]) -> RoundRobin:
    policy = RoundRobin(Nought())
    policy.build(fit)
    return policy


def shares(policy: Policy, fit: list[Member], requests: int) -> list[int]:
    chosen = Counter(policy.choose(ANY) for _ in range(requests))
    return [chosen[it] for it in fit]


def keyed(header: bytes = b"x-key") -> HashRing:
    return HashRing(lambda it: dict(it.headers).get(header, b""), RoundRobin(Nought()))


def owners(policy: Policy, keys: int = 4000) -> list[Member | None]:
    return [policy.choose(request((b"x-key", b"%d" % key))) for key in range(keys)]


def one(policy: Policy, it: Request | HookRequest, exclude: Container[Member] = ()) -> Member:
    member = policy.choose(it, exclude)
    assert member
    return member


def of(**settings: Any) -> Policy:
    policy = make_policy(Settings(**settings), Random(1), lambda: 0.0)
    policy.build(members(*[1] * 20))
    return policy


def given_cookie(fields: Headers) -> tuple[bytes, bytes]:
    [(name, value)] = fields
    assert name == b"set-cookie"
    return (b"cookie", value.partition(b";")[0])
