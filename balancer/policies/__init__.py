"""The choice of a member for each request: the interface of a policy, and the policies that need no plug-in."""

from balancer.members.outcome import Outcome
from balancer.policies.base import Policy, PolicyLike
from balancer.policies.factory import make_policy
from balancer.policies.hash_ring import HashRing
from balancer.policies.least_latency import LeastLatency
from balancer.policies.random_choice import LeastRequests, RandomChoice
from balancer.policies.round_robin import RoundRobin
from balancer.policies.sticky import Sticky

__all__ = [
    "HashRing", "LeastLatency", "LeastRequests", "Outcome", "Policy", "PolicyLike", "RandomChoice", "RoundRobin",
    "Sticky", "make_policy",
]  # fmt: skip
