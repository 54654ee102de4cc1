"""Asks members whether they can take requests, all the time, off the path of requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from heapq import heappop, heappush
from math import inf
from random import Random

from balancer.discovery.pace import URGENT_INTERVAL
from balancer.members.health import LATE_SECONDS, HealthEvent, State, next_probe, weigh
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.probe import Probe
from balancer.types import Address, Clock

# How many probes of a member may be under way. A container is in DNS before its network is set up, and the
# connection that is asked for too early hangs for a second; the next one, asked for a tenth of a second
# later, may be there at once.
OVERLAP = 10

# The finest step in which probes are scheduled, in seconds.
TICK = 0.02

# Probes under way at once; those of them whose member is new or down, so that it may not answer before a time-out;
# and what members get of these that were asked before. However many hang, there is room for the others.
PROBES_AT_ONCE = 256
DOUBTFUL_AT_ONCE = 192
FAILED_AT_ONCE = 144
# A member that has not answered is asked once more only while fewer than this hang.
OVERLAP_WITHIN = 96
# Probes begun in a second: of members that are well, or have failed for long, and of those in whose state something
# has changed. A probe costs some 50 us (docs/performance/large-membership.md): more members than the first number are
# each probed less often than every HEALTH_INTERVAL.
PROBES_PER_SECOND = 1000
URGENT_PER_SECOND = 2500
# Those of either kind that are begun in one go: a few members need not wait for each other, and requests need not
# wait for thousands.
BURST = 50
# Failures in a row after which a member that is new or down waits among those that have failed for long.
RETRIES = 8

# Events that a member's own answer brings.
ANSWERS = frozenset({HealthEvent.PROBE_OK, HealthEvent.PROBE_DRAINING, HealthEvent.PROBE_FAILED})


class Urgency(IntEnum):
    """Whose probe comes first.

    ALARM: it was well a moment ago, and something has happened. NEW: it has never been asked. RETRY: it failed lately,
    or is asked once more while it has not answered. REGULAR: it is well. FAILING: it has failed for a while.
    """

    ALARM = 0
    NEW = 1
    RETRY = 2
    REGULAR = 3
    FAILING = 4


URGENT = [Urgency.ALARM, Urgency.NEW, Urgency.RETRY]
PATIENT = [Urgency.REGULAR, Urgency.FAILING]


class TokenBucket:
    """A rate: so many ``per_second`` are there to be taken, and BURST at once where none were for a while."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self.left: float = BURST
        self._filled = -inf

    def fill(self, now: float) -> None:
        self.left = min(BURST, self.left + self._rate * (now - self._filled))
        self._filled = now

    def next_at(self, now: float) -> float:
        """When there is one to be taken."""
        return now + max(0.0, 1 - self.left) / self._rate


class Prober:
    """Probes each member when it is due, or as soon after that as the bounds allow.

    ``asks_path``: a probe can tell more than that connections are accepted. ``fall``: failed probes in a row after
    which a member is down. ``on_answer``: called with the address of a member whose process has answered.
    """

    def __init__(
        self,
        probe: Probe,
        membership: Membership,
        interval: float,
        clock: Clock,
        rng: Random,
        asks_path: bool,
        fall: int = 2,
        on_answer: Callable[[Address], None] = lambda address: None,
    ) -> None:
        self._probe = probe
        self._membership = membership
        self._interval = interval
        self._clock = clock
        self._rng = rng
        self._asks_path = asks_path
        self._fall = fall
        self._on_answer = on_answer
        self._hurry = asyncio.Event()
        # When who is due: entries that are true no longer are skipped when their time has come.
        self._due: list[tuple[float, int, Member]] = []
        self._entries = 0
        # Who is due and waits for a place, in the order in which they came to be due.
        self._waiting: list[OrderedDict[Member, None]] = [OrderedDict() for _ in Urgency]
        self._queues: dict[Member, Urgency] = {}
        self._urgent = TokenBucket(URGENT_PER_SECOND)
        self._regular = TokenBucket(PROBES_PER_SECOND)
        # Probes under way, and how many of them are of members that may well not answer.
        self.under_way = 0
        self._doubtful = 0

    def join(self, members: Sequence[Member]) -> None:
        """These are new. In any order: several balancers must not all begin with the same ones."""
        for member in self._rng.sample(members, len(members)):
            self._waiting[Urgency.NEW][member] = None
            self._queues[member] = Urgency.NEW
        self._hurry.set()

    def wake(self, members: Iterable[Member]) -> None:
        """Something happened to these members: probe them as soon as URGENT_INTERVAL since the last probe allows."""
        now = self._clock()
        for member in members:
            member.probe_at = min(member.probe_at, max(now, member.probed_at + URGENT_INTERVAL))
            if member.probe_at <= now:
                self._wait(member)
            else:
                self._schedule(member)
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._hurry.clear()
                now = self._clock()
                self._membership.warm_up(now)
                while self._due and self._due[0][0] <= now:
                    at, _, member = heappop(self._due)
                    if at == member.probe_at:
                        self._wait(member)
                again = self._start(now, probes)
                await asyncio.sleep(TICK)
                due = min(again, self._membership.warms_at(), self._due[0][0] if self._due else inf)
                try:
                    async with asyncio.timeout(None if due == inf else max(0.0, due - self._clock())):
                        await self._hurry.wait()
                except TimeoutError:
                    pass

    def _schedule(self, member: Member) -> None:
        """Its time has changed: the entry of before is not true any more."""
        self._entries += 1
        heappush(self._due, (member.probe_at, self._entries, member))

    def _wait(self, member: Member) -> None:
        """It is due. One whose probe hangs comes back when that has ended."""
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
            case State.UP | State.DRAINING if not self._woken:
                return Urgency.REGULAR
            case State.SUSPECT:
                return Urgency.ALARM
            case State.JOINING if not member.probes:
                return Urgency.NEW
        return Urgency.RETRY if self._woken or member.probe_failures < RETRIES else Urgency.FAILING

    @property
    def _woken(self) -> bool:
        """Whether all members are probed as quickly as the bounds allow: while none is available."""
        return not self._membership.has_available

    def _start(self, now: float, probes: asyncio.TaskGroup) -> float:
        """Probe those who wait, as far as the bounds allow; returns when to look again without other news."""
        self._urgent.fill(now)
        self._regular.fill(now)
        for urgency in URGENT:
            while self._waiting[urgency] and self._urgent.left >= 1 and self._has_place(urgency):
                self._urgent.left -= self._begin(self._next(urgency), now, probes)
        # Neither those who are well nor those who fail keep the others waiting: they take turns.
        wanted = PATIENT
        while self._regular.left >= 1 and (
            wanted := [it for it in wanted if self._waiting[it] and self._has_place(it)]
        ):
            for urgency in wanted:
                self._regular.left -= self._begin(self._next(urgency), now, probes)
        again = inf
        if any(self._waiting[it] and self._has_place(it) for it in URGENT):
            again = self._urgent.next_at(now)
        if any(self._waiting[it] and self._has_place(it) for it in PATIENT):
            again = min(again, self._regular.next_at(now))
        return again

    def _next(self, urgency: Urgency) -> Member:
        member, _ = self._waiting[urgency].popitem(last=False)
        del self._queues[member]
        return member

    def _has_place(self, urgency: Urgency) -> bool:
        """Whether a probe more may be under way. Those that may well hang leave some places to the others."""
        if urgency in (Urgency.ALARM, Urgency.REGULAR):
            return self.under_way < PROBES_AT_ONCE
        room = DOUBTFUL_AT_ONCE if urgency is Urgency.NEW else FAILED_AT_ONCE
        return self._doubtful < room and self.under_way < PROBES_AT_ONCE

    def _begin(self, member: Member, now: float, probes: asyncio.TaskGroup) -> int:
        """Returns how many probes were begun: none where there is no need, or no member any more."""
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
        """Whether to ask one more time where an answer is still to come."""
        hurry = member.state is State.JOINING or self._woken
        return member.probing < OVERLAP and self._doubtful < OVERLAP_WITHIN if hurry else member.probing < 1

    def _delay(self, member: Member) -> float:
        return next_probe(member.state, member.probe_failures, self._interval, self._woken, self._rng)

    def _is_redundant(self, member: Member) -> bool:
        """Whether a probe would say nothing new: a member that answers requests accepts connections."""
        return member.answered and member.state is State.UP and not self._asks_path

    async def _run_probe(self, member: Member, number: int, doubtful: bool) -> None:
        late = asyncio.get_running_loop().call_later(LATE_SECONDS, self._late, member, number)
        try:
            event, reason = await self._probe(member.address)
        finally:
            late.cancel()
            member.probing -= 1
            self.under_way -= 1
            self._doubtful -= doubtful
            self._hurry.set()
        if number >= member.last_probe_answered:  # Else a later one has told more.
            now = self._clock()
            member.last_probe_answered = number
            member.probed_at = now
            if event is not None:
                if self._asks_path and event in ANSWERS:
                    self._on_answer(member.address)
                answers = event in (HealthEvent.PROBE_OK, HealthEvent.PROBE_DRAINING)
                member.probe_failures = 0 if answers else member.probe_failures + 1
                before = member.state
                self._membership.observe(member, weigh(event, member.probe_failures, self._fall), now, reason)
                next_at = now + self._delay(member)
                member.probe_at = next_at if member.state is not before else min(member.probe_at, next_at)
        if member.state is not State.LEAVING:
            self._schedule(member)

    def _late(self, member: Member, number: int) -> None:
        """A probe is still unanswered. It may be yet, so nothing is known but that the member is busy or hangs."""
        if member.state is State.UP and number > member.last_probe_answered:
            words = f"no answer to a probe for {LATE_SECONDS:g} s"
            self._membership.observe(member, HealthEvent.PROBE_UNANSWERED, self._clock(), words)
