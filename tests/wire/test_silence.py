"""Members that say nothing any more: hung, paused, cut off from the network."""

from __future__ import annotations

import asyncio

import pytest

from balancer.health import State
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import Connection, Member, Running, balance, eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


async def mute(connection: Connection) -> None:
    await connection.to_end()


async def waiting(running: Running, member: Member, request: bytes) -> asyncio.Task[bytes]:
    """A request that has arrived at the member."""
    task = asyncio.create_task(running.exchange(request))
    await eventually(lambda: bool(member.received))
    return task


async def test_a_get_moves_away_from_a_member_that_its_probes_find_silent() -> None:
    probe = ScriptedProbe()
    resolver = ScriptedResolver()
    async with Member(mute) as silent, Member() as good, balance(resolve=resolver, probe=probe) as running:
        resolver.found(silent.address)
        await running.available(1)
        request = await waiting(running, silent, GET)
        resolver.found(silent.address, good.address)
        await running.available(2)
        probe.silent.add(silent.address)
        assert (await request).endswith(b"ok")
        assert running.balancer.membership.members[silent.address].state is State.DOWN
        assert running.records[0].tries == [(silent.address, "died", "the member stopped answering")]


async def test_a_get_moves_away_from_a_member_that_left_dns_and_is_silent() -> None:
    probe = ScriptedProbe()
    async with Member(mute) as silent, Member() as good:
        resolver = ScriptedResolver(silent.address)
        async with balance(resolve=resolver, probe=probe, resolve_interval=0.1) as running:
            await running.available(1)
            request = await waiting(running, silent, GET)
            probe.silent.add(silent.address)
            resolver.found(good.address)
            assert (await request).endswith(b"ok")


@pytest.mark.parametrize("down", [False, True], ids=["accepts", "refuses"])
async def test_a_member_that_left_dns_and_is_not_silent_finishes_what_it_has(down: bool) -> None:
    answer = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.head()
        await answer.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    probe = ScriptedProbe()
    async with Member(slow) as leaving, Member() as good:
        resolver = ScriptedResolver(leaving.address)
        async with balance(resolve=resolver, probe=probe, resolve_interval=0.1) as running:
            await running.available(1)
            request = await waiting(running, leaving, GET)
            if down:
                probe.down.add(leaving.address)
            resolver.found(good.address)
            await eventually(lambda: list(running.balancer.membership.members) == [good.address])
            await eventually(lambda: not running.balancer._farewells)
            answer.set()
            assert (await request).endswith(b"slow")


async def test_a_post_stays_with_a_silent_member() -> None:
    probe = ScriptedProbe()
    limits = {"resolve_interval": 0.1, "response_timeout": 1.0}
    async with Member(mute) as silent, Member() as good, balance(silent, good, probe=probe, **limits) as running:  # type: ignore[arg-type]
        requests = [asyncio.create_task(running.exchange(POST)) for _ in range(2)]
        await eventually(lambda: bool(silent.received))
        probe.silent.add(silent.address)
        answers = sorted(await asyncio.gather(*requests))
        assert answers[0].startswith(b"HTTP/1.1 200")
        assert answers[1].startswith(b"HTTP/1.1 504")
        assert len(silent.received) == 1
