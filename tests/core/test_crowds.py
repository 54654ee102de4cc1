"""Thousands of members that come and go at once: what the load balancer says of it, and what it closes when."""

from __future__ import annotations

import asyncio
import logging

import pytest

from balancer.discovery.snapshot import Endpoint
from balancer.members.health import State
from balancer.members.member import Member
from balancer.telemetry.state_log import FLIPS_LOGGED, NAMED, FlipLog, named
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.connection import MemberConnection
from balancer.upstream.connection_pool import CLOSES_PER_TICK, MemberPool
from balancer.upstream.native import NativeUpstream


def members(count: int, state: State = State.UP, since: float = 0.0) -> list[Member]:
    endpoints = [Endpoint(Address(f"10.0.{it // 250}.{it % 250}", 80)) for it in range(count)]
    return [Member(it, since, state=state) for it in endpoints]


def test_log_line_names_the_first_of_many() -> None:
    assert named(members(2)) == "10.0.0.0:80, 10.0.0.1:80"
    assert named(members(5000)).endswith(f"10.0.0.{NAMED - 1}:80 and {5000 - NAMED} more")
    assert len(named(members(5000))) < 400


def test_changes_of_state_are_logged_one_by_one_up_to_a_limit_and_then_summed_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = FlipLog(lambda: "")
    for member in members(5000):
        log.flipped(member, State.JOINING)
    for member in members(3, State.DOWN):
        log.flipped(member, State.UP)
    assert len(caplog.messages) == FLIPS_LOGGED
    log.flush(0.5)
    assert len(caplog.messages) == FLIPS_LOGGED
    log.flush(1.0)
    log.flush(2.0)
    assert caplog.messages[FLIPS_LOGGED:] == [f"more changes of state: {5000 - FLIPS_LOGGED} up, 3 down"]
    log.flipped(members(1, since=2.5)[0], State.DOWN)
    assert caplog.messages[-1] == "10.0.0.0:80 up: found in DNS"


async def test_idle_connections_of_many_members_are_closed_some_at_a_time_and_never_used_again() -> None:
    closed = 0

    class Transport(asyncio.Transport):
        def abort(self) -> None:
            nonlocal closed
            closed += 1

    def idle(member_pool: MemberPool) -> None:
        connection = MemberConnection(address, timeouts, member_pool)
        connection._transport = Transport()
        member_pool.ended(connection)

    timeouts = Timeouts(1, 1, 1)
    upstream = NativeUpstream(timeouts)
    addresses = [it.address for it in members(3 * CLOSES_PER_TICK)]
    for address in addresses:
        idle(upstream.member_pool(address))
    assert upstream.idle == len(addresses)
    for address in addresses:
        upstream.forget(address)
    assert (upstream.idle, closed) == (0, 0)
    for rounds in range(1, 4):
        await asyncio.sleep(0)
        assert closed == rounds * CLOSES_PER_TICK
    for address in addresses:
        idle(upstream.member_pool(address))
    await upstream.close()
    assert closed == 6 * CLOSES_PER_TICK, "to close leaves nothing for later"
