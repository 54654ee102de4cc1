"""Who is behind the alias: DNS answers in, members with their states out. No I/O.

Rules (each measured on Docker's DNS, DESIGN 3.2):
* An answer is a set: order and TTL carry no meaning.
* NXDOMAIN and an empty answer mean that there is no member, once EMPTY_POLLS of them came with no address between.
* SERVFAIL, REFUSED and silence mean "unknown": what is known stays.
* Each record type keeps its own last good answer, so that AAAA cannot void A.
* An address that leaves takes its state with it; when it comes back it is a new member.
* A member that is new or down and answers a probe comes up once an answer that was asked for after the last failed
  contact names it. (Seen with SERVFAIL in place of NXDOMAIN: 54 requests for one site answered by another.)

There may be thousands of members, and all of them may change within a second, one by one. So what one change costs
grows with the logarithm of their number, and what the members together cost is paid when DNS brings a change.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from math import inf

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.members.health import CLOSES_TO_SUSPECT, CONTACT_LOST, TRANSITIONS, HealthEvent, State
from balancer.members.member import BY_ADDRESS, Member, Tier, tier_of
from balancer.types import Address

EMPTY_POLLS = 3
# Members that a sentence names.
NAMED = 3

# Members whose weight rises in one step, so that thousands that came up together do not make a long one.
WARMED_AT_ONCE = 100
# More changes than this, and than half of the members, are not told one by one: to take over all costs no more.
TOLD_ONE_BY_ONE = 128
# After so many changes a policy follows, so that no request has to pay for thousands.
FOLLOW_AFTER = 64


@dataclass(frozen=True, slots=True)
class Change:
    """What a snapshot did to the membership."""

    joined: Sequence[Member] = ()
    left: Sequence[Member] = ()

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)


@dataclass(slots=True)
class _RecordSet:
    """The last good answer of one record type, when it was asked for, and how many empty ones came since."""

    endpoints: frozenset[Endpoint] = frozenset()
    empty_polls: int = 0
    asked: float = -inf


@dataclass(slots=True)
class Membership:
    """The members and their states.

    ``slow_start``: seconds in which the weight of a member that came up rises to its full value.
    ``on_flip``: called with a member, its previous state and the event after every change of state.
    ``on_reason``: called with a member whose reason has changed while its state has not. ``on_unnamed``: called when a
    member would come up if DNS named it.
    ``generation`` counts the changes of who may be chosen, so that a policy knows when to follow.
    """

    on_flip: Callable[[Member, State, HealthEvent], None] = lambda member, before, event: None
    on_reason: Callable[[Member], None] = lambda member: None
    on_unnamed: Callable[[], None] = lambda: None
    members: dict[Address, Member] = field(default_factory=dict)
    slow_start: float = 0.0
    generation: int = 0
    _families: dict[str, _RecordSet] = field(default_factory=dict)
    _snapshot: Snapshot | None = None
    # Members that answer and that DNS has not named since they failed, with what their last probe came to.
    _unnamed: dict[Member, tuple[HealthEvent, str]] = field(default_factory=dict)
    # Those who might be chosen, by tier, in order of address; no tier is empty. The best one is ``available``.
    _tiers: dict[Tier, list[Member]] = field(default_factory=dict)
    _best: Tier | None = None
    _available: tuple[Member, ...] | None = ()
    # Who came to, left or changed on the best tier since the last ``pop_changes``; None for too many, or all.
    _changed: dict[Member, None] | None = None
    _accused: dict[Member, None] = field(default_factory=dict)
    _warming: dict[Member, float] = field(default_factory=dict)
    # The next step of each that warms up: when, a number that makes entries comparable, who, and which tenth.
    _steps: list[tuple[float, int, Member, int]] = field(default_factory=list)
    _stepped: int = 0

    @property
    def available(self) -> tuple[Member, ...]:
        """The members that may be chosen, in order of address.

        Those that are up, else the suspects; of these, the ones of the best SRV priority. The first look after a
        change takes time for each; ``has_available`` says cheaply whether there are any.
        """
        if self._available is None:
            self._available = tuple(self._tiers[self._best]) if self._best else ()
        return self._available

    @property
    def has_available(self) -> bool:
        """Whether a member is available."""
        return self._best is not None

    def is_available(self, member: Member) -> bool:
        """Whether it is one of ``available``; costs the same however many there are."""
        return self._best is not None and member.tier == self._best

    def pop_changes(self) -> Collection[Member] | None:
        """Those who may be chosen, might have been, or have another weight since the last call.

        None if that is easier learnt from ``available``.
        """
        changed, self._changed = self._changed, {}
        return changed

    @property
    def much_changed(self) -> bool:
        """Whether so much has changed since ``pop_changes`` that a policy should not wait for the next request."""
        return self._changed is None or len(self._changed) >= FOLLOW_AFTER

    def ejected(self) -> Iterable[Member]:
        """The members that are down by the evidence of failed requests alone."""
        return (it for it in self._accused if not it.drained)

    def shortage(self) -> str:
        """Why no member is available: how many there are, and the reasons of the first NAMED."""
        if not self.members:
            return f"no member, DNS says {self._snapshot.describe()}" if self._snapshot else "DNS has not answered yet"
        count = len(self.members)
        reasons = [
            f"{it.address}: {'drained by hand' if it.drained else it.reason}"
            for it in islice(self.members.values(), NAMED)
        ]
        more = [f"{count - NAMED} more"] if count > NAMED else []
        return f"{count} member{'' if count == 1 else 's'}, {'; '.join(reasons + more)}"

    def reconcile(self, snapshot: Snapshot) -> Change:
        """Take in a snapshot; returns who joined and who left by it."""
        self._snapshot = snapshot
        asked = snapshot.when if snapshot.asked is None else snapshot.asked
        news = [self._learn(answer, asked) for answer in snapshot.answers]
        change = self._apply(snapshot.when) if any(news) else Change()
        for member, (event, reason) in list(self._unnamed.items()):
            if self._is_named(member):
                self.observe(member, event, snapshot.when, reason)
        return change

    def _apply(self, now: float) -> Change:
        """Have the members be those that the families name."""
        wanted: dict[Address, Endpoint] = {}
        for family in self._families.values():
            for endpoint in family.endpoints:
                known = wanted.get(endpoint.address)
                if known is None or (endpoint.priority, -endpoint.weight) < (known.priority, -known.weight):
                    wanted[endpoint.address] = endpoint
        joined = [Member(wanted[address], since=now) for address in sorted(wanted.keys() - self.members)]
        left = [self.members.pop(address) for address in sorted(self.members.keys() - wanted)]
        states = [member.state for member in left]
        self._leave(left, now)
        self._reweigh(wanted)
        for member in joined:
            self.members[member.address] = member
        # Only now, so that observers see none of them any more.
        for member, before in zip(left, states, strict=True):
            self.on_flip(member, before, HealthEvent.LEFT_DNS)
        return Change(joined, left)

    def _learn(self, answer: Answer, asked: float) -> bool:
        """Whether the answer changes who is known by its record type."""
        family = self._families.setdefault(answer.record, _RecordSet())
        known = family.endpoints
        if answer.outcome is Outcome.FOUND:
            family.endpoints, family.empty_polls, family.asked = answer.endpoints, 0, asked
        elif answer.outcome is Outcome.EMPTY:
            family.empty_polls += 1
            if family.empty_polls >= EMPTY_POLLS:
                family.endpoints = frozenset()
        return family.endpoints is not known and family.endpoints != known

    def _leave(self, left: Sequence[Member], now: float) -> None:
        """Members left DNS. All at once: to take them out one by one would take longer with each."""
        tiers = {it.tier for it in left if it.tier}
        for member in left:
            self._enter(member, State.LEAVING, HealthEvent.LEFT_DNS.value, now)
            self._accused.pop(member, None)
            self._unnamed.pop(member, None)
        for tier in tiers:
            if stay := [it for it in self._tiers[tier] if it.state is not State.LEAVING]:
                self._tiers[tier] = stay
            else:
                del self._tiers[tier]
        for member in left:
            stood, member.tier = member.tier, None
            if stood and stood == self._best:
                self._note(member)
        self._look_for_best()

    def _reweigh(self, endpoints: dict[Address, Endpoint]) -> None:
        """SRV may change a member's priority or weight without touching the member."""
        for address, member in self.members.items():
            endpoint = endpoints[address]
            if member.endpoint is not endpoint and member.endpoint != endpoint:
                member.endpoint = endpoint
                if member not in self._warming:
                    member.weight = endpoint.weight
                self._place(member)

    def warm_up(self, now: float) -> None:
        """Raise the weights of the members that are new, a tenth at a time, and of WARMED_AT_ONCE members at most."""
        for _ in range(WARMED_AT_ONCE):
            if not (self._steps and self._steps[0][0] <= now):
                break
            _, _, member, _ = heappop(self._steps)
            if self._warming.get(member) == member.warm_since:
                self._warm(member, now)

    def warms_at(self) -> float:
        """When ``warm_up`` has something to do next."""
        return self._steps[0][0] if self._steps else inf

    def _warm(self, member: Member, now: float) -> None:
        part = min(10, max(1, int(10 * (now - member.warm_since) / self.slow_start)))
        if part == 10:
            del self._warming[member]
        else:
            self._stepped += 1
            # Later than now in any case, whatever the rounding.
            at = max(member.warm_since + (part + 1) * self.slow_start / 10, now + self.slow_start / 1000)
            heappush(self._steps, (at, self._stepped, member, part))
        weight = member.endpoint.weight * part / 10
        if member.weight != weight:
            member.weight = weight
            self._place(member)

    def observe(
        self, member: Member, event: HealthEvent, now: float, reason: str = "", *, by_request: bool = False
    ) -> None:
        """Take in what happened to a member; ``reason`` is the event's own words where there are better ones.

        ``by_request``: a user's request met with it, not a probe.
        """
        if not by_request and member.ejected:
            member.ejected = False
            self._accused.pop(member, None)
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
        member.ejected = by_request and after is State.DOWN
        if member.ejected:
            self._accused[member] = None
        else:
            self._accused.pop(member, None)
        if after is State.UP and before in (State.JOINING, State.DOWN) and self.slow_start:
            member.warm_since = now
            self._warming[member] = now
            self._warm(member, now)
        self._place(member)
        self.on_flip(member, before, event)

    def _is_named(self, member: Member) -> bool:
        """Whether DNS has named it since contact with it failed."""
        return any(it.asked >= member.failed_at and member.endpoint in it.endpoints for it in self._families.values())

    def _explain(self, member: Member, reason: str) -> None:
        """Its state has not changed, but perhaps the reason for it."""
        if reason and reason != member.reason and member.state not in (State.UP, State.LEAVING):
            member.reason = reason
            self.on_reason(member)

    def _enter(self, member: Member, state: State, reason: str, now: float) -> None:
        member.state, member.reason, member.since = state, reason, now
        member.closes = 0
        if state in (State.DOWN, State.LEAVING):
            self._warming.pop(member, None)

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, whatever its state; or (``drained`` is false) as many as that allows."""
        if member.drained != drained:
            member.drained = drained
            self._place(member)

    def answered(self, member: Member, closes: bool, now: float) -> None:
        """A member's response announced (``closes``) or did not announce that its connection ends with it."""
        member.answered = True
        if not closes:
            member.keeps_alive = True
            member.closes = 0
        elif member.keeps_alive:
            member.closes += 1
            if member.closes >= CLOSES_TO_SUSPECT:
                self.observe(member, HealthEvent.CLOSE_ANNOUNCED, now, by_request=True)

    def _place(self, member: Member) -> None:
        """State, priority or weight have changed, or whether it is drained: have a member stand where it belongs."""
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
        self._look_for_best()

    def _note(self, member: Member) -> None:
        """A member of the best tier has changed."""
        self._available = None
        self.generation += 1
        if self._changed is not None:
            self._changed[member] = None
            size = len(self._tiers.get(self._best, ())) if self._best else 0
            if len(self._changed) > TOLD_ONE_BY_ONE and 2 * len(self._changed) > size:
                self._changed = None

    def _look_for_best(self) -> None:
        best = min(self._tiers, default=None)
        if best != self._best:
            self._best = best
            self._available = None
            self._changed = None
            self.generation += 1
