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


class Admission:
    """Gives members to requests and takes them back. ``limit``: requests at a time for each; 0 for no limit.

    ``on_shortage``: called when a request has to wait because no member is available.

    ``releasing_gradually``: members are coming back, and those who wait are shared out. ``effective_limit``: requests
    at a time that a member is given now, which then may be fewer than its limit.
    """

    def __init__(self, membership: Membership, policy: Policy, hold: PendingQueue, limit: int = 0) -> None:
        self._membership = membership
        self._policy = policy
        self._queue = hold
        self._limit = self.effective_limit = limit or inf
        self.releasing_gradually = False
        self.on_shortage: Callable[[], None] = lambda: None
        self._built_for = -1

    def acquire(self, request: AnyRequest, tried: Container[Member]) -> Member | None:
        """A member for the request, to be given back; None if it has to wait its turn.

        ``tried``: those that failed it before.
        """
        if self._queue.waiting:
            return None
        member = self._choose(request, tried)
        if member is None and self.releasing_gradually:
            # Of the requests that waited for members to come back, none is left to be shared out.
            self.end_gradual_release()
            member = self._choose(request, tried)
        return member and _occupy(member)

    def wait(self, queued: QueuedRequest, patience: float) -> None:
        """Have a request wait its turn, ``patience`` seconds at most. Raises Refusal where that is of no use."""
        if not self._membership.has_available:
            self.on_shortage()
        try:
            self._queue.push(queued, patience, moving=self._membership.has_available and not self.releasing_gradually)
        except Refusal:
            if not self.releasing_gradually:
                raise
            # Better to give a member more than its share than to refuse a request.
            self.effective_limit = min(self._limit, self.effective_limit + 1)
            self.assign_queued()
            self._queue.push(queued, patience, moving=False)

    def release(self, member: Member) -> None:
        """A request has ended at this member; the slot goes to the request that has waited longest."""
        member.in_flight -= 1
        if self._queue.waiting and member.in_flight < self.effective_limit and self._membership.is_available(member):
            while (queued := self._queue.head()) and not self._give(queued, member):
                pass

    def assign_queued(self) -> None:
        """Who is available has changed: those who wait get members as long as there are some."""
        if self._built_for != self._membership.generation and self._membership.much_changed:
            self._follow()
        while (queued := self._queue.head()) and (member := self._choose(queued.request, queued.tried)):
            self._give(queued, member)

    def begin_gradual_release(self) -> None:
        """A member is available where none was: share out the requests that wait, until ``end_gradual_release``."""
        waiting, known = len(self._queue), len(self._membership.members)
        self.releasing_gradually = waiting > 0 and known > len(self._membership.available)
        share = max(GATHER_MIN, ceil(waiting / known)) if self.releasing_gradually else inf
        self.effective_limit = min(self._limit, share)

    def end_gradual_release(self) -> None:
        """Stop waiting for missing members."""
        self.releasing_gradually = False
        self.effective_limit = self._limit
        self.assign_queued()

    def fallback(self, queued: QueuedRequest) -> Member | None:
        """A member that is down by the evidence of failed requests alone, where no other is left.

        Better to try it than to refuse: what failed may have been a moment's congestion.
        """
        if self._membership.has_available:
            return None
        for member in self._membership.ejected():
            if member not in queued.tried and member.in_flight < self._limit:
                return _occupy(member)
        return None

    def _give(self, queued: QueuedRequest, member: Member) -> bool:
        self._queue.discard(queued)
        _occupy(member)
        if not queued.give(member):
            member.in_flight -= 1
            member.requests -= 1
            return False
        return True

    def _choose(self, request: AnyRequest, tried: Container[Member]) -> Member | None:
        if self._built_for != self._membership.generation:
            self._follow()
        if self.effective_limit == inf and not tried:
            return self._policy.choose(request)
        member = self._policy.choose(request, _Excluded(self.effective_limit, tried))
        if member is None and tried:
            member = self._policy.choose(request, _Excluded(self.effective_limit, ()))
        return member

    def _follow(self) -> None:
        """Have the policy know who may be chosen."""
        first, self._built_for = self._built_for < 0, self._membership.generation
        changed = self._membership.pop_changes()
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


class _Excluded:
    """The members that cannot take a request: they are busy, or they failed it before."""

    def __init__(self, limit: float, tried: Container[Member]) -> None:
        self._limit = limit
        self._tried = tried

    def __contains__(self, member: object) -> bool:
        assert isinstance(member, Member)
        return member.in_flight >= self._limit or member in self._tried
