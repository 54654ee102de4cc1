"""The probe loop on a virtual clock: how many probes, how evenly, and whose comes first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.probe import Verdict
from balancer.members.probe_scheduler import (
    BURST,
    MAX_DOUBTFUL,
    MAX_PROBES,
    OVERLAP,
    PROBES_PER_SECOND,
    TICK,
    URGENT_PER_SECOND,
    Prober,
)
from balancer.types import Address
from tests.support.virtual import VirtualLoop

HANG = 1.0


class System:
    """Members that answer probes after ``seconds``, hang (no answer for HANG seconds) or refuse."""

    def __init__(
        self, loop: VirtualLoop, members: int, seconds: float = 0.001, settings: Settings | None = None
    ) -> None:
        self.loop = loop
        self.seconds = seconds
        self.hung: set[Address] = set()
        self.refusing: set[Address] = set()
        self.asked: list[tuple[float, Address]] = []
        self.under_way: Counter[Address] = Counter()
        self.most = 0
        self.membership = Membership(on_flip=self.flipped, on_unnamed=self.confirm)
        self.prober = Prober(self.probe, self.membership, settings or Settings(), clock=loop.time, rng=Random(1))
        self.found: list[Endpoint] = []
        self.join(members)

    def join(self, count: int) -> list[Member]:
        start = len(self.found)
        self.found += [
            Endpoint(Address(f"10.{it // 62500}.{it // 250 % 250}.{it % 250}", 80))
            for it in range(start, start + count)
        ]
        return self.resolve()

    def confirm(self) -> None:
        self.loop.call_soon(self.resolve)

    def resolve(self) -> list[Member]:
        answer = Answer("A", Outcome.FOUND, frozenset(self.found))
        change = self.membership.reconcile(Snapshot((answer,), self.loop.time()))
        self.prober.join(change.joined)
        return list(change.joined)

    def flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        if member.state is State.SUSPECT:
            self.prober.wake([member])

    async def probe(self, address: Address) -> Verdict:
        self.asked.append((self.loop.time(), address))
        self.under_way[address] += 1
        self.most = max(self.most, self.under_way.total())
        try:
            if address in self.hung:
                await asyncio.sleep(HANG)
                return HealthEvent.UNREACHABLE, "no answer in time"
            await asyncio.sleep(self.seconds)
            return (HealthEvent.REFUSED, "refused") if address in self.refusing else (HealthEvent.PROBE_OK, "ok")
        finally:
            self.under_way[address] -= 1

    async def up(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.membership.available) < count:
                await asyncio.sleep(TICK)

    def times(self, address: Address) -> list[float]:
        return [when for when, whom in self.asked if whom == address]

    def most_within(self, window: float) -> int:
        """The most probes that were begun in any time as long as the window."""
        times = [when for when, _ in self.asked]
        most = start = 0
        for end, when in enumerate(times):
            while times[start] <= when - window:
                start += 1
            most = max(most, end - start + 1)
        return most


def play(script: Callable[[System], Awaitable[None]], members: int) -> System:
    loop = VirtualLoop()

    async def run() -> System:
        system = System(loop, members)
        task = loop.create_task(system.prober.run())
        try:
            await script(system)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return system

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


@pytest.mark.parametrize("members", [1, 10, 100, 500])
def test_members_up_to_the_rate_are_each_probed_once_an_interval(members: int) -> None:
    async def script(system: System) -> None:
        await system.up(members)
        system.asked.clear()
        await asyncio.sleep(10)

    counts = Counter(whom for _, whom in play(script, members).asked)
    assert len(counts) == members
    assert min(counts.values()) >= 9 and max(counts.values()) <= 13


def test_members_in_numbers_are_probed_less_often_in_turn_and_evenly_spread() -> None:
    async def script(system: System) -> None:
        await system.up(4000)
        await asyncio.sleep(5)
        system.asked.clear()
        await asyncio.sleep(20)

    system = play(script, 4000)
    counts = Counter(whom for _, whom in system.asked)
    assert len(counts) == 4000
    assert min(counts.values()) >= 4 and max(counts.values()) <= 6
    assert len(system.asked) <= 20 * PROBES_PER_SECOND + BURST
    assert len(system.asked) >= 19 * PROBES_PER_SECOND
    assert system.most_within(0.9 * TICK) <= BURST


def test_thousands_that_hang_are_never_asked_beyond_the_bound() -> None:
    async def script(system: System) -> None:
        system.hung = {it.address for it in system.found}
        await asyncio.sleep(10)

    system = play(script, 3000)
    assert system.most <= MAX_DOUBTFUL
    assert max(Counter(whom for _, whom in system.asked).values()) <= OVERLAP
    assert len(system.asked) > 0.9 * 10 * MAX_DOUBTFUL / HANG  # No place is left empty, either.


def test_thousands_that_come_up_at_once_are_asked_at_the_urgent_rate_the_first_of_them_at_once() -> None:
    up = 0.0

    async def script(system: System) -> None:
        nonlocal up
        await system.up(1)
        assert system.loop.time() < 2 * TICK
        await system.up(5000)
        up = system.loop.time()

    system = play(script, 5000)
    assert system.most_within(0.9 * TICK) <= 2 * BURST  # those that are well are asked at the same time
    assert system.most_within(1.0) <= URGENT_PER_SECOND + PROBES_PER_SECOND + 2 * BURST
    assert up < 1.5 * 5000 / URGENT_PER_SECOND


def test_probes_do_not_wait_behind_a_thousand_that_hang() -> None:
    async def script(system: System) -> None:
        await system.up(50)
        fine = [it.address for it in system.membership.available]
        system.hung = {Endpoint(Address(f"10.0.{it // 250}.{it % 250}", 80)).address for it in range(50, 1050)}
        system.join(1000)
        await asyncio.sleep(8)
        system.asked.clear()
        began = system.loop.time()
        suspect = system.membership.members[fine[0]]
        system.membership.observe(suspect, HealthEvent.PROBE_FAILED, began)
        await asyncio.sleep(3)
        assert min(system.times(suspect.address)) < began + 0.15
        assert suspect.state is State.UP
        for address in fine[1:]:
            gaps = [b - a for a, b in pairwise(system.times(address))]
            assert gaps and max(gaps) < 1.3
        # One that comes while all of these hang does not have to wait for all of these.
        (late,) = system.join(1)
        await asyncio.sleep(0.3)
        assert late.state is State.UP

    system = play(script, 50)
    assert system.most <= MAX_PROBES


def test_member_that_starts_to_listen_late_is_found_quickly_among_thousands() -> None:
    async def script(system: System) -> None:
        await system.up(5000)
        (late,) = new = system.join(1)
        system.refusing.add(late.address)
        await asyncio.sleep(0.5)
        assert late.state is State.JOINING
        system.refusing.clear()
        await asyncio.sleep(0.3)
        assert new[0].state is State.UP

    play(script, 5000)


def test_members_that_have_failed_for_long_and_members_that_are_well_take_turns() -> None:
    async def script(system: System) -> None:
        await system.up(4000)
        system.refusing = {it.address for it in system.membership.available[::2]}
        await asyncio.sleep(20)
        assert len(system.membership.available) == 2000
        system.refusing.clear()
        await asyncio.sleep(6)
        assert len(system.membership.available) == 4000

    play(script, 4000)


def test_members_that_leave_while_they_wait_are_not_asked() -> None:
    async def script(system: System) -> None:
        gone = system.found[:1000]
        system.found = system.found[1000:]
        system.membership.reconcile(
            Snapshot((Answer("A", Outcome.FOUND, frozenset(system.found)),), system.loop.time())
        )
        await system.up(10)
        await asyncio.sleep(3)
        assert not {it.address for it in gone} & {whom for _, whom in system.asked}

    play(script, 1010)


# Outcomes of probes: succeeded, failed, not answered, draining.
OUTCOMES = {
    "+": HealthEvent.PROBE_OK,
    "-": HealthEvent.PROBE_FAILED,
    "?": HealthEvent.PROBE_UNANSWERED,
    "d": HealthEvent.PROBE_DRAINING,
}


class Outcomes:
    """One member whose probes have these outcomes; ``states`` that it was in after each, and ``reasons``."""

    def __init__(self, outcomes: str, rise: int, fall: int) -> None:
        self.states: list[State] = []
        self.reasons: list[str] = []
        loop = VirtualLoop()
        try:
            loop.run_until_complete(self._play(loop, outcomes, Settings(health_rise=rise, health_fall=fall)))
        finally:
            loop.close()

    async def _play(self, loop: VirtualLoop, outcomes: str, settings: Settings) -> None:
        events = iter(outcomes)
        ends = asyncio.Event()

        async def probe(address: Address) -> Verdict:
            self._note()
            if (outcome := next(events, None)) is None:
                ends.set()
                await asyncio.sleep(HANG)
            return OUTCOMES[outcome or "?"], "200"

        membership = Membership()
        prober = Prober(probe, membership, settings, clock=loop.time, rng=Random(1))

        def resolve() -> None:
            answer = Answer("A", Outcome.FOUND, frozenset({Endpoint(Address("10.0.0.1", 80))}))
            prober.join(membership.reconcile(Snapshot((answer,), loop.time())).joined)

        def confirm() -> None:
            loop.call_soon(resolve)

        membership.on_unnamed = confirm
        resolve()
        (self._member,) = membership.members.values()
        task = loop.create_task(prober.run())
        await ends.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _note(self) -> None:
        self.states.append(self._member.state)
        self.reasons.append(self._member.reason)

    @property
    def comings(self) -> int:
        """How often it came up again after it had gone."""
        gone = [state in (State.DOWN, State.DRAINING) for state in self.states if state is not State.SUSPECT]
        return sum(before and not after for before, after in pairwise(gone))


rises_and_falls = st.integers(1, 5)


@given(st.text(OUTCOMES, max_size=30), rises_and_falls, rises_and_falls)
@settings(max_examples=60, deadline=None)
def test_member_that_answers_well_is_up_after_rise_probes_whatever_came_before(
    before: str, rise: int, fall: int
) -> None:
    assert Outcomes(before + rise * "+", rise, fall).states[-1] is State.UP


@given(st.text(OUTCOMES, max_size=30), rises_and_falls, rises_and_falls)
@settings(max_examples=60, deadline=None)
def test_member_that_was_up_comes_back_only_by_rise_probes_in_a_row(outcomes: str, rise: int, fall: int) -> None:
    states = Outcomes("+" + outcomes, rise, fall).states[1:]
    for place, (before, after) in enumerate(pairwise(states), 1):
        if before in (State.DOWN, State.DRAINING) and after is State.UP:
            assert ("+" + outcomes)[: place + 1].endswith(rise * "+")
        if after is State.DOWN and before is not State.DOWN:
            assert fall <= place and not set(outcomes[place - fall : place]) & {"+", "d"}


@given(st.sampled_from(["+-", "+?", "+d", "-+", "+-?"]), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_member_whose_probes_alternate_does_not_flap(turn: str, rise: int, fall: int) -> None:
    """A rise above 1 keeps it out once it has gone, whatever it says; a fall above 1 keeps a failing one in."""
    comings = Outcomes("+" + 10 * turn, rise, fall).comings
    if rise > 1 or (fall > turn.count("-") + turn.count("?") and "d" not in turn):
        assert not comings


@pytest.mark.parametrize("ill", ["-", "?", "d", "----", "d-?"])
def test_new_member_comes_up_by_one_probe_whatever_the_rise(ill: str) -> None:
    assert Outcomes(ill + "+", rise=5, fall=2).states[-1] is State.UP


def test_suspect_is_up_again_by_one_probe_whatever_the_rise() -> None:
    assert Outcomes("+-+", rise=5, fall=2).states[1:] == [State.UP, State.SUSPECT, State.UP]


@pytest.mark.parametrize(("ill", "state"), [("--", State.DOWN), ("d", State.DRAINING)])
def test_member_that_comes_back_says_how_many_probes_have_succeeded(ill: str, state: State) -> None:
    it = Outcomes(f"+{ill}++-+++", rise=3, fall=2)
    reasons = ["200, 1 of 3 probes in a row", "200, 2 of 3 probes in a row", "200"]
    assert it.reasons[-6:] == [*reasons, *reasons]
    assert it.states[-7:] == [state] * 6 + [State.UP]
