"""The members behind the alias: DNS answers in, members with their states out. No I/O.

Rules (each measured on Docker's DNS):
* An answer is a set: order and TTL carry no meaning.
* NXDOMAIN and an empty answer mean that there is no member, once EMPTY_POLLS of them came with no address between.
* SERVFAIL, REFUSED and silence mean "unknown": the last good answer stays.
* Each record type keeps its own last good answer, so that AAAA cannot void A.
* An address that leaves takes its state with it; when it comes back it is a new member.
* A member that is new or down and answers a probe comes up once DNS names it. The query for that has to be younger than
  the last failed contact. (Seen with SERVFAIL in place of NXDOMAIN: 54 requests for one site answered by another.)

There may be thousands of members, and all of them may change within a second, one by one. The cost of one change
grows with the logarithm of their number; the cost for all members is paid when DNS brings a change.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.members.ejection import Ejection
from balancer.members.health import CLOSES_TO_SUSPECT, CONTACT_LOST, REFUSALS, TRANSITIONS, HealthEvent, State
from balancer.members.member import BY_ADDRESS, Member, Tier, tier_of
from balancer.members.slow_start import SlowStart
from balancer.types import Address
from balancer.words import counted

EMPTY_POLLS = 3
# Members named in one sentence.
NAMED = 3

# With more changes than this, and than half of the members, the policy is built anew, which costs no more.
SINGLE_CHANGES_MAX = 128
# Changes after which the policy is updated, so that no request has to pay for thousands.
UPDATE_POLICY_AFTER = 64


@dataclass(frozen=True, slots=True)
class Change:
    """Members that a snapshot has added or removed."""

    joined: Sequence[Member] = ()
    left: Sequence[Member] = ()

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)


@dataclass(slots=True)
class _RecordSet:
    """The last good answer of one record type, the time of its query, and the number of empty ones since."""

    endpoints: frozenset[Endpoint] = frozenset()
    empty_polls: int = 0
    asked: float = -inf


@dataclass(slots=True)
class Membership:
    """The members and their states.

    ``slow_start``: seconds in which the weight of a member that came up rises to its full value. ``first_limit``: of a
    new member. ``on_flip``: called with a member, its previous state and the event after every change of state.
    ``on_reason``: called with a member whose reason has changed while its state has not. ``on_unnamed``: called when a
    member would come up if DNS named it.
    ``generation``: number of changes of the available members, so that a policy is updated in time.
    """

    on_flip: Callable[[Member, State, HealthEvent], None] = lambda member, before, event: None
    on_reason: Callable[[Member], None] = lambda member: None
    on_unnamed: Callable[[], None] = lambda: None
    members: dict[Address, Member] = field(default_factory=dict)
    slow_start: float = 0.0
    first_limit: float = inf
    generation: int = 0
    _record_sets: dict[str, _RecordSet] = field(default_factory=dict)
    _snapshot: Snapshot | None = None
    # Members that answer and that DNS has not named since they failed, with the outcome of their last probe.
    _unnamed: dict[Member, tuple[HealthEvent, str]] = field(default_factory=dict)
    # Members that might be chosen, by tier, in order of address; no tier is empty. The best one is ``available``.
    _tiers: dict[Tier, list[Member]] = field(default_factory=dict)
    _best: Tier | None = None
    _available: tuple[Member, ...] | None = ()
    # Members that came to, left or changed on the best tier since the last ``pop_changes``; None for too many, or all.
    _changed: dict[Member, None] | None = None
    _down_by_requests: dict[Member, None] = field(default_factory=dict)
    _slow_start: SlowStart = field(init=False)

    def __post_init__(self) -> None:
        self._slow_start = SlowStart(self.slow_start, self._reweighed)

    @property
    def available(self) -> tuple[Member, ...]:
        """The members that may be chosen, in order of address.

        Those that are up, else the suspects; of these, the ones of the best SRV priority. Reading it after a change
        takes time for each member; ``has_available`` does not.
        """
        if self._available is None:
            self._available = tuple(self._tiers[self._best]) if self._best else ()
        return self._available

    @property
    def has_available(self) -> bool:
        """Whether a member is available."""
        return self._best is not None

    def is_available(self, member: Member) -> bool:
        """Whether a member is one of ``available``, at the same cost for any number of them."""
        return self._best is not None and member.tier == self._best

    def pop_changes(self) -> Collection[Member] | None:
        """Return the members that may be chosen, might have been, or have another weight since the last call.

        None if it is cheaper to read ``available``.
        """
        changed, self._changed = self._changed, {}
        return changed

    @property
    def much_changed(self) -> bool:
        """Whether so much has changed since ``pop_changes`` that a policy should not wait for the next request."""
        return self._changed is None or len(self._changed) >= UPDATE_POLICY_AFTER

    def down_by_requests(self) -> Iterable[Member]:
        """Return the members that only failed requests have taken down."""
        return (member for member in self._down_by_requests if not member.drained)

    def shortage(self) -> str:
        """Return words for the lack of members: how many there are, and the reasons of the first NAMED."""
        if not self.members:
            return f"no member, DNS says {self._snapshot.describe()}" if self._snapshot else "DNS has not answered yet"
        count = len(self.members)
        reasons = [
            f"{member.address}: {'drained by hand' if member.drained else member.reason}"
            for member in islice(self.members.values(), NAMED)
        ]
        more = [f"{count - NAMED} more"] if count > NAMED else []
        return f"{counted(count, 'member')}, {'; '.join(reasons + more)}"

    def reconcile(self, snapshot: Snapshot) -> Change:
        """Take in a snapshot; return the members that joined and left by it."""
        self._snapshot = snapshot
        asked = snapshot.when if snapshot.asked is None else snapshot.asked
        changes = [self._take_answer(answer, asked) for answer in snapshot.answers]
        change = self._apply(snapshot.when) if any(changes) else Change()
        for member, (event, reason) in list(self._unnamed.items()):
            if self._is_named(member):
                self.observe(member, event, snapshot.when, reason)
        return change

    def _apply(self, now: float) -> Change:
        """Make the members those that the record sets name."""
        wanted: dict[Address, Endpoint] = {}
        for records in self._record_sets.values():
            for endpoint in records.endpoints:
                current = wanted.get(endpoint.address)
                if current is None or (endpoint.priority, -endpoint.weight) < (current.priority, -current.weight):
                    wanted[endpoint.address] = endpoint
        limit = self.first_limit
        joined = [Member(wanted[address], since=now, limit=limit) for address in sorted(wanted.keys() - self.members)]
        left = [self.members.pop(address) for address in sorted(self.members.keys() - wanted)]
        states = [member.state for member in left]
        self._remove(left, now)
        self._reweigh(wanted)
        for member in joined:
            self.members[member.address] = member
        # Only now, so that observers see none of them any more.
        for member, before in zip(left, states, strict=True):
            self.on_flip(member, before, HealthEvent.LEFT_DNS)
        return Change(joined, left)

    def _take_answer(self, answer: Answer, asked: float) -> bool:
        """Take in an answer; return whether it changes the endpoints of its record type."""
        records = self._record_sets.setdefault(answer.record, _RecordSet())
        known = records.endpoints
        if answer.outcome is Outcome.FOUND:
            records.endpoints, records.empty_polls, records.asked = answer.endpoints, 0, asked
        elif answer.outcome is Outcome.EMPTY:
            records.empty_polls += 1
            if records.empty_polls >= EMPTY_POLLS:
                records.endpoints = frozenset()
        return records.endpoints is not known and records.endpoints != known

    def _remove(self, left: Sequence[Member], now: float) -> None:
        """Remove members, all together: one by one, each would take longer than the last."""
        tiers = {member.tier for member in left if member.tier}
        for member in left:
            self._enter(member, State.LEAVING, HealthEvent.LEFT_DNS.value, now)
            self._down_by_requests.pop(member, None)
            self._unnamed.pop(member, None)
        for tier in tiers:
            if stay := [member for member in self._tiers[tier] if member.state is not State.LEAVING]:
                self._tiers[tier] = stay
            else:
                del self._tiers[tier]
        for member in left:
            previous, member.tier = member.tier, None
            if previous and previous == self._best:
                self._note(member)
        self._find_best()

    def _reweigh(self, endpoints: dict[Address, Endpoint]) -> None:
        """Take over priorities and weights of SRV, which may change for a member that stays."""
        for address, member in self.members.items():
            endpoint = endpoints[address]
            if member.endpoint is not endpoint and member.endpoint != endpoint:
                member.endpoint = endpoint
                self._set_weight(member)
                self._place(member)

    def warm_up(self, now: float) -> None:
        """Raise the weights of members that came up; see ``SlowStart``."""
        self._slow_start.step(now)

    def warms_at(self) -> float:
        """Return when ``warm_up`` has something to do next, a clock reading in seconds."""
        return self._slow_start.next_at()

    def _set_weight(self, member: Member) -> None:
        """Give a member its weight: a part of it while it warms up, and a tenth on trial."""
        is_on_trial = member.ejection is not None and member.ejection.on_trial
        member.weight = member.endpoint.weight * (1 if is_on_trial else self._slow_start.tenths(member)) / 10

    def _reweighed(self, member: Member) -> None:
        before = member.weight
        self._set_weight(member)
        if member.weight != before:
            self._place(member)

    def observe(
        self, member: Member, event: HealthEvent, now: float, reason: str = "", *, by_request: bool = False
    ) -> None:
        """Take in an event of a member; ``reason``: better words for it than its own, or "".

        ``by_request``: a user's request brought it, not a probe.
        """
        if not by_request and member.down_by_requests:
            member.down_by_requests = False
            self._down_by_requests.pop(member, None)
        if event in CONTACT_LOST:
            member.failed_at = now
        before = member.state
        after = TRANSITIONS[before].get(event)
        again = self._unnamed.pop(member, None)
        if after and before in (State.JOINING, State.DOWN) and not self._is_named(member):
            self._unnamed[member] = event, reason
            if again is None:
                self.on_unnamed()
                return
            after, reason = None, f"{reason or event.value}, and DNS has not named it since it failed"
        if after is None:
            self._explain(member, reason)
            return
        self._enter(member, after, reason or event.value, now)
        member.down_by_requests = by_request and after is State.DOWN
        if member.down_by_requests:
            self._down_by_requests[member] = None
        else:
            self._down_by_requests.pop(member, None)
        if after is State.UP and before in (State.JOINING, State.DOWN):
            self._slow_start.begin(member, now)
        self._place(member)
        self.on_flip(member, before, event)

    def _is_named(self, member: Member) -> bool:
        """Whether DNS has named it since contact with it failed."""
        return any(
            records.asked >= member.failed_at and member.endpoint in records.endpoints
            for records in self._record_sets.values()
        )

    def _explain(self, member: Member, reason: str) -> None:
        """Note a reason that has changed while the state has not."""
        if reason and reason != member.reason and member.state not in (State.UP, State.LEAVING):
            member.reason = reason
            self.on_reason(member)

    def _enter(self, member: Member, state: State, reason: str, now: float) -> None:
        member.state, member.reason, member.since = state, reason, now
        member.closes = member.probe_successes = 0
        member.been_up |= state is State.UP
        if state in (State.DOWN, State.LEAVING):
            self._slow_start.end(member)
        if state is State.LEAVING:
            member.ejection = None

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, whatever its state; or (``drained`` is false) as many as its state allows."""
        if member.drained != drained:
            member.drained = drained
            self._place(member)

    def set_ejection(self, member: Member, ejection: Ejection | None) -> None:
        """Take over a member's ejection, which may have changed: None gives it its share of requests again."""
        member.ejection = ejection
        self._set_weight(member)
        self._place(member)

    def record_response(self, member: Member, status: int, closes: bool, now: float) -> None:
        """Note a response of a member. ``closes``: it announced the end of its connection."""
        member.answered = True
        if not closes:
            member.keeps_alive = True
            member.closes = 0
        elif member.keeps_alive and status not in REFUSALS:
            member.closes += 1
            if member.closes >= CLOSES_TO_SUSPECT:
                self.observe(member, HealthEvent.CLOSE_ANNOUNCED, now, by_request=True)

    def _place(self, member: Member) -> None:
        """Move a member to its tier after a change of state, priority, weight or draining."""
        old, new = member.tier, tier_of(member)
        if old != new:
            if old:
                tier = self._tiers[old]
                del tier[bisect_left(tier, member.address, key=BY_ADDRESS)]
                if not tier:
                    del self._tiers[old]
            if new:
                insort(self._tiers.setdefault(new, []), member, key=BY_ADDRESS)
            member.tier = new
        if self._best and self._best in (old, new):
            self._note(member)
        self._find_best()

    def _note(self, member: Member) -> None:
        """Note a change of a member on the best tier."""
        self._available = None
        self.generation += 1
        if self._changed is not None:
            self._changed[member] = None
            size = len(self._tiers.get(self._best, ())) if self._best else 0
            if len(self._changed) > SINGLE_CHANGES_MAX and 2 * len(self._changed) > size:
                self._changed = None

    def _find_best(self) -> None:
        best = min(self._tiers, default=None)
        if best != self._best:
            self._best = best
            self._available = None
            self._changed = None
            self.generation += 1
