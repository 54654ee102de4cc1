"""Who gets which request: limits and turns, cookies, keys, budgets, the last resort."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import Any

import pytest

from balancer.demo.system import free_port
from balancer.dispatch.retry import BUDGET_FLOOR
from balancer.members.probe_scheduler import OVERLAP
from balancer.types import Address
from tests.support.gate import Gate
from tests.support.messages import LAST_GET as GET
from tests.support.wire import OK, Connection, Member, Running, balance, eventually

pytestmark = pytest.mark.usefixtures("each_way")


async def test_member_has_no_more_requests_than_its_limit_and_the_rest_get_their_turn() -> None:
    gate = Gate()
    async with Member(gate) as one, Member(gate) as two, balance(one, two, max_requests_per_member=2) as running:
        answers = [asyncio.create_task(running.exchange(GET)) for _ in range(20)]
        await eventually(lambda: gate.waiting == 4 and len(running.balancer.dispatcher.queue) == 16)
        gate.let(20)
        assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*answers))
        assert gate.most == 4


async def test_turns_are_taken_in_order_of_arrival() -> None:
    gate = Gate()
    ended: list[int] = []

    async def visit(running: Running, number: int) -> None:
        await running.exchange(GET)
        ended.append(number)

    async with Member(gate) as one, balance(one, max_requests_per_member=1) as running:
        visits = []
        for number in range(5):
            visits.append(asyncio.create_task(visit(running, number)))
            await eventually(lambda: gate.waiting + len(running.balancer.dispatcher.queue) == len(visits))
        for number in range(5):
            gate.let()
            await eventually(lambda: len(ended) > number)  # noqa: B023 - awaited in the same turn
        await asyncio.gather(*visits)
    assert ended == [0, 1, 2, 3, 4]


async def test_client_that_leaves_the_queue_gives_its_turn_to_the_next() -> None:
    gate = Gate()
    async with Member(gate) as one, balance(one, max_requests_per_member=1) as running:
        first = asyncio.create_task(running.exchange(GET))
        await eventually(lambda: gate.waiting == 1)
        async with running.client() as impatient:
            await impatient.send(GET)
            await eventually(lambda: len(running.balancer.dispatcher.queue) == 1)
        last = asyncio.create_task(running.exchange(GET))
        await eventually(lambda: [it.error for it in running.records] == ["client_gone"])
        gate.let(2)
        assert (await first).endswith(b"ok")
        assert (await last).endswith(b"ok")


async def test_whose_turn_does_not_come_is_told_that_all_were_busy() -> None:
    gate = Gate()
    async with Member(gate) as one, balance(one, max_requests_per_member=1, queue_timeout=0.2) as running:
        first = asyncio.create_task(running.exchange(GET))
        await eventually(lambda: gate.waiting == 1)
        answer = await running.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"x-balancer-error: overloaded\r\n" in answer
        assert b"retry-after: 1\r\n" in answer
        gate.let()
        await first


async def test_queue_that_moves_too_slowly_refuses_at_once() -> None:
    async def slow(connection: Connection) -> None:
        while True:
            await connection.head()
            await asyncio.sleep(0.1)
            await connection.send(OK)

    async with Member(slow) as one, balance(one, max_requests_per_member=1, queue_timeout=1) as running:
        async with asyncio.TaskGroup() as clients:
            for _ in range(60):
                clients.create_task(running.exchange(GET))
                await asyncio.sleep(0.02)
        told = [it for it in running.records if it.error == "overloaded"]
        # Offered five times what it can, for 1.2 s: about 12 + 10 are served, and most of the rest learn it at once.
        assert len([it for it in running.records if it.status == 200]) > 12
        assert len(told) > 20
        assert sorted(it.duration for it in told)[len(told) // 2] < 0.1


async def test_cookie_keeps_a_client_at_its_member_until_that_is_gone() -> None:
    settings: dict[str, Any] = {"sticky_cookie": "member", "health_interval": 0.1}
    async with Member() as one, Member() as two, balance(one, two, **settings) as running:
        first = await running.exchange(GET)
        found = re.search(rb"set-cookie: (member=[0-9a-f]{16}); Path=/; HttpOnly; SameSite=Lax\r\n", first)
        assert found
        returning = GET.replace(b"\r\n\r\n", b"\r\nCookie: %b\r\n\r\n" % found[1])
        for _ in range(5):
            assert b"set-cookie" not in await running.exchange(returning)
        counts = Counter(it.member for it in running.records)
        assert sorted(counts.values()) == [6]
        await (one if counts[one.address] else two).stop()
        await running.available(1)
        moved = await running.exchange(returning)
        assert b"set-cookie: member=" in moved
        assert found[1] not in moved


async def test_hash_keeps_a_key_at_its_member() -> None:
    settings: dict[str, Any] = {"policy": "hash", "hash_key": ("header", "X-Tenant")}
    async with Member() as one, Member() as two, Member() as three, balance(one, two, three, **settings) as running:
        for tenant in range(30):
            for _ in range(2):
                await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nX-Tenant: %d\r\n\r\n" % tenant))
        members = [it.member for it in running.records]
        assert members[::2] == members[1::2]
        assert len(set(members)) == 3


async def test_repeats_cannot_double_a_load() -> None:
    async def drop(connection: Connection) -> None:
        await connection.head()
        connection.reset()

    async with Member(drop) as one, Member(drop) as two, balance(one, two, queue_max=10_000) as running:
        for _ in range(10):
            await asyncio.gather(*(running.exchange(GET) for _ in range(30)))
        repeats = sum(len(it.attempts) - 1 for it in running.records)
        assert BUDGET_FLOOR <= repeats <= BUDGET_FLOOR + 60
        assert {it.status for it in running.records} == {502}


async def test_member_that_only_failed_requests_is_tried_rather_than_refused() -> None:
    """With QUEUE_TIMEOUT 0 nobody waits for a probe; a member that is back is found by the next request."""
    async with Member() as one, balance(one, health_interval=60, queue_timeout=0) as running:
        member = running.balancer.membership.members[one.address]
        member.probe_at = float("inf")
        member.probing = OVERLAP  # no probe will come
        await one.stop()
        assert b"x-balancer-error: no_member" in await running.exchange(GET)
        assert member.down_by_requests
        await one.start_again()
        assert (await running.exchange(GET)).endswith(b"ok")


async def test_new_member_starts_slowly() -> None:
    port = free_port()
    async with Member() as one, balance(one, Address("127.0.0.1", port), wait=False, slow_start=60) as running:
        await running.available(1)
        running.balancer.membership.warm_up(time.monotonic() + 60)
        async with Member(port=port) as late:
            await running.available(2)
            for _ in range(110):
                await running.exchange(GET)
            assert Counter(it.member for it in running.records)[late.address] == 10


async def test_two_hosts_are_refused_over_every_front_end() -> None:
    async with Member() as member, balance(member) as running:
        answer = await running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-balancer-error: malformed_request\r\n" in answer
        assert member.received == []
