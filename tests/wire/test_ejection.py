"""A member that fails or is slow while the others are not loses its requests; clients notice next to nothing of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from balancer.members import member as members
from balancer.members.ejection import EjectionKind
from balancer.telemetry.observer import Observer
from tests.support.messages import GET
from tests.support.messages import LAST_GET as LAST
from tests.support.wire import LIMIT, OK, Connection, Member, Running, balance, eventually

pytestmark = pytest.mark.usefixtures("each_way")

ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Worker(Member):
    """A member that answers as ``fault`` says: "" for well. ``got``: requests so far."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.fault = ""
        self.got = 0

    async def answer(self, connection: Connection) -> None:
        while True:
            await connection.head()
            self.got += 1
            match self.fault:
                case "garbage":
                    await connection.send(b"\x00garbage\r\n\r\n")
                case "reset":
                    connection.reset()
                    return
                case "500":
                    await connection.send(ERROR)
                case "slow":
                    await asyncio.sleep(0.2)
                    await connection.send(OK)
                case "hung":
                    await connection.to_end()
                case _:
                    await connection.send(OK)


class Recorder(Observer):
    """Records what happens to members."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def ejected(self, member: members.Member) -> None:
        self.stages.append(
            "restored" if member.ejection is None else "trial" if member.ejection.on_trial else "ejected"
        )


async def send(running: Running, count: int, request: bytes = LAST, every: float = 0.005) -> Counter[bytes]:
    """Send requests at a steady rate, whatever becomes of those before; return how often each status came."""
    statuses: Counter[bytes] = Counter()

    async def visit() -> None:
        response = await running.exchange(request)
        statuses[response[9:12]] += 1

    async with asyncio.TaskGroup() as visits:
        for _ in range(count):
            visits.create_task(visit())
            await asyncio.sleep(every)
    return statuses


@pytest.mark.parametrize("fault", ["garbage", "reset", "500"])
async def test_failing_member_is_out_after_few_requests(fault: str) -> None:
    async with Worker() as bad, Worker() as one, Worker() as other, balance(bad, one, other) as running:
        assert await send(running, 150) == {b"200": 150}
        bad.fault, before = fault, bad.got
        statuses = await send(running, 150)
        member = running.balancer.membership.members[bad.address]
        assert member.ejection and member.ejection.kind is EjectionKind.FAILURES
        assert 6 <= bad.got - before <= 20
        if fault == "500":
            assert statuses[b"500"] == bad.got - before
        else:
            assert statuses == {b"200": 150}
        before = bad.got
        assert await send(running, 60) == {b"200": 60}
        assert bad.got == before


@pytest.mark.parametrize("fault", ["slow", "hung"])
async def test_member_that_is_much_slower_than_the_others_is_out_within_seconds(fault: str) -> None:
    # Its connection is cut at the end, which a GET survives on another member.
    async with Worker() as one, Worker() as other, Worker() as bad, balance(bad, one, other) as running:
        await send(running, 100)
        bad.fault = fault
        member = running.balancer.membership.members[bad.address]
        async with asyncio.TaskGroup() as visits, asyncio.timeout(LIMIT):
            while member.ejection is None:
                visits.create_task(running.exchange(LAST))
                await asyncio.sleep(0.01)
            if fault == "hung":
                await bad.stop()
        assert member.ejection.kind is EjectionKind.LATENCY


async def test_all_members_fail_alike_none_is_ejected_and_clients_get_every_answer() -> None:
    async with Worker() as one, Worker() as two, Worker() as three, balance(one, two, three) as running:
        await send(running, 30)
        for worker in (one, two, three):
            worker.fault = "500"
        assert await send(running, 90, every=0.01) == {b"500": 90}
        assert all(member.ejection is None for member in running.balancer.members.values())


async def test_clients_that_leave_and_statuses_of_the_request_eject_none() -> None:
    async with Worker() as bad, Worker() as good, balance(bad, good) as running:
        await send(running, 50)
        bad.fault = "hung"
        for _ in range(40):
            async with running.client() as client:
                await client.send(GET)
                await asyncio.sleep(0.002)
        await running.idle()
        assert all(member.ejection is None for member in running.balancer.members.values())


async def test_member_ejected_by_hand_comes_back_by_a_trial() -> None:
    recorder = Recorder()
    async with Worker() as one, Worker() as two, balance(one, two, observers=[recorder], eject=False) as running:
        member = running.balancer.members[one.address]
        running.balancer.eject(member, 3)
        await send(running, 10, every=0.001)
        assert one.got == 0
        await eventually(lambda: member.ejection is not None and member.ejection.on_trial)
        running.balancer.restore(member)
        assert member.ejection is None
        await send(running, 20, every=0.001)
        assert 10 <= one.got <= 11
    assert recorder.stages == ["ejected", "trial", "restored"]


@pytest.mark.parametrize(
    "settings", [{}, {"policy": "hash", "hash_key": ("header", "host")}, {"sticky_cookie": "m"}, {"policy": "random"}]
)
async def test_only_member_that_is_left_gets_requests_though_it_is_ejected(settings: dict[str, Any]) -> None:
    async with Worker() as one, Worker() as two, balance(one, two, **settings) as running:
        running.balancer.eject(running.balancer.members[one.address], 60)
        assert await send(running, 10) == {b"200": 10}
        assert one.got == 0
        await two.stop()
        assert await send(running, 10) == {b"200": 10}
        assert one.got >= 9


async def test_ejection_that_is_off_leaves_a_failing_member_in() -> None:
    async with Worker() as bad, Worker() as good, balance(bad, good, eject=False) as running:
        bad.fault = "500"
        assert await send(running, 60) == {b"200": 30, b"500": 30}
        assert running.balancer.members[bad.address].tally is None


async def test_posts_to_a_failing_member_run_once_and_end_with_its_ejection() -> None:
    async with Worker() as bad, Worker() as good, balance(bad, good) as running:
        await send(running, 50)
        bad.fault, before = "reset", bad.got
        statuses = await send(running, 60, LAST.replace(b"GET", b"POST"))
        assert statuses[b"502"] == bad.got - before <= 20
