"""The sum of several processes: from reports that nobody sent over a socket."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from balancer.admin.aggregate import CATCH_UP, STALE, Aggregator, MergedPool
from balancer.admin.ipc import PACKET, Channel, pair
from balancer.admin.member_rows import EjectionRow, MemberRow
from balancer.admin.pool_view import Usage
from balancer.admin.process_report import Drain, Eject, PoolReport, Report
from balancer.admin.readiness import up
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Endpoint
from balancer.dispatch.context import RequestRecord
from balancer.http.request import Request
from balancer.members.ejection import EjectionKind
from balancer.members.health import State
from balancer.telemetry.events import Event, EventKind, Level
from balancer.telemetry.stats import Stats, Tally
from balancer.types import Address
from balancer.upstream.base import Connections

ONE, TWO = Address("10.0.0.1", 80), Address("10.0.0.2", 80)


@pytest.fixture
def channels() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with ExitStack() as stack:
        found = [pair() for _ in range(2)]
        for ends in found:
            for end in ends:
                stack.enter_context(end)
        yield found


class Fleet:
    """An aggregator, and what its processes say. ``now`` is the clock."""

    def __init__(self, channels: list[tuple[socket.socket, socket.socket]]) -> None:
        self.now = 100.0
        self.told: list[Any] = []
        self.aggregator = Aggregator([ours for ours, _ in channels], clock=lambda: self.now)
        self._others = [Channel(theirs, self.told.append) for _, theirs in channels]

    def close(self) -> None:
        self.aggregator.close()
        for it in self._others:
            it.close()

    def report(
        self, number: int, pid: int, *, whole: bool = True, started: float = 100.0, names: str = "apps", **pool: Any
    ) -> None:
        values: dict[str, Any] = {
            "settings": Settings(queue_max=500), "members": {}, "left": [], "stats": Stats(),
            "events": [], "snapshot": None, "resolved": 0.0, "available": 1, "queued": 0, "active": 0,
            "connections": None,
        }  # fmt: skip
        reports = [PoolReport(**(values | pool | {"name": name})) for name in names.split()]
        self.aggregator._receive(Report(Usage(number, pid, 1.0, 1000, {}, {}), started, whole, reports, None, 3))

    @property
    def pool(self) -> MergedPool:
        (found,) = self.aggregator.current()
        return found


@pytest.fixture
async def fleet(channels: list[tuple[socket.socket, socket.socket]]) -> Any:
    made = Fleet(channels)
    yield made
    made.close()


def row(address: Address, state: State = State.UP, **given: Any) -> MemberRow:
    values: dict[str, Any] = {
        "since": 90.0, "reason": state.value, "in_flight": 0, "requests": 0, "drained": False, "drained_since": 0.0
    }  # fmt: skip
    return MemberRow(Endpoint(address), state=state, **(values | given))


def counted(address: Address, requests: int) -> Stats:
    stats = Stats()
    stats.members[address] = Tally()
    for _ in range(requests):
        record = RequestRecord(Request("GET", b"/", [], "192.0.2.1"), 0.0, b"")
        record.status, record.member, record.duration = 200, address, 0.01
        stats.done(record)
    return stats


async def test_counts_are_added_up_and_those_of_the_dead_stay(fleet: Fleet) -> None:
    fleet.report(0, 10, members={ONE: row(ONE, in_flight=1)}, stats=counted(ONE, 3), active=2, queued=1)
    fleet.report(
        1, 11, members={ONE: row(ONE, in_flight=2)}, stats=counted(ONE, 4), connections=Connections(1, 2, 3, 4)
    )
    pool = fleet.pool
    assert pool.stats.total.count == pool.stats.members[ONE].count == 7
    assert (pool.members[ONE].in_flight, pool.active, pool.queued, pool.available) == (3, 2, 1, 1)
    assert pool.settings.queue_max == 1000
    assert pool.connections == Connections(1, 2, 3, 4)
    assert pool.clients is not None and len(pool.clients) == 6
    fleet.report(0, 12, members={ONE: row(ONE)}, stats=counted(ONE, 1))
    assert fleet.pool is pool
    assert pool.stats.members[ONE].count == 3 + 4 + 1
    # Once the member is gone, what it did is nobody's in particular.
    nobodys = Stats()
    nobodys.add(counted(ONE, 5))
    nobodys.forget(ONE)
    fleet.report(0, 12, whole=False, left=[ONE])
    fleet.report(1, 11, whole=False, left=[ONE], stats=nobodys)
    assert not fleet.pool.members
    assert not pool.stats.members
    assert pool.stats.total.count == 3 + 5


async def test_report_that_does_not_begin_at_the_beginning_is_asked_for_anew(fleet: Fleet) -> None:
    fleet.report(0, 10, whole=False, members={ONE: row(ONE)})
    assert fleet.aggregator.current() == []


async def test_member_is_as_bad_as_any_process_that_knows_it_says(fleet: Fleet) -> None:
    fleet.report(0, 10, members={ONE: row(ONE), TWO: row(TWO)})
    fleet.report(1, 11, members={ONE: row(ONE, State.DOWN, reason="refused", since=95.0), TWO: row(TWO, State.JOINING)})
    members = fleet.pool.members
    assert (members[ONE].state, members[ONE].reason, members[ONE].since) == (
        State.DOWN, "refused (in 1 of 2 processes)", 95.0
    )  # fmt: skip
    assert (members[TWO].state, members[TWO].reason) == (State.UP, "up")


async def test_member_is_up_since_the_last_process_said_so_and_down_since_the_first(fleet: Fleet) -> None:
    """A process may miss that a container has gone, and another come; then its word is about the one before."""
    fleet.report(0, 10, members={ONE: row(ONE, since=96.0), TWO: row(TWO, State.DOWN, since=96.0)})
    fleet.report(1, 11, members={ONE: row(ONE, since=90.0), TWO: row(TWO, State.DOWN, since=90.0)})
    members = fleet.pool.members
    assert (members[ONE].since, members[TWO].since) == (96.0, 90.0)


async def test_member_counts_as_up_where_it_is_up_in_every_process(fleet: Fleet) -> None:
    fleet.report(0, 10, members={ONE: row(ONE), TWO: row(TWO)})
    assert up(fleet.pool) == 0, "the other process has not reported"
    fleet.report(1, 11, members={ONE: row(ONE), TWO: row(TWO, State.JOINING)})
    assert up(fleet.pool) == 1
    fleet.report(1, 11, whole=False, members={TWO: row(TWO)})
    assert up(fleet.pool) == 2
    fleet.report(0, 10, whole=False, left=[ONE])
    assert up(fleet.pool) == 1
    fleet.pool.drain(fleet.pool.members[TWO])
    assert up(fleet.pool) == 0


async def test_silent_process_has_no_opinion_but_its_counts(fleet: Fleet) -> None:
    fleet.report(0, 10, members={ONE: row(ONE, State.DOWN)}, stats=counted(ONE, 3), active=5)
    fleet.now += STALE
    fleet.report(1, 11, members={ONE: row(ONE)}, stats=counted(ONE, 4), active=1)
    pool = fleet.pool
    assert [it.pid for it in fleet.aggregator.processes()] == [11]
    assert (pool.members[ONE].state, pool.active, pool.stats.total.count) == (State.UP, 1, 7)


def event(number: int, when: float, words: str, kind: EventKind = EventKind.STATE, **counts: int) -> Event:
    return Event(number, when, kind, Level.WARNING, words, ONE, **counts)


async def test_events_that_say_the_same_are_one_and_count_together(fleet: Fleet) -> None:
    fleet.report(0, 10, events=[event(1, 100.0, "down", moved=2)])
    fleet.report(1, 11, events=[event(7, 100.4, "down", moved=1, lost=1)])
    fleet.report(0, 10, whole=False, events=[event(1, 100.0, "down", moved=5)])
    (told,) = fleet.pool.stats.events.recent
    assert (told.moved, told.lost, told.when) == (6, 1, 100.0)
    # The same from one process is another event, and so is what comes later.
    fleet.report(0, 10, whole=False, events=[event(2, 101.0, "down")])
    fleet.report(1, 11, whole=False, events=[event(8, 110.0, "down")])
    assert len(fleet.pool.stats.events.recent) == 3


async def test_later_process_learns_what_is_known_without_an_event(fleet: Fleet) -> None:
    fleet.report(0, 10, events=[event(1, 100.0, "10.0.0.1 joined", EventKind.JOINED)])
    started = fleet.now = 100.0 + CATCH_UP + 1
    late = [event(1, started + 0.1, "10.0.0.1 joined", EventKind.JOINED), event(2, started + CATCH_UP + 1, "down")]
    fleet.report(1, 12, started=started, events=late)
    assert [it.words for it in fleet.pool.stats.events.recent] == ["10.0.0.1 joined", "down"]


async def test_drain_reaches_those_that_do_not_know_of_it(fleet: Fleet) -> None:
    fleet.report(0, 10, members={ONE: row(ONE)})
    fleet.pool.drain(fleet.pool.members[ONE])
    fleet.report(1, 11, members={ONE: row(ONE)})
    assert fleet.pool.members[ONE].drained
    for _ in range(5):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while fleet.told.count(Drain("apps", ONE, True)) < 3:
            await asyncio.sleep(0.001)  # Twice to all, once more to the one that said otherwise.


async def test_member_is_ejected_as_long_as_any_process_has_it_so(fleet: Fleet) -> None:
    def ejected(until: float, on_trial: bool = False) -> MemberRow:
        return row(ONE, ejection=EjectionRow(EjectionKind.FAILURES, "5xx: 9 of 9", 95.0, until, 1, on_trial))

    fleet.report(0, 10, members={ONE: row(ONE)})
    fleet.report(1, 11, members={ONE: row(ONE)})
    fleet.report(0, 10, whole=False, members={ONE: ejected(105.0)})
    shown = fleet.pool.members[ONE].ejection
    assert shown
    assert (shown.reason, shown.until, shown.on_trial) == ("5xx: 9 of 9 (in 1 of 2 processes)", 105.0, False)
    fleet.report(1, 11, whole=False, members={ONE: ejected(102.0, on_trial=True)})
    shown = fleet.pool.members[ONE].ejection
    assert shown
    assert (shown.until, shown.on_trial) == (105.0, False)
    fleet.report(0, 10, whole=False, members={ONE: row(ONE)})
    fleet.report(1, 11, whole=False, members={ONE: row(ONE)})
    assert fleet.pool.members[ONE].ejection is None


async def test_ejection_by_hand_reaches_all_processes(fleet: Fleet) -> None:
    fleet.report(0, 10, members={ONE: row(ONE)})
    fleet.pool.eject(fleet.pool.members[ONE], 30.0)
    fleet.pool.restore(fleet.pool.members[ONE])
    async with asyncio.timeout(5):
        while fleet.told.count(Eject("apps", ONE, None)) < 2:
            await asyncio.sleep(0.001)
    assert fleet.told.count(Eject("apps", ONE, 30.0)) == 2


async def test_log_line_of_a_drain_names_the_pool_where_there_are_several(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for names in ("apps", "apps shop"):
        fleet.report(0, 1000, members={ONE: row(ONE)}, names=names)
        pool = fleet.aggregator.current()[0]
        pool.drain(pool.members[ONE])
    assert caplog.messages == [
        "10.0.0.1:80 drained by hand, in all processes",
        "pool apps: 10.0.0.1:80 drained by hand, in all processes",
    ]


async def test_message_may_be_large_and_its_writer_may_die_in_the_midst_of_it() -> None:
    ours, theirs = pair()
    with ours, theirs:
        got: list[object] = []
        reader = Channel(ours, got.append)
        theirs.send(bytes([1]) + b"the beginning of something")
        writer = Channel(theirs, got.append)
        large = {"data": bytes(40 * PACKET)}
        writer.send(large)
        busy = [writer.is_busy]
        writer.send("and then")
        async with asyncio.timeout(5):
            while len(got) < 2:
                await asyncio.sleep(0.001)
        assert got == [large, "and then"]
        assert [*busy, writer.is_busy] == [True, False]
        reader.close()
        writer.close()
