from __future__ import annotations

import pytest

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.context import Attempt, RequestRecord
from balancer.http.request import Request
from balancer.members.ejection import Ejection, EjectionKind
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change, Membership
from balancer.telemetry.events import KEPT, KEPT_OF_DNS, WINDOW, EventKind, Events, Level
from balancer.types import Address

ONE, TWO = Address("172.18.0.5", 80), Address("172.18.0.6", 80)


def found(*addresses: Address, when: float = 0.0, over_tcp: bool = False) -> Snapshot:
    outcome = Outcome.FOUND if addresses else Outcome.EMPTY
    rcode = "NOERROR" if addresses else "NXDOMAIN"
    return Snapshot((Answer("A", outcome, frozenset(map(Endpoint, addresses)), rcode, over_tcp),), when)


def record(*attempts: Attempt, at: float = 10.0, error: str = "", status: int = 200) -> RequestRecord:
    made = RequestRecord(Request("GET", b"/", [], "192.0.2.1"), at - 0.5, b"id")
    made.duration, made.attempts, made.error, made.status = 0.5, attempts, error, status
    return made


def texts(events: Events) -> list[str]:
    return [it.text for it in events.recent]


class Cluster:
    """A membership that tells events of its flips."""

    def __init__(self, *addresses: Address) -> None:
        self.events = Events()
        self.membership = Membership(on_flip=self.events.flipped)
        self.resolve(*addresses)

    def resolve(self, *addresses: Address, when: float = 0.0) -> None:
        snapshot = found(*addresses, when=when)
        self.events.resolved(snapshot, self.membership.reconcile(snapshot))

    def observe(self, address: Address, event: HealthEvent, when: float, words: str = "") -> None:
        self.membership.observe(self.membership.members[address], event, when, words)


def refused(address: Address = ONE) -> Attempt:
    return Attempt(address, "refused", "Connection refused")


def test_member_that_comes_up_and_goes_down_is_told_with_its_reasons() -> None:
    it = Cluster(ONE)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.0, "accepts connections")
    it.observe(ONE, HealthEvent.REFUSED, 2.0, "Connection refused")
    assert texts(it.events) == [
        "DNS A: NOERROR, 1 address",
        "172.18.0.5:80 joined",
        "172.18.0.5:80 up: accepts connections",
        "172.18.0.5:80 down: Connection refused",
    ]
    assert [each.level for each in it.events.recent] == [Level.INFO, Level.INFO, Level.GOOD, Level.BAD]


def test_requests_that_a_member_failed_are_told_with_its_going_down() -> None:
    it = Cluster(ONE, TWO)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.0)
    it.observe(ONE, HealthEvent.REFUSED, 9.9, "connection refused")
    for _ in range(3):
        it.events.failed(record(refused()))
    assert texts(it.events)[-1] == "172.18.0.5:80 down: connection refused, 3 requests moved"


def test_failures_long_after_a_flip_are_an_event_of_their_own() -> None:
    it = Cluster(ONE)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.0)
    it.observe(ONE, HealthEvent.REFUSED, 2.0, "connection refused")
    it.events.failed(record(Attempt(ONE, "died", "closed without an answer"), at=2.0 + WINDOW))
    assert texts(it.events)[-1] == "172.18.0.5:80: closed without an answer, 1 request moved"


def test_failures_after_a_member_is_up_again_are_not_told_with_its_going_down() -> None:
    it = Cluster(ONE)
    for event in (HealthEvent.PROBE_OK, HealthEvent.REFUSED):
        it.observe(ONE, event, 1.0)
    it.resolve(ONE, when=1.1)
    it.observe(ONE, HealthEvent.PROBE_OK, 1.2)
    it.events.failed(record(refused(), at=1.5))
    assert texts(it.events)[-1] == "172.18.0.5:80: Connection refused, 1 request moved"


def test_failed_tries_are_one_event_for_each_member_and_window() -> None:
    it = Events()
    for _ in range(1000):
        it.failed(record(refused(ONE), refused(TWO), at=1.0))
    it.failed(record(refused(ONE), at=1.0 + WINDOW))
    assert texts(it) == [
        "172.18.0.5:80: Connection refused, 1000 requests moved",
        "172.18.0.6:80: Connection refused, 1000 requests moved",
        "172.18.0.5:80: Connection refused, 1 request moved",
    ]


def test_request_that_ended_with_its_last_try_is_lost_and_refused() -> None:
    it = Events()
    it.failed(record(refused(ONE), Attempt(TWO, "died", "reset"), error="member_failed", status=502))
    assert texts(it) == [
        "172.18.0.5:80: Connection refused, 1 request moved",
        "172.18.0.6:80: reset, 1 request lost",
        "1 request answered 502 member_failed",
    ]
    assert it.recent[1].level is Level.BAD


def test_refusals_are_counted_by_token_and_a_client_that_leaves_is_none() -> None:
    it = Events()
    for error, status in [("no_member", 503), ("malformed_request", 400), ("no_member", 503), ("client_gone", 499)]:
        it.failed(record(error=error, status=status))
    it.failed(record(error="truncated", status=200))
    assert texts(it) == [
        "2 requests answered 503 no_member",
        "1 request answered 400 malformed_request",
        "1 request broken off",
    ]
    assert [each.level for each in it.recent] == [Level.BAD, Level.WARNING, Level.BAD]


def test_dns_is_told_when_it_says_something_else() -> None:
    it = Events()
    for snapshot in (found(ONE), found(ONE), found(ONE, over_tcp=True), found(), found()):
        it.resolved(snapshot, Change())
    assert texts(it) == [
        "DNS A: NOERROR, 1 address",
        "DNS A: NOERROR, 1 address, too large for UDP",
        "DNS A: NXDOMAIN, 0 addresses",
    ]
    assert list(it.dns) == list(it.recent)


def test_many_that_come_or_go_at_once_are_one_event() -> None:
    addresses = [Address(f"10.0.0.{number}", 80) for number in range(1, 6)]
    it = Cluster(*addresses)
    it.resolve(*addresses[:3], when=1.0)
    assert texts(it.events)[1:] == [
        "10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80 and 2 more joined",
        "10.0.0.4:80 and 10.0.0.5:80 left DNS",
    ]


def test_ejection_is_told_with_its_figures_and_so_is_its_end() -> None:
    it = Events()
    member = Member(Endpoint(ONE), 0.0)
    member.ejection = Ejection(EjectionKind.FAILURES, "5xx: 31 of 40, others 2 of 160", 7.0, 17.0)
    member.ejection_changed = 7.0
    it.ejected(member)
    member.ejection.on_trial, member.ejection_changed = True, 17.0
    it.ejected(member)
    member.ejection, member.ejection_changed = None, 20.0
    it.ejected(member)
    assert texts(it) == [
        "172.18.0.5:80 ejected for 10 s: 5xx: 31 of 40, others 2 of 160",
        "172.18.0.5:80 on trial",
        "172.18.0.5:80 restored",
    ]
    assert [(event.when, event.level) for event in it.recent] == [
        (7.0, Level.BAD), (17.0, Level.INFO), (20.0, Level.GOOD)
    ]  # fmt: skip


def test_drain_by_hand_is_told_at_its_time() -> None:
    it = Events()
    member = Member(Endpoint(ONE), 0.0, drained=True, drained_since=7.0)
    it.drained(member)
    member.drained = False
    it.drained(member)
    assert texts(it) == ["172.18.0.5:80 drained by hand", "172.18.0.5:80 no longer drained"]
    assert (it.recent[0].when, it.recent[0].kind) == (7.0, EventKind.DRAINED)


def test_event_that_counts_on_is_given_to_the_reader_again() -> None:
    it = Events()
    it.failed(record(refused()))
    (first,) = it.pop_changes()
    assert it.pop_changes() == []
    it.failed(record(refused(), at=11.0))
    assert it.pop_changes() == [first]
    assert first.moved == 2


@pytest.mark.parametrize("read", [True, False])
def test_flood_is_bounded_and_leaves_the_changes_of_dns_alone(read: bool) -> None:
    it = Events()
    it.resolved(found(ONE), Change())
    for number in range(5 * KEPT):
        address = Address(f"10.0.{number // 250}.{number % 250}", 80)
        it.failed(record(refused(address), at=number * 0.01))
        if read:
            it.pop_changes()
    assert len(it.recent) == KEPT
    assert [each.text for each in it.dns] == ["DNS A: NOERROR, 1 address"]
    assert len(it.pop_changes()) <= KEPT
    it.resolved(found(ONE, when=1e6), Change())
    assert not it._counting


def test_changes_of_dns_are_bounded() -> None:
    it = Events()
    for _ in range(KEPT_OF_DNS):
        it.resolved(found(ONE), Change())
        it.resolved(found(), Change())
    assert len(it.dns) == KEPT_OF_DNS


def test_change_of_members_is_news_and_a_request_is_not() -> None:
    news: list[str] = []
    it = Events(on_change=lambda: news.append("!"))
    member = Member(Endpoint(ONE), 0.0)
    it.resolved(found(ONE), Change())
    it.failed(record(refused()))
    assert not news
    it.resolved(found(ONE), Change(joined=[member]))
    member.state = State.UP
    it.flipped(member, State.JOINING, HealthEvent.PROBE_OK)
    it.drained(member)
    assert len(news) == 3
