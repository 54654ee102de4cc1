from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.admission import GATHER_MIN, GATHER_SECONDS, GATHER_SECONDS_MAX, Admission, GradualRelease
from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.members.health import HealthEvent
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.policies import RoundRobin
from balancer.types import Address
from tests.support.nought import Nought

REQUEST = Request("GET", b"/", [], "192.0.2.1")


class System:
    """``members`` members that are up, and what was given to whom."""

    def __init__(self, members: int, limit: int = 0, queue: PendingQueue | None = None) -> None:
        self.membership = Membership()
        self.queue = PendingQueue(100, 0) if queue is None else queue
        self.admission = Admission(self.membership, RoundRobin(Nought()), self.queue, limit)
        self.given: list[tuple[str, Member]] = []
        self.resolve(members)
        for member in self.members:
            self.membership.observe(member, HealthEvent.PROBE_OK, 0.0)

    def resolve(self, members: int) -> None:
        found = frozenset(Endpoint(Address(f"10.0.0.{number}", 80)) for number in range(members))
        self.membership.reconcile(Snapshot((Answer("A", Outcome.FOUND, found),), 0.0))

    @property
    def members(self) -> list[Member]:
        return list(self.membership.members.values())

    def down(self, member: Member, *, by_request: bool = True) -> None:
        self.membership.observe(member, HealthEvent.REFUSED, 0.0, by_request=by_request)

    def take(self) -> Member:
        member = self.admission.acquire(REQUEST, ())
        assert member
        return member

    def come_up(self, *members: Member) -> None:
        """As the balancer does it."""
        for member in members:
            before = self.membership.has_available
            self.membership.observe(member, HealthEvent.PROBE_OK, 1.0)
            if not before:
                self.admission.begin_gradual_release()
            self.admission.assign_queued()

    def crowd(self, waiting: int) -> None:
        """All are down, and so many wait."""
        for member in self.members:
            self.down(member, by_request=False)
        for number in range(waiting):
            self.wait(str(number))

    @property
    def in_flight(self) -> list[int]:
        return [it.in_flight for it in self.members]

    def wait(self, name: str, *tried: Member, gone: bool = False) -> QueuedRequest:
        queued = QueuedRequest(REQUEST, frozenset(tried))
        assert self.admission.acquire(REQUEST, tried) is None

        def give(member: Member) -> bool:
            if not gone:
                self.given.append((name, member))
            return not gone

        queued.give = give
        self.admission.wait(queued, 10.0)
        return queued


def test_member_is_given_no_more_than_its_limit() -> None:
    system = System(2, limit=3)
    taken = [system.take() for _ in range(6)]
    assert [it.in_flight for it in system.members] == [3, 3]
    assert system.admission.acquire(REQUEST, ()) is None
    system.admission.release(taken[0])
    assert system.take() is taken[0]


def test_request_without_a_limit_does_not_wait() -> None:
    system = System(1)
    for _ in range(1000):
        system.take()
    assert system.members[0].in_flight == 1000


def test_freed_slot_goes_to_the_request_that_has_waited_longest() -> None:
    system = System(2, limit=1)
    one, other = system.take(), system.take()
    system.wait("first")
    system.wait("second")
    system.admission.release(other)
    system.admission.release(one)
    assert system.given == [("first", other), ("second", one)]
    assert (one.in_flight, other.in_flight, len(system.queue)) == (1, 1, 0)


def test_new_request_does_not_overtake_those_that_wait() -> None:
    system = System(1)
    (member,) = system.members
    system.down(member)
    system.wait("first")
    system.membership.observe(member, HealthEvent.PROBE_OK, 1.0)
    assert system.admission.acquire(REQUEST, ()) is None
    system.admission.assign_queued()
    assert system.given == [("first", member)]
    assert system.take() is member


def test_request_that_has_stopped_waiting_is_passed_over() -> None:
    system = System(1, limit=1)
    member = system.take()
    system.wait("left", gone=True)
    system.wait("second")
    system.admission.release(member)
    assert system.given == [("second", member)]
    assert (member.in_flight, member.requests) == (1, 2)


def test_slot_is_free_when_all_have_stopped_waiting() -> None:
    system = System(1, limit=1)
    member = system.take()
    system.wait("left", gone=True)
    system.admission.release(member)
    assert (member.in_flight, len(system.queue)) == (0, 0)
    assert system.take() is member


def test_requests_get_a_member_when_one_comes_up() -> None:
    system = System(1)
    (member,) = system.members
    system.down(member)
    for name in "abc":
        system.wait(name)
    system.membership.observe(member, HealthEvent.PROBE_OK, 1.0)
    system.admission.assign_queued()
    assert system.given == [("a", member), ("b", member), ("c", member)]
    assert member.in_flight == 3


def test_requests_get_a_member_up_to_its_limit() -> None:
    system = System(1, limit=2)
    (member,) = system.members
    system.down(member)
    for name in "abc":
        system.wait(name)
    system.membership.observe(member, HealthEvent.PROBE_OK, 1.0)
    system.admission.assign_queued()
    assert [name for name, _ in system.given] == ["a", "b"]
    assert len(system.queue) == 1


def test_slot_of_a_member_that_went_down_is_not_given_away() -> None:
    system = System(2, limit=1)
    one, other = system.take(), system.take()
    system.wait("first")
    system.down(one)
    system.admission.release(one)
    assert system.given == []
    system.admission.release(other)
    assert system.given == [("first", other)]


def test_member_that_failed_the_request_gets_it_again_only_if_no_other_can() -> None:
    system = System(2, limit=1)
    a, b = system.members
    assert system.admission.acquire(REQUEST, {a}) is b
    assert system.admission.acquire(REQUEST, {a}) is a
    assert system.admission.acquire(REQUEST, {a}) is None
    system.wait("tried a", a)
    system.admission.release(a)
    assert system.given == [("tried a", a)]


def test_member_down_by_failed_requests_alone_is_the_last_resort() -> None:
    system = System(2)
    a, b = system.members
    queued = QueuedRequest(REQUEST)
    system.down(a)
    assert system.admission.fallback(queued) is None, "somebody is available"
    system.down(b, by_request=False)
    assert system.admission.fallback(queued) is a
    assert a.in_flight == 1
    queued.tried |= {a}
    assert system.admission.fallback(queued) is None
    system.membership.observe(a, HealthEvent.UNREACHABLE, 1.0)
    assert system.admission.fallback(QueuedRequest(REQUEST)) is None, "a probe has confirmed it"


def test_last_resort_has_a_limit_too() -> None:
    system = System(1, limit=1)
    (member,) = system.members
    system.down(member)
    assert system.admission.fallback(QueuedRequest(REQUEST)) is member
    assert system.admission.fallback(QueuedRequest(REQUEST)) is None


@pytest.mark.parametrize("limit", [0, 1])
def test_member_that_left_takes_nothing_with_it(limit: int) -> None:
    system = System(2, limit)
    a, b = system.take(), system.take()
    system.resolve(1)
    system.admission.release(b)
    assert b.in_flight == 0
    system.admission.release(a)
    assert system.take() is a


def test_first_member_back_gets_its_share_of_those_who_wait() -> None:
    system = System(3)
    system.crowd(90)
    first, *others = system.members
    system.come_up(first)
    assert system.in_flight == [30, 0, 0]
    system.come_up(*others)
    assert system.in_flight == [30, 30, 30]


def test_request_that_comes_while_others_are_shared_out_waits_behind_them() -> None:
    system = System(2)
    system.crowd(20)
    first, second = system.members
    system.come_up(first)
    system.wait("late")
    system.come_up(second)
    assert system.given[-1] == ("19", second)
    system.admission.release(first)
    assert system.given[-1] == ("late", first)


def test_member_that_does_not_come_back_is_not_waited_for_long() -> None:
    system = System(3)
    system.crowd(90)
    system.come_up(system.members[0])
    system.admission.end_gradual_release()
    assert system.in_flight == [90, 0, 0]


def test_slot_that_becomes_free_goes_on_to_those_who_wait_to_be_shared_out() -> None:
    system = System(2)
    system.crowd(20)
    first, _ = system.members
    system.come_up(first)
    for _ in range(10):
        system.admission.release(first)
    assert (system.in_flight, len(system.given)) == ([10, 0], 20)


def test_few_who_wait_are_not_shared_out() -> None:
    system = System(3)
    system.crowd(GATHER_MIN)
    system.come_up(system.members[0])
    assert system.in_flight == [GATHER_MIN, 0, 0]


def test_requests_do_not_wait_where_all_members_are_back_at_once() -> None:
    system = System(1)
    system.crowd(90)
    system.come_up(*system.members)
    assert system.in_flight == [90]


def test_requests_are_not_held_back_once_none_waits() -> None:
    system = System(2)
    system.crowd(2 * GATHER_MIN)
    first, _ = system.members
    system.come_up(first)
    for queued in list(system.queue.waiting):
        system.queue.discard(queued)  # Their clients have left.
    assert [system.take() for _ in range(100)] == [first] * 100


def test_request_is_not_refused_so_that_others_can_be_shared_out() -> None:
    system = System(2)
    system.crowd(100)
    first, second = system.members
    system.come_up(first)
    for number in range(70):
        system.wait(f"late {number}")
    assert (system.in_flight, len(system.queue)) == ([70, 0], 100)
    system.come_up(second)
    assert (system.in_flight, len(system.queue)) == ([70, 70], 30)


def test_request_is_refused_where_no_room_can_be_made() -> None:
    system = System(2, limit=10)
    system.crowd(100)
    system.come_up(system.members[0])
    for _ in range(10):
        system.wait("late")
    with pytest.raises(Refusal, match="100 requests wait"):
        system.wait("too late")


def test_limit_holds_while_those_who_wait_are_shared_out() -> None:
    system = System(2, limit=3)
    system.crowd(40)
    system.come_up(*system.members)
    assert system.in_flight == [3, 3]


def test_members_of_a_lower_priority_are_not_waited_for() -> None:
    system = System(1)
    (first,) = system.members
    second = Endpoint(Address("fd00::1", 80), priority=1)
    found = frozenset({first.endpoint, second})
    system.membership.reconcile(Snapshot((Answer("A", Outcome.FOUND, found),), 1.0))
    system.crowd(4 * GATHER_MIN)
    system.come_up(first)
    assert first.in_flight == 4 * GATHER_MIN
    assert not system.admission.releasing_gradually


class Outages:
    """Members that go and come back; ``waits`` has the seconds after which each gradual release would end."""

    def __init__(self, members: int) -> None:
        self.system = System(members)
        self.now = 100.0
        self.waits: list[float] = []
        self.release = GradualRelease(
            self.system.membership, self.system.admission, self._call_later, clock=lambda: self.now
        )
        self.release.update()

    def _call_later(self, seconds: float, call: Callable[[], None]) -> Outages:
        self.waits.append(seconds)
        return self

    def cancel(self) -> None:
        """The timer is of no use any more."""

    def begin(self, waiting: int) -> None:
        """All members finish what they have and go, and so many requests wait."""
        for member in self.system.members:
            while member.in_flight:
                self.system.admission.release(member)
        self.system.crowd(0)
        self.release.update()
        self.system.crowd(waiting)

    def come_up(self, *members: int, after: float = 0.0) -> None:
        self.now += after
        for number in members:
            self.system.membership.observe(self.system.members[number], HealthEvent.PROBE_OK, self.now)
            self.release.came_up()
            self.release.update()
            self.system.admission.assign_queued()


def test_release_waits_as_long_as_members_took_to_come_back_lately() -> None:
    outages = Outages(3)
    outages.begin(60)
    outages.come_up(0)
    outages.come_up(1, after=1.2)
    outages.come_up(2, after=0.8)
    assert outages.waits == [GATHER_SECONDS]
    outages.begin(60)
    outages.come_up(0, after=30)
    assert outages.waits == [GATHER_SECONDS, 3.0]
    assert outages.system.in_flight == [20, 0, 0]
    outages.come_up(1, 2, after=0.1)
    # The evidence of some outages counts, and is bounded.
    outages.begin(60)
    outages.come_up(0, after=30)
    outages.come_up(1, after=4.9)
    outages.come_up(2, after=2)
    outages.begin(60)
    outages.come_up(0, after=30)
    assert outages.waits[2:] == [3.0, GATHER_SECONDS_MAX]


def test_member_that_failed_a_request_is_no_other_one() -> None:
    system = System(2, limit=1)
    one, two = system.members
    acquire = system.admission.acquire
    assert acquire(REQUEST, {one}, again=False) is two
    assert acquire(REQUEST, {one}, again=False) is None  # It is busy.
    assert acquire(REQUEST, {one}) is one
    assert acquire(REQUEST, {one, two}, again=False) is None


def test_member_is_kept_for_the_next_attempt_while_it_is_available() -> None:
    system = System(1, limit=1)
    (member,) = system.members
    assert system.take() is member
    assert system.admission.keep(member) is member
    system.admission.release(member)
    assert (member.in_flight, system.admission.acquire(REQUEST, ())) == (1, None)
    system.down(member)
    assert system.admission.keep(member) is None


def test_members_that_come_at_the_start_are_evidence_too() -> None:
    outages = Outages(2)
    outages.begin(0)
    outages.come_up(0)
    outages.come_up(1, after=2)
    assert outages.waits == []
    outages.begin(60)
    outages.come_up(0, after=60)
    assert outages.waits == [3.0]


def test_release_ends_when_all_members_are_back() -> None:
    outages = Outages(2)
    outages.begin(60)
    outages.come_up(0)
    assert outages.system.admission.effective_limit == 30
    outages.come_up(1)
    assert outages.system.admission.effective_limit == inf
    assert outages.system.in_flight == [30, 30]
    # Later ones need not wait.
    for _ in range(10):
        outages.system.take()
