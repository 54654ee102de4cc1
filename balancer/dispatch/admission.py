"""Who gets which member, and who waits for one. No I/O.

Rules:
* A member is given at most ``limit`` requests at a time.
* No request waits while a member could take it (but see the last rule). While others wait, a new one joins the queue.
* A slot that becomes free goes to the request that has waited longest, in the same step, so that
  no other can slip in between.
* A request gets a member that failed it before only while every other one is busy or gone.
* Where no member was available and requests wait, the first member back is given its share of them, not all: while the
  others that DNS names are coming back, the rest wait for them, or for its next free slot, GATHER_SECONDS at most.
  (Of 100 members that restart, the first would be given some 17,000 requests; see docs/simulation.md.)
"""

from __future__ import annotations

from collections.abc import Callable, Container
from math import ceil, inf

from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.errors import Refusal
from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies.base import Policy

# Seconds that members are given to come back after the first of them.
GATHER_SECONDS = 1.0
# Requests that a member is given by then in any case: about what a worker with some threads works on at a time.
GATHER_MIN = 8


class Slots:
    """Gives members to claims and takes them back. ``limit``: requests at a time for each; 0 for no limit.

    ``on_shortage``: called when a request has to wait because no member is available.

    ``gathering``: members are coming back, and those who wait are shared out. ``bound``: requests at a time that a
    member is given just now, which then may be fewer than its limit.
    """

    def __init__(self, membership: Membership, policy: Policy, hold: PendingQueue, limit: int = 0) -> None:
        self._membership = membership
        self._policy = policy
        self._hold = hold
        self._limit = self.bound = limit or inf
        self.gathering = False
        self.on_shortage: Callable[[], None] = lambda: None
        self._built_for = -1

    def acquire(self, request: AnyRequest, tried: Container[Member]) -> Member | None:
        """A member for the request, to be given back; None if it has to wait its turn.

        ``tried``: those that failed it before.
        """
        if self._hold.waiting:
            return None
        member = self._choose(request, tried)
        if member is None and self.gathering:
            # Of the requests that waited for members to come back, none is left to be shared out.
            self.gathered()
            member = self._choose(request, tried)
        return member and _occupy(member)

    def wait(self, claim: QueuedRequest, patience: float) -> None:
        """Have a claim wait its turn, ``patience`` seconds at most. Raises Refusal where that is of no use."""
        if not self._membership.anybody:
            self.on_shortage()
        try:
            self._hold.push(claim, patience, moving=self._membership.anybody and not self.gathering)
        except Refusal:
            if not self.gathering:
                raise
            # Better to give a member more than its share than to refuse a request.
            self.bound = min(self._limit, self.bound + 1)
            self.assign_queued()
            self._hold.push(claim, patience, moving=False)

    def release(self, member: Member) -> None:
        """A request has ended at this member; the slot goes to the request that has waited longest."""
        member.in_flight -= 1
        if self._hold.waiting and member.in_flight < self.bound and self._membership.is_available(member):
            while (claim := self._hold.head()) and not self._give(claim, member):
                pass

    def assign_queued(self) -> None:
        """Who is available has changed: those who wait get members as long as there are some."""
        if self._built_for != self._membership.generation and self._membership.much_changed:
            self._follow()
        while (claim := self._hold.head()) and (member := self._choose(claim.request, claim.tried)):
            self._give(claim, member)

    def gather(self) -> None:
        """A member is available where none was: share out the requests that wait, until ``gathered``."""
        waiting, known = len(self._hold), len(self._membership.members)
        self.gathering = waiting > 0 and known > len(self._membership.available)
        share = max(GATHER_MIN, ceil(waiting / known)) if self.gathering else inf
        self.bound = min(self._limit, share)

    def gathered(self) -> None:
        """Stop waiting for missing members."""
        self.gathering = False
        self.bound = self._limit
        self.assign_queued()

    def fallback(self, claim: QueuedRequest) -> Member | None:
        """A member that is down by the evidence of failed requests alone, where no other is left.

        Better to try it than to refuse: what failed may have been a moment's congestion.
        """
        if self._membership.anybody:
            return None
        for member in self._membership.accused():
            if member not in claim.tried and member.in_flight < self._limit:
                return _occupy(member)
        return None

    def _give(self, claim: QueuedRequest, member: Member) -> bool:
        self._hold.discard(claim)
        _occupy(member)
        if not claim.give(member):
            member.in_flight -= 1
            member.requests -= 1
            return False
        return True

    def _choose(self, request: AnyRequest, tried: Container[Member]) -> Member | None:
        if self._built_for != self._membership.generation:
            self._follow()
        if self.bound == inf and not tried:
            return self._policy.choose(request)
        member = self._policy.choose(request, _Unfit(self.bound, tried))
        if member is None and tried:
            member = self._policy.choose(request, _Unfit(self.bound, ()))
        return member

    def _follow(self) -> None:
        """Have the policy know who may be chosen."""
        first, self._built_for = self._built_for < 0, self._membership.generation
        changed = self._membership.take_changed()
        available = self._membership.available
        if changed is None or first:
            self._policy.build(available)
        else:
            added = [it for it in changed if self._membership.is_available(it)]
            removed = [it for it in changed if not self._membership.is_available(it)]
            self._policy.update(available, added, removed)


def _occupy(member: Member) -> Member:
    member.in_flight += 1
    member.requests += 1
    return member


class _Unfit:
    """The members that cannot take a request: they are busy, or they failed it before."""

    def __init__(self, limit: float, tried: Container[Member]) -> None:
        self._limit = limit
        self._tried = tried

    def __contains__(self, member: object) -> bool:
        assert isinstance(member, Member)
        return member.in_flight >= self._limit or member in self._tried
