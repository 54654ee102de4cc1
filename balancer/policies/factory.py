"""The policy of the settings."""

from __future__ import annotations

from functools import partial
from random import Random

from balancer.config.settings import Settings
from balancer.http.request import AnyRequest, header_pairs
from balancer.http.request_headers import RequestHeaders
from balancer.policies.base import Policy
from balancer.policies.hash_ring import HashRing, Key
from balancer.policies.least_latency import LeastLatency
from balancer.policies.random_choice import LeastRequests, RandomChoice
from balancer.policies.round_robin import RoundRobin
from balancer.policies.sticky import Sticky, cookie_of
from balancer.types import Clock


def make_policy(settings: Settings, rng: Random, clock: Clock, plug_in: Policy | None = None) -> Policy:
    """Return the policy of the settings; ``plug_in`` replaces those of this package."""
    policy: Policy
    match settings.policy:
        case _ if plug_in:
            policy = plug_in
        case "least_requests":
            policy = LeastRequests(rng)
        case "least_latency":
            policy = LeastLatency(rng, clock)
        case "random":
            policy = RandomChoice(rng)
        case "hash":
            policy = HashRing(_make_key(settings), RoundRobin(rng), settings.hash_balance_factor)
        case "round_robin":
            policy = RoundRobin(rng)
        case name:
            raise ValueError(f"{name} is not one of the policies here")
    return Sticky(settings.sticky_cookie, policy) if settings.sticky_cookie else policy


def _make_key(settings: Settings) -> Key:
    source, text = settings.hash_key
    name = text.encode("ascii")
    match source:
        case "header":
            return partial(_header, name.lower())
        case "cookie":
            return partial(cookie_of, name)
    origin = RequestHeaders(settings.trusted_proxies).origin
    return lambda request: origin(header_pairs(request), request.client).encode()


def _header(name: bytes, request: AnyRequest) -> bytes:
    """Return the value of the first header field of that name, or b""."""
    for field, value in header_pairs(request):
        if field == name:
            return value
    return b""
