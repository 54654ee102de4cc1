"""Which container the status page takes a member for: names that DNS says at one time and another, without DNS."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from balancer.admin.history import EVERY, LOOKUPS, MemberHistory, Pool
from balancer.admin.pool_view import View
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.context import Attempt, RequestRecord
from balancer.http.request import Request
from balancer.members.health import HealthEvent
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.telemetry.stats import Stats
from balancer.types import Address

ONE, TWO = Address("172.18.0.5", 80), Address("172.18.0.6", 80)


class Cluster:
    """A pool as the page follows it. ``asked``: the members whose names it wants to know, by their addresses."""

    def __init__(self, *addresses: Address) -> None:
        self.stats = Stats()
        self.membership = Membership(on_flip=self.stats.flipped)
        self.asked: list[Address] = []
        self._numbers = itertools.count(1)
        view = SimpleNamespace(name="shop", members=self.membership.members, drain=self.drain)
        self.pool = Pool("apps", cast(View, view), self.stats, 0.0)
        self.resolve(*addresses, when=0.0)

    def drain(self, member: Member, drained: bool = True, when: float = 99.0) -> None:
        member.drained, member.drained_since = drained, when
        self.stats.drained(member)

    def follow(self) -> list[MemberHistory]:
        tracks = self.pool.take_changes(self._numbers)
        self.asked = [it.member.address for it in tracks]
        return tracks

    def resolve(self, *addresses: Address, when: float) -> None:
        snapshot = Snapshot((Answer("A", Outcome.FOUND, frozenset(map(Endpoint, addresses))),), when)
        self.stats.resolved(snapshot, self.membership.reconcile(snapshot))
        self.follow()

    def observe(self, address: Address, event: HealthEvent, when: float) -> None:
        self.happen(address, event, when)
        self.follow()

    def happen(self, address: Address, event: HealthEvent, when: float) -> None:
        """Something that the page has yet to look at."""
        self.membership.observe(self.membership.members[address], event, when)
        # DNS goes on to name them, without which no member that failed comes up again.
        named = frozenset(it.endpoint for it in self.membership.members.values())
        self.membership.reconcile(Snapshot((Answer("A", Outcome.FOUND, named),), when))

    def track(self, address: Address = ONE) -> MemberHistory:
        return self.pool.tracks[self.membership.members[address]]

    def name(self, name: str, when: float, address: Address = ONE) -> bool:
        """DNS says whose the address is; whether that is news."""
        news = self.pool.take_name(self.track(address), name, when, self._numbers)
        self.follow()
        return news

    def request(self, *attempts: Attempt, status: int = 200, at: float = 1.0, member: Address | None = ONE) -> None:
        record = RequestRecord(Request("GET", b"/", [], "192.0.2.1"), at, b"id")
        record.attempts, record.status, record.member, record.duration = attempts, status, member, 0.001
        self.stats.done(record)
        self.follow()

    @property
    def names(self) -> list[tuple[str, str | None]]:
        """The events of members, each with its name."""
        return [(it.kind.value, it.name) for it in self.stats.events.recent if it.member]

    def row(self, rows: dict[int, list[Any]], address: Address = ONE) -> list[Any]:
        return rows[self.track(address).number]


def refused(address: Address = ONE) -> Attempt:
    return Attempt(address, "refused", "Connection refused")


def test_name_is_asked_for_when_a_member_joins_and_on_every_rise_to_up() -> None:
    it = Cluster(ONE, TWO)
    assert it.asked == [ONE, TWO]
    events = [
        HealthEvent.PROBE_OK,
        HealthEvent.REFUSED,
        HealthEvent.PROBE_OK,
        HealthEvent.PROBE_FAILED,
        HealthEvent.PROBE_OK,
    ]
    for number, event in enumerate(events):
        it.observe(ONE, event, 1.0 + number)
        assert it.asked == ([ONE] if event is HealthEvent.PROBE_OK else [])
    # Also where the page looks only when it is up again.
    for number, event in enumerate([HealthEvent.REFUSED, HealthEvent.PROBE_OK]):
        it.happen(ONE, event, 9.0 + number)
    it.follow()
    assert it.asked == [ONE]


@pytest.mark.parametrize(("count", "rounds"), [(1, EVERY), (300, EVERY), (5000, 5000 // LOOKUPS)])
def test_names_are_asked_for_again_in_turns_and_each_once_in_a_round(count: int, rounds: int) -> None:
    members = [Address(f"10.0.{number // 250}.{number % 250}", 80) for number in range(count)]
    it = Cluster(*members)
    asked: list[int] = []
    for second in range(rounds):
        it.pool.sample(float(second + 1))
        due = [track.number for track in it.pool.due()]
        assert len(due) <= LOOKUPS + 1
        asked += due
    assert sorted(asked) == list(range(1, len(members) + 1))


def test_event_keeps_the_name_of_its_moment() -> None:
    it = Cluster(ONE)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.0)
    assert it.names == [("joined", None), ("state", None)]
    it.name("one", 1.1)
    it.observe(ONE, HealthEvent.REFUSED, 2.0)
    it.observe(ONE, HealthEvent.PROBE_OK, 3.0)
    told = [("joined", "one"), ("state", "one"), ("state", "one")]
    assert it.names == [*told, ("state", None)]
    it.name("two", 3.1)
    it.request(refused(), at=4.0)
    assert it.names == [*told, ("state", "two"), ("failed", "two")]
    it.resolve(TWO, when=5.0)
    assert it.names[5:] == [("joined", None), ("left", "two")]


def test_event_that_gets_its_name_is_given_to_the_reader_again() -> None:
    it = Cluster(ONE)
    first = it.pool.pop_changes()
    it.name("one", 1.0)
    assert it.pool.pop_changes() == [event for event in first if event.member]


def test_event_whose_container_stayed_unknown_does_not_get_the_name_of_the_next() -> None:
    it = Cluster(ONE)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.0)
    it.observe(ONE, HealthEvent.REFUSED, 2.0)
    it.observe(ONE, HealthEvent.PROBE_OK, 3.0)
    it.name("two", 3.1)
    assert it.names == [("joined", ""), ("state", ""), ("state", ""), ("state", "two")]


def test_failure_after_a_member_has_left_is_not_counted_for_its_successor() -> None:
    it = Cluster(ONE, TWO)
    it.name("one", 0.1)
    it.request()
    it.pool.sample(1.0)
    it.resolve(TWO, when=2.0)
    it.request(refused(), at=2.5, member=TWO)
    it.resolve(ONE, TWO, when=3.0)
    it.name("another", 3.1)
    assert it.names[-3:] == [("left", "one"), ("failed", "one"), ("joined", "another")]


def test_name_without_an_answer_or_with_the_same_one_is_no_news() -> None:
    it = Cluster(ONE)
    assert it.name("one", 1.0)
    number = it.track().number
    assert not it.name("one", 2.0)
    assert (it.track().name, it.track().number) == ("one", number)


def test_another_container_at_an_address_is_another_row_with_figures_of_its_own() -> None:
    it = Cluster(ONE)
    it.name("one", 0.1)
    for _ in range(5):
        it.request(refused(), status=502)
    it.pool.sample(1.0)
    old = it.track().number
    assert it.row(it.pool.value_rows())[6:] == [5, 5, 5, None]
    assert it.name("two", 1.5)
    assert it.track().number != old
    assert [(gone.number, gone.name) for gone in it.pool.gone] == [(old, "one")]
    assert it.row(it.pool.value_rows())[6:] == [0, 0, 0, None]
    it.request()
    it.pool.sample(2.0)
    assert it.row(it.pool.value_rows())[2:4] == [1, 1]
    assert it.row(it.pool.value_rows())[6:] == [1, 0, 0, None]
    assert it.track().counted(it.stats.members[ONE]) == (1, 0, {})
    assert it.stats.total.count == 6


def test_drain_ends_with_its_container_and_one_that_came_after_it_stays() -> None:
    for drained_at, stays in ((2.0, False), (6.0, True)):
        it = Cluster(ONE)
        it.name("one", 0.1)
        member = it.membership.members[ONE]
        for event, when in ((HealthEvent.PROBE_OK, 1.0), (HealthEvent.REFUSED, 4.0), (HealthEvent.PROBE_OK, 5.0)):
            it.observe(ONE, event, when)
        it.drain(member, when=drained_at)
        it.name("two", 6.5)
        assert member.drained is stays
        assert [kind for kind, _ in it.names].count("drained") == (1 if stays else 2)


def test_drain_of_a_container_whose_name_was_seen_since_ends_without_a_rise() -> None:
    it = Cluster(ONE)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.0)
    it.name("one", 1.1)
    it.drain(it.membership.members[ONE], when=2.0)
    it.name("one", 31.1)
    assert it.membership.members[ONE].drained
    it.name("two", 61.1)
    assert not it.membership.members[ONE].drained


def finished(duration: float) -> RequestRecord:
    record = RequestRecord(Request("GET", b"/", [], "192.0.2.1"), 0.0, b"id")
    record.member, record.status, record.duration, record.attempt_duration = ONE, 200, duration, duration
    return record


def test_latencies_are_those_of_the_last_ten_samples_and_never_above_the_largest_of_them() -> None:
    cluster = Cluster(ONE)
    (track,) = cluster.pool.tracks.values()
    cluster.stats.done(finished(10.01))
    cluster.pool.sample(1.0)
    assert track.gauge.lately() == (1, 10_000, 10_000)
    for second in range(10):
        cluster.stats.done(finished(1.0013))
        cluster.pool.sample(2.0 + second)
    requests, p50, p99 = track.gauge.lately()
    assert (requests, p50, p99) == (10, 1000, 1000)
    assert cluster.pool.total.lately() == (10, 1000, 1000)
    for second in range(10):
        cluster.pool.sample(12.0 + second)
    assert track.gauge.lately() == (0, None, None)


def test_requests_without_a_duration_have_no_latency() -> None:
    cluster = Cluster(ONE)
    (track,) = cluster.pool.tracks.values()
    cluster.stats.done(finished(0.0))
    cluster.pool.sample(1.0)
    assert track.gauge.lately() == (1, None, None)
