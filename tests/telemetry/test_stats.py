from __future__ import annotations

from typing import Any

import pytest

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.context import Attempt, RequestRecord
from balancer.http.request import Request
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.telemetry.latencies import cumulated, percentile
from balancer.telemetry.stats import ERRORS_MAX, Stats, by_class
from balancer.types import Address

ONE, TWO = Address("10.0.0.1", 80), Address("10.0.0.2", 80)


def stats(*addresses: Address) -> Stats:
    made = Stats()
    made.resolved(snapshot(*addresses), Change(joined=[Member(Endpoint(it), 0.0) for it in addresses]))
    return made


def snapshot(*addresses: Address, **known: Any) -> Snapshot:
    outcome = Outcome.FOUND if addresses else Outcome.EMPTY
    return Snapshot((Answer("A", outcome, frozenset(map(Endpoint, addresses)), **known),), 0.0)


def record(method: str = "GET", status: int = 200, member: Address | None = ONE, **known: Any) -> RequestRecord:
    made = RequestRecord(Request(method, b"/", [], "192.0.2.1"), 0.0, b"id")
    made.status, made.member = status, member
    for name, value in {"attempt_duration": known.get("duration", 0.0), **known}.items():
        setattr(made, name, value)
    return made


def test_requests_are_counted_by_member_and_in_all() -> None:
    it = stats(ONE, TWO)
    for one in (record(), record(status=503), record("POST", 201, TWO, body_bytes=7, duration=0.5)):
        it.done(one)
    assert dict(it.members[ONE].requests) == {("GET", 200): 1, ("GET", 503): 1}
    assert by_class(it.total.requests) == {("GET", "2xx"): 1, ("GET", "5xx"): 1, ("POST", "2xx"): 1}
    assert (it.members[TWO].count, it.members[TWO].sent, it.members[TWO].seconds) == (1, 7, 0.5)
    assert (it.members[ONE].failed, it.total.failed, it.total.count) == (1, 1, 3)


def test_made_up_method_makes_no_entry_of_its_own() -> None:
    it = stats(ONE)
    for number in range(100):
        it.done(record(f"X{number}"))
    assert dict(it.total.requests) == {("OTHER", 200): 100}


def test_failures_are_counted_where_they_happened() -> None:
    it = stats(ONE, TWO)
    it.done(record(member=TWO, attempts=[Attempt(ONE, "refused", "connection refused")], queued=0.25, error=""))
    it.done(record(status=503, member=None, error="no_member"))
    assert it.members[ONE].failed_attempts == {"refused": 1}
    assert it.members[ONE].count == 0
    assert it.total.failed_attempts == {"refused": 1}
    assert (it.queued, it.queued_seconds, dict(it.errors)) == (1, 0.25, {"no_member": 1})


def test_stats_of_members_that_have_left_are_gone() -> None:
    it = stats(ONE)
    it.done(record())
    for number in range(1000):
        member = Member(Endpoint(Address(f"10.1.{number // 250}.{number % 250}", 80)), 0.0)
        it.resolved(snapshot(ONE, member.address), Change(joined=[member]))
        it.done(record(member=member.address))
        it.resolved(snapshot(ONE), Change(left=[member]))
        it.done(record(member=member.address))  # It was in flight when its member left.
    assert list(it.members) == [ONE]
    assert it.total.count == 2001


def test_tunnel_and_a_refusal_are_requests_and_no_latencies() -> None:
    it = stats(ONE)
    it.done(record(status=101, duration=3600.0, body_bytes=5))
    it.done(record(status=400, member=None, error="malformed_request"))
    it.done(record(duration=0.01, received=3))
    total = it.total
    assert (total.count, sum(total.classes.values()), total.seconds) == (3, 1, 0.01)
    assert (total.sent, total.received) == (5, 3)


def test_wait_of_requests_is_counted_by_its_length() -> None:
    it = stats(ONE)
    for held in (0.2, 0.2, 7.0):
        it.done(record(queued=held))
    assert it.queued == 3
    assert it.queued_seconds == pytest.approx(7.4)
    assert cumulated(it.queued_classes, [0.1, 0.25, 10.0]) == [(0.1, 0), (0.25, 2), (10.0, 3)]


def test_changes_of_state_are_counted_by_event_and_by_member() -> None:
    it = stats(ONE)
    member = Member(Endpoint(ONE), 0.0)
    for state in (State.UP, State.DOWN, State.UP):
        before, member.state = member.state, state
        it.flipped(member, before, HealthEvent.REFUSED if state is State.DOWN else HealthEvent.PROBE_OK)
    assert it.flips == {(State.UP, HealthEvent.PROBE_OK): 2, (State.DOWN, HealthEvent.REFUSED): 1}
    assert it.members[ONE].flips == {State.UP: 2, State.DOWN: 1}
    it.resolved(snapshot(), Change(left=[member]))
    assert it.total.flips == {State.UP: 2, State.DOWN: 1}


def test_stats_have_no_entries_without_end_of_what_others_say() -> None:
    it = stats(ONE)
    for number in range(1000):
        it.done(record(error=f"Cancelled via cancel scope {number:x}"))
        it.done(record(error=f"reason_{number}"))
        it.resolved(snapshot(ONE, rcode=f"no answer after {number} s"), Change())
    it.done(record(error="no_member"))
    assert (len(it.errors), it.errors["no_member"]) == (ERRORS_MAX + 1, 1)
    assert sum(it.errors.values()) == 2001
    assert it.dns == {("A", "NOERROR"): 1, ("A", "error"): 1000}


def test_dns_is_counted_by_what_it_answers() -> None:
    it = stats(ONE)
    it.resolved(snapshot(), Change())
    it.resolved(snapshot(rcode="NXDOMAIN"), Change())
    it.resolved(snapshot(ONE, over_tcp=True), Change())
    assert dict(it.dns) == {("A", "NOERROR"): 2, ("A", "empty"): 1, ("A", "NXDOMAIN"): 1}
    assert (dict(it.truncated), it.changes) == ({"A": 1}, 1)


def test_latency_of_a_member_is_that_of_the_attempt_at_it() -> None:
    it = stats(ONE, TWO)
    it.done(record(member=TWO, duration=3.0, queued=2.5, attempt_duration=0.00101))
    it.done(record(status=503, member=ONE, duration=10.0, attempt_duration=0.0, error="no_member"))
    assert percentile(it.members[TWO].classes, 0.5) == 0.001
    assert (it.members[TWO].seconds, dict(it.members[ONE].classes)) == (0.00101, {})
    total = it.total
    assert (sum(total.classes.values()), total.seconds) == (2, 13.0)
    assert percentile(total.classes, 0.5) == pytest.approx(3.0, rel=0.05)


def test_durations_of_a_pool_stay_when_its_members_go() -> None:
    it, other = stats(ONE), stats(ONE)
    it.done(record(duration=1.0))
    it.forget(ONE)
    other.done(record(duration=2.0))
    other.resolved(snapshot(), Change(left=[Member(Endpoint(ONE), 0.0)]))
    it.add(other)
    assert (sum(it.total.classes.values()), it.total.seconds, it.total.count) == (2, 3.0, 2)
