from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import dns.name
import pytest

from balancer.discovery.srv_targets import MAX_QUERIES, REFRESHED, Hosts, SrvTargets
from tests.support.virtual import VirtualLoop


def on_wire(name: str) -> bytes:
    wire = dns.name.from_text(name).to_wire()
    assert wire
    return wire


def wire(number: int) -> bytes:
    return on_wire(f"w{number}.")


class Server:
    """Answers every name with an address, after 10 ms, but for those that fail."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.failing: set[str] = set()
        self.under_way = self.most = 0
        self.targets = SrvTargets(self.query)

    async def query(self, name: dns.name.Name) -> Hosts:
        text = name.to_text()
        self.asked[text] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.01)
        finally:
            self.under_way -= 1
        if text in self.failing or "*" in self.failing:
            raise OSError("SERVFAIL")
        return (f"10.0.0.{self.asked[text]}",)

    async def resolve(self, names: range, **given: Hosts) -> dict[bytes, Hosts]:
        glue = {on_wire(name + "."): hosts for name, hosts in given.items()}
        return await self.targets.resolve({wire(it) for it in names}, glue)


def play(script: Callable[[Server], Awaitable[None]]) -> Server:
    loop = VirtualLoop()
    server = Server()
    try:
        loop.run_until_complete(script(server))
    finally:
        loop.close()
    return server


def test_many_names_are_asked_for_a_few_at_a_time_however_many_rounds_overlap() -> None:
    async def script(server: Server) -> None:
        found = await asyncio.gather(*(server.resolve(range(500)) for _ in range(5)))
        assert all(len(it) == 500 for it in found)

    server = play(script)
    assert server.most == MAX_QUERIES
    assert set(server.asked.values()) == {1}


def test_few_names_are_asked_for_in_every_round_and_of_many_some_in_turn() -> None:
    async def script(server: Server) -> None:
        for _ in range(4):
            await server.resolve(range(REFRESHED))
        assert set(server.asked.values()) == {4}
        server.asked.clear()
        many = range(1000, 1000 + 4 * REFRESHED)
        for _ in range(9):
            await server.resolve(many)
        assert {server.asked[f"w{it}."] for it in many} == {3}

    play(script)


def test_new_name_is_asked_for_at_once_among_many() -> None:
    async def script(server: Server) -> None:
        await server.resolve(range(300))
        found = await server.resolve(range(301))
        assert found[wire(300)] == ("10.0.0.1",)

    play(script)


def test_failure_leaves_what_is_known() -> None:
    async def script(server: Server) -> None:
        await server.resolve(range(2))
        server.failing = {"w1.", "w2."}
        found = await server.resolve(range(3))
        assert found == {wire(0): ("10.0.0.2",), wire(1): ("10.0.0.1",)}
        server.failing = {"*"}
        assert await server.resolve(range(3)) == found

    play(script)


def test_targets_that_cannot_be_resolved_are_no_empty_answer() -> None:
    async def script(server: Server) -> None:
        server.failing = {"*"}
        for _ in range(3):
            with pytest.raises(OSError, match="SERVFAIL"):
                await server.resolve(range(3))

    play(script)


def test_addresses_that_came_along_need_no_query() -> None:
    async def script(server: Server) -> None:
        assert await server.resolve(range(1), w0=("10.9.9.9",)) == {wire(0): ("10.9.9.9",)}

    assert not play(script).asked


def test_round_that_was_broken_off_does_not_keep_the_next_waiting() -> None:
    async def script(server: Server) -> None:
        first = asyncio.ensure_future(server.resolve(range(100)))
        await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        async with asyncio.timeout(5):
            assert len(await server.resolve(range(100))) == 100

    play(script)
