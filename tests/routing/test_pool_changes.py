"""What becomes of requests when the routes change."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from balancer.routing import pools
from balancer.types import Address
from balancer.upstream.native import NativeUpstream
from tests.support.routed import TWO, named, routed, slow_one
from tests.support.websocket import member as websocket_member
from tests.support.wire import Member, eventually


async def test_request_known_by_its_bytes_goes_by_the_new_routes(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running, running.client() as client:
        for name, other in (("one", "two"), ("two", "one"), ("one", "two")):
            for _ in range(5):
                await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.head()
                assert await client.exactly(3) == name.encode()
            await running.reload(f"[{other}]\n")
        assert [it.pool for it in running.records] == ["one"] * 5 + ["two"] * 5 + ["one"] * 5


async def test_pool_whose_settings_stay_is_left_alone(tmp_path: Path) -> None:
    async with routed(tmp_path, TWO) as running:
        for _ in range(3):
            assert await running.name("/two", "b") == "two"
        pool = running.pool("two")
        upstream = pool.upstream
        assert isinstance(upstream, NativeUpstream)
        before = pool, list(pool.membership.members.values()), upstream.opened
        await running.reload("[zwei]\nalias = 'two'\npath = ['/zwei', '/two']\n")
        assert await running.name("/zwei", "b") == "two"
        after = running.pool("zwei")
        assert (after, list(after.membership.members.values()), upstream.opened) == before
        assert upstream.opened == 1


async def test_pool_that_is_gone_finishes_what_it_has_and_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gate = asyncio.Event()
    async with slow_one(tmp_path, gate) as (slow, running):
        pool = running.pool("one")
        asked = asyncio.create_task(running.name())
        await eventually(lambda: len(slow.received) == 1)
        await running.reload("[two]\n")
        assert await running.name() == "two"
        assert [it.name for it in running.pools.current()] == ["two"]
        assert not [it for it in caplog.messages if "closed" in it]
        gate.set()
        assert await asked == "slow"
        await eventually(lambda: "pool one closed: its last request is over" in caplog.messages)
        assert pool not in running.pools._running
        assert isinstance(pool.upstream, NativeUpstream)
        assert (pool.upstream.active, pool.upstream.idle) == (0, 0)


@pytest.mark.usefixtures("each_front")
async def test_websocket_of_a_pool_that_is_gone_goes_on(tmp_path: Path) -> None:
    async with (
        websocket_member() as address,
        Member(named("two")) as two,
        routed(tmp_path, "[one]\n", members={"one": address, "two": two}) as running,
    ):
        pool = running.pool("one")
        async with connect(f"ws://{running.address}/", proxy=None) as websocket:
            await running.reload("[two]\n")
            for _ in range(3):
                await websocket.send("hello")
                assert await websocket.recv() == "hello"
            assert await running.name() == "two"
            assert pool in running.pools._running
        await eventually(lambda: pool not in running.pools._running)


@pytest.mark.usefixtures("each_front")
async def test_requests_that_a_pool_holds_are_served_when_it_is_gone(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n", queue_timeout=5, resolve_interval=0.1) as running:
        running.resolvers["one"].names_none()
        pool = running.pool("one")
        address = next(iter(pool.membership.members))
        await eventually(lambda: not pool.membership.members)
        asked = asyncio.create_task(running.name())
        await eventually(lambda: len(pool.dispatcher.queue) == 1)
        await running.reload("[two]\n")
        assert await running.name() == "two"
        running.resolvers["one"].found(address)
        assert await asked == "one"


async def test_requests_that_a_pool_holds_in_vain_are_told_so_in_time(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n", queue_timeout=1, resolve_interval=0.1) as running:
        running.resolvers["one"].names_none()
        pool = running.pool("one")
        await eventually(lambda: not pool.membership.members)
        asked = asyncio.create_task(running.ask())
        await eventually(lambda: len(pool.dispatcher.queue) == 1)
        await running.reload("[two]\n")
        assert "x-balancer-error: no_member" in await asked
        await eventually(lambda: pool not in running.pools._running)


async def test_pool_that_is_wanted_again_is_taken_back(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with slow_one(tmp_path, gate) as (slow, running):
        pool = running.pool("one")
        asked = asyncio.create_task(running.name())
        await eventually(lambda: len(slow.received) == 1)
        await running.reload("[two]\n")
        await running.reload("[one]\n")
        assert running.pool("one") is pool
        gate.set()
        assert await asked == "slow"
        assert await running.name() == "slow"
        assert pool in running.pools._running


async def test_new_pool_gets_requests_once_dns_and_its_members_have_answered(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.resolvers["two"].broken()
        running.file.write_text("[two]\n")
        running.pools.reload()
        calls = running.resolvers["two"].calls
        await eventually(lambda: running.resolvers["two"].calls > calls + 1)
        assert await running.name() == "one"
        (two,) = running.pools._running - set(running.pools.current())
        running.resolvers["two"].found(await unused_member())
        await eventually(lambda: running.pools._reloading is None)
        assert [it.last_probe_answered > 0 for it in two.membership.members.values()] == [True]
        assert running.pools.current() == [two]


async def unused_member() -> Address:
    async with Member() as member:
        return member.address


async def test_new_pool_without_members_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "READY_SECONDS", 0.3)
    async with routed(tmp_path, "[one]\n", queue_timeout=0) as running:
        running.resolvers["two"].broken()
        await running.reload("[two]\n")
        assert "x-balancer-error: no_member" in await running.ask()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[one", "cannot be used: it is not TOML: "),
        (
            "[one]\ndns_record = 'best'\n[two]\nport = 1",
            "[one] dns_record='best' cannot be used: it takes one of a, aaaa",
        ),
        ("", "cannot be used: there is no route in it"),
    ],
)
async def test_bad_file_changes_nothing_and_one_line_says_why(
    text: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        before = running.pools.current()
        caplog.clear()
        await running.reload(text)
        (line,) = [it.getMessage() for it in caplog.records if it.name == "balancer.routing.pools"]
        assert line.startswith(f"the routes stay as they were: BALANCER_ROUTES={running.file} ")
        assert words in line
        assert "\n" not in line
        assert running.pools.current() == before
        assert await running.name() == "one"


async def test_pool_that_cannot_be_made_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        await running.reload("[three]\n")
        assert "the routes stay as they were: a pool cannot be made: KeyError: 'three'" in caplog.messages
        assert await running.name() == "one"


async def test_file_that_is_gone_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.file.unlink()
        running.pools.reload()
        await eventually(lambda: any("No such file or directory" in it for it in caplog.messages))
        assert await running.name() == "one"


async def test_change_during_a_change_is_not_missed(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.resolvers["two"].broken()
        running.file.write_text("[two]\n")
        running.pools.reload()
        await eventually(lambda: len(running.pools._running) == 2)
        running.file.write_text("[one]\npath = '/only'\n")
        running.pools.reload()
        running.resolvers["two"].names_none()
        await eventually(lambda: running.pools._reloading is None)
        assert await running.name("/only") == "one"
        assert "no_route" in await running.ask("/")


async def test_stop_during_a_change_closes_every_pool(tmp_path: Path) -> None:
    async with routed(tmp_path, "[one]\n") as running:
        running.resolvers["two"].broken()
        running.file.write_text("[two]\n")
        running.pools.reload()
        await eventually(lambda: len(running.pools._running) == 2)
    assert not running.pools._running
