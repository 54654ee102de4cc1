"""Limits that find themselves: by a simulation of members, and step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.admission import Admission
from balancer.dispatch.limit_finder import LimitFinder
from balancer.dispatch.limits import FEWEST, START, AutoLimit, Phase
from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.http.request import Request
from balancer.members.health import HealthEvent
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.outcome import Outcome as Ended
from balancer.policies import RoundRobin
from balancer.types import Address
from bench.simulation.limits import KINDS, Setup, World
from tests.support.nought import Nought

REQUEST = Request("GET", b"/", [], "192.0.2.1")
NUMBERS = {"sync": (1, 2), "threads": (6, 12), "threads that thrash": (6, 11), "asyncio": (80, 180)}


@pytest.mark.parametrize("times", ["constant", "exponential"])
@pytest.mark.parametrize("name", NUMBERS)
def test_limit_finds_the_number_of_each_kind_of_member(name: str, times: str) -> None:
    kind = KINDS[name]
    world = World(Setup(kind, times, 3.0)).run()
    assert world.goodput(30, 50) > 0.85 * kind.capacity
    least, most = NUMBERS[name]
    assert all(least <= side.found.size < most + 0.5 for side in world.sides[0] if side.found)


@pytest.mark.parametrize("name", ["sync", "threads", "threads that thrash"])
def test_limit_that_begins_too_high_comes_down(name: str) -> None:
    kind = KINDS[name]
    world = World(Setup(kind, "exponential", 3.0, start=4 * kind.knee)).run()
    assert all(side.found.size < 2 * kind.knee + 1 for side in world.sides[0] if side.found)


@pytest.mark.parametrize("name", ["sync", "threads that thrash", "asyncio"])
def test_goodput_is_there_again_after_the_speed_has_halved(name: str) -> None:
    kind = KINDS[name]
    world = World(Setup(kind, "constant", 3.0, halved_at=20.0)).run()
    assert world.goodput(40, 50) > 0.9 * kind.capacity / 2


def test_two_balancers_share_what_a_member_can_do() -> None:
    kind = KINDS["threads that thrash"]
    world = World(Setup(kind, "constant", 3.0, balancers=2)).run()
    assert world.goodput(30, 50) > 0.7 * kind.capacity


def test_simulated_members_answer_what_is_offered_below_their_capacity() -> None:
    kind = KINDS["threads"]
    world = World(Setup(kind, "constant", 0.5, limit=8, end=20.0)).run()
    assert world.goodput(10, 20) == pytest.approx(0.5 * kind.capacity, rel=0.1)


def test_latency_that_never_rises_lets_the_limit_grow() -> None:
    limit, now = AutoLimit(), 0.0
    for _ in range(1000):
        now += 0.1 / limit.limit
        limit.learn(0.1, limit.limit, now)
    assert limit.size > 10 * START


def test_idle_member_keeps_its_limit() -> None:
    limit = AutoLimit(10, found=True)
    for number in range(10_000):
        limit.learn(0.1 + number, 1, float(number))
    assert (limit.size, limit.limit, limit.phase) == (10, 10, Phase.HOLD)


def test_failures_lower_the_limit_while_it_is_used_and_never_below_one() -> None:
    limit = AutoLimit(16, found=True)
    for _ in range(1000):
        limit.fail(1, 0.0)
    assert limit.limit == 16
    for _ in range(1000):
        limit.fail(limit.limit, 0.0)
        assert limit.limit >= 1
    assert limit.limit == 1


def test_few_failures_do_not_lower_the_limit() -> None:
    limit = AutoLimit(100, found=True)
    for _ in range(10):
        for _ in range(19):
            limit.learn(0.1, 100, 0.0)
        limit.fail(100, 0.0)
    assert limit.size == 100


def test_client_that_leaves_early_is_no_failure() -> None:
    limit = AutoLimit(8, found=True)
    for _ in range(100):
        limit.learn(0.1, 8, 0.0)
    for _ in range(100):
        limit.fail(limit.limit, 0.0, waited=0.05)
    assert limit.size == 8


def test_dip_without_answers_ends_at_its_deadline() -> None:
    limit, now = AutoLimit(16, found=True), 0.0
    while limit.phase is not Phase.DIP:
        now += 0.01
        limit.learn(0.1, 16, now)
    assert limit.limit == 8
    limit.expire(limit.deadline - 0.01)
    assert limit.phase is Phase.DIP
    limit.expire(limit.deadline)
    assert (limit.phase, limit.limit) == (Phase.HOLD, 16)


class System:
    """Members with limits that find themselves. ``calls``: timers that are to come."""

    def __init__(self, members: int) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], None]]] = []
        self.membership = Membership()
        self.queue = PendingQueue(100, 0)
        self.admission = Admission(self.membership, RoundRobin(Nought()), self.queue, START)
        self.finder = LimitFinder(self.membership, self.admission, self.call_later, lambda: self.now)
        self.resolve(members)

    def call_later(self, delay: float, call: Callable[[], None]) -> System:
        self.calls.append((self.now + delay, call))
        return self

    def cancel(self) -> None:
        raise NotImplementedError("no timer is cancelled")

    def resolve(self, members: int) -> None:
        found = frozenset(Endpoint(Address(f"10.0.0.{number}", 80)) for number in range(members))
        self.membership.reconcile(Snapshot((Answer("A", Outcome.FOUND, found),), 0.0))
        for member in self.members:
            self.membership.observe(member, HealthEvent.PROBE_OK, 0.0)

    @property
    def members(self) -> list[Member]:
        return list(self.membership.members.values())

    def take(self) -> Member | None:
        return self.admission.acquire(REQUEST, ())

    def use(self, rounds: int, status: int, failure: str = "", latency: float = 0.1) -> None:
        """Fill all slots and give them back, again and again."""
        for _ in range(rounds):
            taken = []
            while member := self.take():
                taken.append(member)
            self.now += 0.1
            for member in taken:
                self.admission.release(member)
                self.finder.learn(member, Ended(status, failure, latency))


def test_new_member_begins_with_the_limit_of_its_peers() -> None:
    system = System(2)
    assert [member.limit for member in system.members] == [START, START]
    system.use(30, 200)
    grown = min(member.limit for member in system.members)
    assert grown > START
    system.resolve(3)
    assert system.members[2].limit >= grown


def test_request_that_waits_gets_a_slot_when_the_limit_grows() -> None:
    system = System(1)
    given: list[Member] = []

    def give(member: Member) -> bool:
        given.append(member)
        return True

    while system.take():
        pass
    system.admission.wait(QueuedRequest(REQUEST, give=give), 10.0)
    (member,) = system.members
    system.admission.set_limit(member, START + 1)
    assert given == [member]
    assert member.in_flight == START + 1


def test_dip_has_a_timer_that_ends_it() -> None:
    system = System(1)
    while not system.calls:
        system.use(1, 200, latency=0.1 * max(1.0, system.members[0].limit / START))
    limit = system.members[0].limit
    system.now, expire = system.calls[-1]
    expire()
    assert system.members[0].limit != limit


def test_streams_do_not_count_for_the_limit() -> None:
    system = System(1)
    (member,) = system.members
    for _ in range(50):
        assert system.take() is member
        system.finder.count_stream(member, 1)
    assert (member.in_flight, member.limit) == (50, 50 + START)
    for _ in range(50):
        system.finder.count_stream(member, -1)
        system.admission.release(member)
        ended = Ended(101, "", 5.0)
        ended.is_stream = True
        system.finder.learn(member, ended)
    assert (member.in_flight, member.limit) == (0, START)


@pytest.mark.parametrize(("status", "failure"), [(503, ""), (429, ""), (0, "timeout"), (0, "died"), (200, "truncated")])
def test_overload_lowers_the_limit(status: int, failure: str) -> None:
    system = System(1)
    system.use(2 * FEWEST, status, failure)
    assert system.members[0].limit < START


@pytest.mark.parametrize(("status", "failure"), [(500, ""), (0, "refused"), (0, "not_http")])
def test_quick_failures_say_nothing_of_the_limit(status: int, failure: str) -> None:
    system = System(1)
    system.use(100, status, failure, latency=0.0001)
    assert system.members[0].limit == START
