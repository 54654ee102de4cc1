"""Which request gets which member, and which waits for one. No I/O.

Rules:
* A member has at most its ``limit`` of requests at a time: the one of the settings, or one that finds itself.
* No request waits while a member could take it (but see the last rule). While requests wait, a new one joins the queue.
* A slot that becomes free goes to the request whose turn it is (``balancer.dispatch.turns``). That happens in the same
  step, so that no other can slip in between.
* A request gets a member that failed it before only while every other one is busy or gone.
* Where no member was available and requests wait, the first member back gets its share of them, not all. The rest
  wait for the other members that DNS names, or for its next free slot, as long as ``GradualRelease`` has it.
  (Of 100 members that restart, the first would get some 17,000 requests; see docs/simulation.md.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from math import ceil, inf
from typing import Protocol

from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies.base import Policy
from balancer.types import Clock

# Seconds after the first member is back in which the others may come back: at least, and at most.
GATHER_SECONDS = 1.0
GATHER_SECONDS_MAX = 5.0
# The wait, as a multiple of what the last of them took lately.
GATHER_MARGIN = 1.5
# Times at which members have come back that count.
LATELY = 4
# Requests that a member gets by then in any case: about what a worker with some threads works on at a time.
GATHER_MIN = 8


class Admission:
    """Gives members to requests and takes them back.

    ``limit``: requests at a time with which each member begins; 0 for no limit.

    ``on_shortage``: called when a request has to wait because no member is available; raises Refusal where none will.

    ``releasing_gradually``: members are coming back, and queued requests are shared out. ``effective_limit``: requests
    at a time that any member gets now, whatever its own limit; infinite but for a gradual release.
    """

    def __init__(self, membership: Membership, policy: Policy, queue: PendingQueue, limit: float = 0) -> None:
        self._membership = membership
        self._policy = policy
        self._queue = queue
        self._has_limits = limit > 0
        self.effective_limit = inf
        membership.first_limit = limit or inf
        for member in membership.members.values():
            member.limit = membership.first_limit
        self.releasing_gradually = False
        self.on_shortage: Callable[[], None] = lambda: None
        self._built_for = -1
        # Members that a gradual release waits for.
        self._missing = 0

    def acquire(self, request: AnyRequest, tried: Container[Member], again: bool = True) -> Member | None:
        """Return a member for the request, to be released after it; None if the request has to wait.

        ``tried``: members that failed it before. ``again``: one of them is better than none.
        """
        if self._queue.waiting:
            return None
        member = self._choose(request, tried, again)
        if member is None and self.releasing_gradually:
            # No request is left of those that waited for members to come back.
            self.end_gradual_release()
            member = self._choose(request, tried, again)
        return member and _occupy(member)

    def keep(self, member: Member) -> Member | None:
        """Return the member of a request once more, for its next attempt, before it is released after the last one.

        None if it is not available any more.
        """
        return _occupy(member) if self._membership.is_available(member) else None

    def wait(self, queued: QueuedRequest, patience: float) -> None:
        """Queue a request for at most ``patience`` seconds. Raises Refusal where waiting is of no use."""
        if not self._membership.has_available:
            self.on_shortage()
        if self.releasing_gradually and not self._queue.has_room(queued):
            # A member with more than its share is better than a refusal.
            self.effective_limit += 1
            self.assign_queued()
        self._queue.push(queued, patience, moving=self._membership.has_available and not self.releasing_gradually)

    def release(self, member: Member, queued: QueuedRequest | None = None) -> None:
        """Take a member back after a request; its slot goes to the request whose turn is next.

        ``queued``: the request, if it may have got the member in its turn.
        """
        member.in_flight -= 1
        if queued:
            self._queue.end_turn(queued)
        if self._queue.waiting:
            self._fill(member)

    def has_slot(self, member: Member) -> bool:
        """Whether a member may have one more request now."""
        return member.in_flight < member.limit and member.in_flight < self.effective_limit

    def set_limit(self, member: Member, limit: float) -> None:
        """Let a member have so many requests at a time from now on; those that it has are finished."""
        if limit != member.limit:
            before, member.limit = member.limit, limit
            if self._membership.is_available(member):
                self._queue.turns.slots += limit - before
            if self._queue.waiting:
                self._fill(member)

    def _fill(self, member: Member) -> None:
        """Give the free slots of a member, if it is available, to the requests whose turns are next."""
        if self._membership.is_available(member):
            while self.has_slot(member) and (queued := self._queue.head()):
                self._give(queued, member)

    def assign_queued(self) -> None:
        """Give members to queued requests after a change of the members that are available."""
        if self._built_for != self._membership.generation and self._membership.much_changed:
            self._update_policy()
        while (queued := self._queue.head()) and (member := self._choose(queued.request, queued.tried)):
            self._give(queued, member)

    def begin_gradual_release(self) -> None:
        """Share out the queued requests until ``end_gradual_release``: a member is available where none was."""
        waiting, available = len(self._queue), self._membership.available
        # Members of a lower priority would get nothing if they came back as well.
        lowest = available[0].endpoint.priority if available else 0
        members = sum(member.endpoint.priority <= lowest for member in self._membership.members.values())
        self._missing = members - len(available)
        self.releasing_gradually = waiting > 0 and self._missing > 0
        self.effective_limit = max(GATHER_MIN, ceil(waiting / members)) if self.releasing_gradually else inf

    def count_back(self) -> None:
        """Take note of one more member that is back; a gradual release ends when the last of them has its share."""
        self._missing -= 1
        if self.releasing_gradually and not self._missing:
            self.assign_queued()
            self.end_gradual_release()

    def end_gradual_release(self) -> None:
        """Stop waiting for missing members."""
        self.releasing_gradually = False
        self.effective_limit = inf
        self.assign_queued()

    def fallback(self, queued: QueuedRequest) -> Member | None:
        """Return a member that only failed requests have taken down, where no other is left, or None.

        An attempt is better than a refusal: what failed may have been a moment's congestion.
        """
        if self._membership.has_available:
            return None
        for member in self._membership.down_by_requests():
            if member not in queued.tried and member.in_flight < member.limit:
                return _occupy(member)
        return None

    def _give(self, queued: QueuedRequest, member: Member) -> bool:
        self._queue.discard(queued)
        _occupy(member)
        if not queued.give(member):
            member.in_flight -= 1
            member.requests -= 1
            return False
        self._queue.take_turn(queued)
        return True

    def _choose(self, request: AnyRequest, tried: Container[Member], again: bool = True) -> Member | None:
        if self._built_for != self._membership.generation:
            self._update_policy()
        if not self._has_limits and self.effective_limit == inf and not tried:
            return self._policy.choose(request)
        member = self._policy.choose(request, _Excluded(self.effective_limit, tried))
        if member is None and tried and again:
            member = self._policy.choose(request, _Excluded(self.effective_limit, ()))
        return member

    def _update_policy(self) -> None:
        """Bring the policy up to date with the members that may be chosen."""
        first, self._built_for = self._built_for < 0, self._membership.generation
        changed = self._membership.pop_changes()
        available = self._membership.available
        if self._has_limits:
            self._queue.turns.slots = sum([member.limit for member in available])
        if changed is None or first:
            self._policy.build(available)
        else:
            added = [member for member in changed if self._membership.is_available(member)]
            removed = [member for member in changed if not self._membership.is_available(member)]
            self._policy.update(available, added, removed)


class Timer(Protocol):
    """A handle of ``call_later``."""

    def cancel(self) -> None:
        """Make the call not happen."""


class GradualRelease:
    """Begins the gradual release of an admission when the first member is back, and ends it.

    It ends with the last member that DNS names, or after a while: GATHER_SECONDS, or longer if the last ones took
    longer lately, up to GATHER_SECONDS_MAX. ``call_later``: calls a function after so many seconds.
    """

    def __init__(
        self,
        membership: Membership,
        admission: Admission,
        call_later: Callable[[float, Callable[[], None]], Timer],
        clock: Clock,
    ) -> None:
        self._membership = membership
        self._admission = admission
        self._call_later = call_later
        self._clock = clock
        self._had_available = False
        self._timer: Timer | None = None
        # When the first member was back, and how long after it the last one was, for each of the last times.
        self._first_back = -inf
        self._lags: deque[float] = deque(maxlen=LATELY)

    def came_up(self) -> None:
        """Take note of a member that is up and was not; ``update`` follows."""
        lag = self._clock() - self._first_back
        if self._had_available and lag <= GATHER_SECONDS_MAX:
            self._lags[-1] = lag
            self._admission.count_back()

    def update(self) -> bool:
        """Take note of a change of the available members; return whether the last one has gone."""
        before, self._had_available = self._had_available, self._membership.has_available
        if self._had_available and not before:
            wait = GATHER_MARGIN * max(self._lags, default=0.0)
            self._lags.append(0.0)
            self._first_back = self._clock()
            self._admission.begin_gradual_release()
            if self._timer:
                self._timer.cancel()
            if self._admission.releasing_gradually:
                wait = min(max(wait, GATHER_SECONDS), GATHER_SECONDS_MAX)
                self._timer = self._call_later(wait, self._admission.end_gradual_release)
        return before and not self._had_available


def _occupy(member: Member) -> Member:
    member.in_flight += 1
    member.requests += 1
    return member


class _Excluded:
    """The members that cannot take a request: they are busy, or they failed it before."""

    def __init__(self, most: float, tried: Container[Member]) -> None:
        self._most = most
        self._tried = tried

    def __contains__(self, member: object) -> bool:
        assert isinstance(member, Member)
        return member.in_flight >= member.limit or member.in_flight >= self._most or member in self._tried
