"""Who is behind the alias: DNS answers in, members with their states out. No I/O.

Rules (each measured on Docker's DNS, DESIGN 3.2):
* An answer is a set: order and TTL carry no meaning.
* NXDOMAIN and an empty answer mean "nobody", but only once EMPTY_POLLS of them came with no address between.
* SERVFAIL, REFUSED and silence mean "unknown": what is known stays.
* Each record type keeps its own last good answer, so that AAAA cannot void A.
* An address that leaves takes its state with it; when it comes back it is a new member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from balancer.health import CLOSES_TO_SUSPECT, TRANSITIONS, Event, State
from balancer.settings import Address

EMPTY_POLLS = 3


class Outcome(Enum):
    """What a DNS query came to."""

    FOUND = "found"
    NOBODY = "nobody"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place that DNS names. Priority (lower is preferred) and weight come from SRV (RFC 2782)."""

    address: Address
    priority: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one query: ``rcode`` is DNS's word for it, or "timeout" or another reason."""

    record: str
    outcome: Outcome
    endpoints: frozenset[Endpoint] = frozenset()
    rcode: str = "NOERROR"
    over_tcp: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The answers to one round of queries, one for each record type. ``when``: clock reading in seconds.

    ``name``: what had the addresses, where the alias may stand for several names (``balancer.search``).
    """

    answers: tuple[Answer, ...]
    when: float
    name: str = ""

    def describe(self) -> str:
        """For a log line: ``A: NOERROR, 3 endpoints``."""
        said = "; ".join(
            f"{it.record}: {it.rcode}, {len(it.endpoints)} endpoints{', over TCP' if it.over_tcp else ''}"
            for it in self.answers
        )
        return f"{said} ({self.name})" if self.name else said


@dataclass(slots=True, eq=False)
class Member:
    """A container behind the alias. Times (``…since``, ``probe_at``, ``probed_at``) are clock readings.

    ``probes`` is how many were begun, ``probing`` how many are under way, ``heard`` the last that brought an answer.
    ``weight``: the share of requests it should get, in proportion to the others'. ``answered``: it has
    answered a request since it was last due for a probe. ``keeps_alive``: it has let a connection stay
    open after a response; ``closes``: responses in a row that announced the end of theirs.
    ``drained``: somebody has asked that it gets no more requests, at ``drained_since``. ``accused``: it is
    down because requests failed to connect, and no probe has looked since.
    """

    endpoint: Endpoint
    since: float
    state: State = State.JOINING
    reason: str = "found in DNS"
    in_flight: int = 0
    requests: int = 0
    probe_at: float = 0.0
    probed_at: float = 0.0
    probe_failures: int = 0
    probing: int = 0
    probes: int = 0
    heard: int = 0
    answered: bool = False
    keeps_alive: bool = False
    closes: int = 0
    accused: bool = False
    drained: bool = False
    drained_since: float = 0.0
    warm_since: float = 0.0
    weight: float = field(init=False)

    def __post_init__(self) -> None:
        self.weight = self.endpoint.weight

    @property
    def address(self) -> Address:
        return self.endpoint.address


@dataclass(frozen=True, slots=True)
class Change:
    """What a snapshot did to the membership."""

    joined: Sequence[Member] = ()
    left: Sequence[Member] = ()

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)


@dataclass(slots=True)
class _Family:
    """The last good answer of one record type, and how often "nobody" came since."""

    endpoints: frozenset[Endpoint] = frozenset()
    empty_polls: int = 0


@dataclass(slots=True)
class Membership:
    """The members and their states.

    ``slow_start``: seconds in which the weight of a member that came up rises to its full value.
    ``on_flip``: called with a member, its previous state and the event after every change of state.
    ``generation`` counts the changes of who may be chosen, so that a policy knows when to rebuild.
    """

    on_flip: Callable[[Member, State, Event], None] = lambda member, before, event: None
    members: dict[Address, Member] = field(default_factory=dict)
    slow_start: float = 0.0
    generation: int = 0
    _families: dict[str, _Family] = field(default_factory=dict)
    _available: tuple[Member, ...] | None = ()
    _available_set: frozenset[Member] = frozenset()
    _warming: set[Member] = field(default_factory=set)

    @property
    def available(self) -> tuple[Member, ...]:
        """The members that may be chosen, in order of address.

        Those that are up, else the suspects; of these, the ones of the best SRV priority.
        """
        if self._available is None:
            states = self._in_state(State.UP), self._in_state(State.SUSPECT)
            fit = next(filter(None, ([it for it in found if not it.drained] for found in states)), [])
            best = min((it.endpoint.priority for it in fit), default=0)
            self._available = tuple(
                sorted((it for it in fit if it.endpoint.priority == best), key=lambda member: member.address)
            )
            self._available_set = frozenset(self._available)
        return self._available

    def is_available(self, member: Member) -> bool:
        """Whether it is one of ``available``; costs the same however many there are."""
        return bool(self.available) and member in self._available_set

    def accused(self) -> list[Member]:
        """The members that are down by the evidence of failed requests alone."""
        return [it for it in self._in_state(State.DOWN) if it.accused and not it.drained]

    def _in_state(self, state: State) -> list[Member]:
        return [it for it in self.members.values() if it.state is state]

    def reconcile(self, snapshot: Snapshot) -> Change:
        """Take in a snapshot; returns who joined and who left by it."""
        news = [self._learn(answer) for answer in snapshot.answers]
        if not any(news):
            return Change()
        wanted: dict[Address, Endpoint] = {}
        for family in self._families.values():
            for endpoint in family.endpoints:
                known = wanted.get(endpoint.address)
                if known is None or (endpoint.priority, -endpoint.weight) < (known.priority, -known.weight):
                    wanted[endpoint.address] = endpoint
        joined = [Member(wanted[address], since=snapshot.when) for address in sorted(wanted.keys() - self.members)]
        left = [self.members[address] for address in sorted(self.members.keys() - wanted)]
        for member in left:
            self.observe(member, Event.LEFT_DNS, snapshot.when)
            del self.members[member.address]
        for member in joined:
            self.members[member.address] = member
        self._reweigh(wanted.values())
        return Change(joined, left)

    def _learn(self, answer: Answer) -> bool:
        """Whether the answer changes who is known by its record type."""
        family = self._families.setdefault(answer.record, _Family())
        known = family.endpoints
        if answer.outcome is Outcome.FOUND:
            family.endpoints, family.empty_polls = answer.endpoints, 0
        elif answer.outcome is Outcome.NOBODY:
            family.empty_polls += 1
            if family.empty_polls >= EMPTY_POLLS:
                family.endpoints = frozenset()
        return family.endpoints is not known and family.endpoints != known

    def _reweigh(self, endpoints: Iterable[Endpoint]) -> None:
        """SRV may change a member's priority or weight without touching the member."""
        for endpoint in endpoints:
            member = self.members[endpoint.address]
            if member.endpoint != endpoint:
                member.endpoint = endpoint
                if member not in self._warming:
                    member.weight = endpoint.weight
                self._changed()

    def warm_up(self, now: float) -> None:
        """Raise the weights of the members that are new, a tenth at a time."""
        for member in list(self._warming):
            part = min(1.0, max(1, int(10 * (now - member.warm_since) / self.slow_start)) / 10)
            if part == 1.0:
                self._warming.discard(member)
            weight = member.endpoint.weight * part
            if member.weight != weight:
                member.weight = weight
                self._changed()

    def observe(self, member: Member, event: Event, now: float, reason: str = "", *, by_request: bool = False) -> None:
        """Take in what happened to a member; ``reason`` is the event's own words where there are better ones.

        ``by_request``: a user's request met with it, not a probe.
        """
        if not by_request:
            member.accused = False
        before = member.state
        after = TRANSITIONS[before].get(event)
        if after is None or after is before:
            return
        member.state, member.reason, member.since = after, reason or event.value, now
        member.closes = 0
        member.accused = by_request and after is State.DOWN
        if after is State.UP and before in (State.JOINING, State.DOWN) and self.slow_start:
            member.warm_since = now
            self._warming.add(member)
            self.warm_up(now)
        elif after in (State.DOWN, State.LEAVING):
            self._warming.discard(member)
        self._changed()
        self.on_flip(member, before, event)

    def drain(self, member: Member, drained: bool = True) -> None:
        """Give a member no more requests, whatever its state; or (``drained`` is false) as many as that allows."""
        if member.drained != drained:
            member.drained = drained
            self._changed()

    def answered(self, member: Member, closes: bool, now: float) -> None:
        """A member's response announced (``closes``) or did not announce that its connection ends with it."""
        member.answered = True
        if not closes:
            member.keeps_alive = True
            member.closes = 0
        elif member.keeps_alive:
            member.closes += 1
            if member.closes >= CLOSES_TO_SUSPECT:
                self.observe(member, Event.CLOSE_ANNOUNCED, now, by_request=True)

    def _changed(self) -> None:
        self._available = None
        self.generation += 1
