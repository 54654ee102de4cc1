"""Probes of the readiness of all members, at all times, off the path of requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from heapq import heappop, heappush, heapreplace
from math import inf
from random import Random

from balancer.config.settings import Settings
from balancer.discovery.pace import URGENT_INTERVAL
from balancer.loop_time import loop_time
from balancer.members.health import LATE_SECONDS, HealthEvent, State, next_probe, weigh
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.probe import Probe
from balancer.types import Address, Clock

# Probes of one member that may be under way. A container is in DNS before its network is set up. A connection tried too
# early hangs for a second, and one tried a tenth of a second later may succeed.
OVERLAP = 10

# The finest step in which probes are scheduled, in seconds.
TICK = 0.02

# Probes that may be under way; those of members that are new or down, which may not answer before a time-out; and the
# number of these at which a member that was probed before has to wait. However many hang, there is room for others.
MAX_PROBES = 256
MAX_DOUBTFUL = 192
MAX_DOUBTFUL_BEFORE_RETRY = 144
# A member that has not answered gets one more probe only while fewer than this hang.
OVERLAP_WITHIN = 96
# Probes begun in a second: of members that are well, or have failed for long, and of those in whose state something
# is changing. A probe costs some 50 us (docs/performance/large-membership.md): more members than the first number are
# each probed less often than every HEALTH_INTERVAL.
PROBES_PER_SECOND = 1000
URGENT_PER_SECOND = 2500
# Probes of either kind that are begun in one step: a few members need not wait for each other, and requests need not
# wait for thousands.
BURST = 50
# Failures in a row after which a member that is new or down waits among those that have failed for long.
RETRIES = 8

# Events of a member's own answer.
ANSWERS = frozenset({HealthEvent.PROBE_OK, HealthEvent.PROBE_DRAINING, HealthEvent.PROBE_FAILED})


class Urgency(IntEnum):
    """The order of probes, most urgent first.

    ALARM: the member was well a moment ago, and something has happened. NEW: it has had no probe. RETRY: it failed
    lately, or has not answered yet. REGULAR: it is well. FAILING: it has failed for a while.
    """

    ALARM = 0
    NEW = 1
    RETRY = 2
    REGULAR = 3
    FAILING = 4


URGENT = [Urgency.ALARM, Urgency.NEW, Urgency.RETRY]
PATIENT = [Urgency.REGULAR, Urgency.FAILING]


class TokenBucket:
    """A rate of ``per_second`` tokens, with BURST of them at once after a pause. ``left``: tokens to be taken."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self.left: float = BURST
        self._filled = -inf

    def fill(self, now: float) -> None:
        """Add the tokens of the time since the last call."""
        self.left = min(BURST, self.left + self._rate * (now - self._filled))
        self._filled = now

    def next_at(self, now: float) -> float:
        """Return when there is a token to be taken."""
        return now + max(0.0, 1 - self.left) / self._rate


class Prober:
    """Probes each member when it is due, or as soon after that as the bounds allow.

    ``on_answer``: called with the address of a member whose process has answered.
    """

    def __init__(
        self,
        probe: Probe,
        membership: Membership,
        settings: Settings,
        clock: Clock,
        rng: Random,
        on_answer: Callable[[Address], None] = lambda address: None,
    ) -> None:
        self._probe = probe
        self._membership = membership
        self._interval = settings.health_interval
        # Whether a probe shows more than that connections are accepted.
        self._requests_path = settings.health_path is not None
        self._rise = settings.health_rise
        self._fall = settings.health_fall
        self._clock = clock
        self._rng = rng
        self._on_answer = on_answer
        self._wakened = asyncio.Event()
        # When members are due: entries that are out of date are skipped when their time has come.
        self._due: list[tuple[float, int, Member]] = []
        self._entries = 0
        # Members that are due and wait for a place, in the order in which they came to be due.
        self._waiting: list[OrderedDict[Member, None]] = [OrderedDict() for _ in Urgency]
        self._queues: dict[Member, Urgency] = {}
        self._urgent = TokenBucket(URGENT_PER_SECOND)
        self._regular = TokenBucket(PROBES_PER_SECOND)
        # Probes under way, and those of them that may well get no answer.
        self.under_way = 0
        self._doubtful = 0

    def join(self, members: Sequence[Member]) -> None:
        """Probe new members, in random order: several balancers must not all begin with the same ones."""
        for member in self._rng.sample(members, len(members)):
            self._waiting[Urgency.NEW][member] = None
            self._queues[member] = Urgency.NEW
        self._wakened.set()

    def wake(self, members: Iterable[Member]) -> None:
        """Probe members, to which something has happened, URGENT_INTERVAL after their last probe at the earliest."""
        now = self._clock()
        for member in members:
            member.probe_at = min(member.probe_at, max(now, member.probed_at + URGENT_INTERVAL))
            if member.probe_at <= now:
                self._wait(member)
            else:
                self._schedule(member)
        self._wakened.set()

    async def run(self) -> None:
        """Probe members until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._wakened.clear()
                now = self._clock()
                self._membership.warm_up(now)
                self._take_due(now)
                again = self._start(now, probes)
                await asyncio.sleep(TICK)
                due = min(again, self._membership.warms_at(), self._due[0][0] if self._due else inf)
                try:
                    async with asyncio.timeout(None if due == inf else max(0.0, due - self._clock())):
                        await self._wakened.wait()
                except TimeoutError:
                    pass

    def _take_due(self, now: float) -> None:
        """Queue the members that are due, except those that need no probe: under load most of a thousand a second."""
        due = self._due
        while due and due[0][0] <= now:
            at, number, member = due[0]
            if at == member.probe_at and self._is_redundant(member) and member not in self._queues:
                member.answered = False
                member.probe_at = now + self._delay(member)
                heapreplace(due, (member.probe_at, number, member))
                continue
            heappop(due)
            if at == member.probe_at:
                self._wait(member)

    def _schedule(self, member: Member) -> None:
        """Schedule a member, whose earlier entry is out of date."""
        self._entries += 1
        heappush(self._due, (member.probe_at, self._entries, member))

    def _wait(self, member: Member) -> None:
        """Queue a member that is due. One whose probe hangs comes back when that has ended."""
        if member.state is State.LEAVING or (member.probing and not self._may_probe(member)):
            return
        urgency = self._urgency(member)
        before = self._queues.get(member)
        if before is not urgency:
            if before is not None:
                del self._waiting[before][member]
            self._waiting[urgency][member] = None
            self._queues[member] = urgency

    def _urgency(self, member: Member) -> Urgency:
        if member.probing:
            return Urgency.RETRY
        match member.state:
            case State.UP | State.DRAINING if not self._is_urgent:
                return Urgency.REGULAR
            case State.SUSPECT:
                return Urgency.ALARM
            case State.JOINING if not member.probes:
                return Urgency.NEW
        return Urgency.RETRY if self._is_urgent or member.probe_failures < RETRIES else Urgency.FAILING

    @property
    def _is_urgent(self) -> bool:
        """Whether all members are probed as quickly as the bounds allow: while none is available."""
        return not self._membership.has_available

    def _start(self, now: float, probes: asyncio.TaskGroup) -> float:
        """Probe members that wait, as far as the bounds allow; return when to try again at the latest."""
        self._urgent.fill(now)
        self._regular.fill(now)
        for urgency in URGENT:
            while self._waiting[urgency] and self._urgent.left >= 1 and self._has_place(urgency):
                self._urgent.left -= self._begin(self._next(urgency), now, probes)
        # Members that are well and those that fail take turns, so that neither keep the other waiting.
        wanted = PATIENT
        while self._regular.left >= 1 and (
            wanted := [kind for kind in wanted if self._waiting[kind] and self._has_place(kind)]
        ):
            for urgency in wanted:
                self._regular.left -= self._begin(self._next(urgency), now, probes)
        again = inf
        if any(self._waiting[kind] and self._has_place(kind) for kind in URGENT):
            again = self._urgent.next_at(now)
        if any(self._waiting[kind] and self._has_place(kind) for kind in PATIENT):
            again = min(again, self._regular.next_at(now))
        return again

    def _next(self, urgency: Urgency) -> Member:
        member, _ = self._waiting[urgency].popitem(last=False)
        del self._queues[member]
        return member

    def _has_place(self, urgency: Urgency) -> bool:
        """Whether one more probe may be under way. Those that may well hang leave some places to the others."""
        if urgency in (Urgency.ALARM, Urgency.REGULAR):
            return self.under_way < MAX_PROBES
        room = MAX_DOUBTFUL if urgency is Urgency.NEW else MAX_DOUBTFUL_BEFORE_RETRY
        return self._doubtful < room and self.under_way < MAX_PROBES

    def _begin(self, member: Member, now: float, probes: asyncio.TaskGroup) -> int:
        """Return how many probes were begun: none where there is no need, or no member any more."""
        if member.state is State.LEAVING:
            return 0
        begun = 0
        if not self._is_redundant(member) and (not member.probing or self._may_probe(member)):
            begun = 1
            member.probes += 1
            member.probing += 1
            doubtful = member.state in (State.JOINING, State.DOWN)
            self.under_way += 1
            self._doubtful += doubtful
            probes.create_task(self._run_probe(member, member.probes, doubtful))
        member.answered = False
        member.probe_at = now + self._delay(member)
        self._schedule(member)
        return begun

    def _may_probe(self, member: Member) -> bool:
        """Whether one more probe may be sent while an answer is still to come."""
        urgent = member.state is State.JOINING or self._is_urgent
        return member.probing < OVERLAP and self._doubtful < OVERLAP_WITHIN if urgent else member.probing < 1

    def _delay(self, member: Member) -> float:
        return next_probe(member.state, member.probe_failures, self._interval, self._is_urgent, self._rng)

    def _is_redundant(self, member: Member) -> bool:
        """Whether a probe would show nothing new: a member that answers requests accepts connections."""
        return member.answered and member.state is State.UP and not self._requests_path

    async def _run_probe(self, member: Member, number: int, doubtful: bool) -> None:
        late = loop_time().call_patiently(LATE_SECONDS, self._late, member, number)
        try:
            event, reason = await self._probe(member.address)
        finally:
            late.cancel()
            member.probing -= 1
            self.under_way -= 1
            self._doubtful -= doubtful
            self._wakened.set()
        if number >= member.last_probe_answered:  # Else a later one has shown more.
            now = self._clock()
            member.last_probe_answered = number
            member.probed_at = now
            if event is not None:
                if self._requests_path and event in ANSWERS:
                    self._on_answer(member.address)
                before = member.state
                self._take(member, event, now, reason)
                next_at = now + self._delay(member)
                member.probe_at = next_at if member.state is not before else min(member.probe_at, next_at)
        if member.state is not State.LEAVING:
            self._schedule(member)

    def _take(self, member: Member, event: HealthEvent, now: float, reason: str) -> None:
        """Count the outcome of a probe, and have the membership observe what it amounts to."""
        succeeded = event is HealthEvent.PROBE_OK
        member.probe_successes = member.probe_successes + 1 if succeeded else 0
        member.probe_failures = 0 if succeeded or event is HealthEvent.PROBE_DRAINING else member.probe_failures + 1
        rise = self._rise if member.is_returning else 1
        amounts = weigh(event, member.probe_successes or member.probe_failures, rise, self._fall)
        if amounts is HealthEvent.PROBE_RISING:
            reason = f"{reason}, {member.probe_successes} of {rise} probes in a row"
        self._membership.observe(member, amounts, now, reason)

    def _late(self, member: Member, number: int) -> None:
        """Note a late probe. It may still be answered, so the member may be busy as well as hung."""
        if member.state is State.UP and number > member.last_probe_answered:
            words = f"no answer to a probe for {LATE_SECONDS:g} s"
            self._membership.observe(member, HealthEvent.PROBE_UNANSWERED, self._clock(), words)
