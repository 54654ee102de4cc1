"""What the status page is sent, and when."""

from __future__ import annotations

import asyncio
import logging

import pytest

from balancer.admin import places, status_feed
from balancer.admin.history import CHART
from balancer.admin.status_feed import StatusFeed
from balancer.admin.subscriber import Subscriber
from balancer.discovery.container_names import ContainerNames
from balancer.telemetry.stats import Stats
from tests.support.admin import administer, opened, until
from tests.support.messages import LAST_GET as GET
from tests.support.scripted import ScriptedResolver
from tests.support.wire import Member, balance, eventually


async def test_page_is_sent_everything_once_and_then_what_changes() -> None:
    async with (
        Member() as one,
        Member() as two,
        balance(one, two, stats=Stats()) as running,
        administer(running) as port,
        opened(port) as page,
    ):
        kind, whole = await page.next()
        assert kind == "whole"
        (pool,) = whole["pools"]
        assert [row[1] for row in pool["members"]] == sorted([str(one.address), str(two.address)])
        assert whole["access"] == "open"
        for _ in range(4):
            await running.exchange(GET)
        message = await until(page, lambda it: it["sample"] and it["pools"][0]["summary"]["recent"])
        rows = message["pools"][0]["values"]
        assert sorted(row[3] for row in rows) == [2, 2]
        # Who did nothing new is left out.
        message = await until(page, lambda it: it["sample"] and not any(row[2] for row in it["pools"][0]["values"]))
        message = await until(page, lambda it: it["sample"])
        assert message["pools"][0]["values"] == []
        assert message["pools"][0]["members"] == []


async def test_change_of_members_does_not_wait_for_the_second() -> None:
    resolver = ScriptedResolver()
    async with (
        Member() as one,
        Member() as two,
        balance(one, resolve=resolver, stats=Stats(), wait=False) as running,
        administer(running) as port,
        opened(port) as page,
    ):
        _, whole = await page.next()
        assert whole["pools"][0]["members"] == []
        resolver.found(one.address, two.address)
        numbers: dict[str, int] = {}
        while len(numbers) < 2:
            _, message = await page.next()
            numbers |= {row[1]: row[0] for row in message["pools"][0]["members"] if row[3] == "up"}
        await port.act("drain", two.address)
        message = await until(page, lambda it: it["pools"][0]["members"])
        assert message["sample"] is False
        assert message["events"][0]["text"] == f"{two.address} drained by hand"
        resolver.found(two.address)
        message = await until(page, lambda it: it["pools"][0]["left"])
        assert message["pools"][0]["left"] == [numbers[str(one.address)]]
        assert message["events"][-1]["text"] == f"{one.address} left DNS"


async def test_fresh_page_has_the_history_of_those_that_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_feed, "INTERVAL", 0.05)
    resolver = ScriptedResolver()
    async with Member() as one, Member() as two:
        resolver.found(one.address, two.address)
        async with balance(one, two, resolve=resolver, stats=Stats()) as running, administer(running) as port:
            for _ in range(6):
                await running.exchange(GET)
            resolver.found(two.address)
            await eventually(lambda: one.address not in running.balancer.membership.members)
            await asyncio.sleep(0.2)  # a few samples later
            async with opened(port) as page:
                _, whole = await page.next()
            (pool,) = whole["pools"]
            chart = {address: (ago, rates) for _, address, _, ago, rates in pool["chart"]}
            assert [row[1] for row in pool["members"]] == [str(two.address)]
            ago, rates = chart[str(one.address)]
            assert ago > 0
            assert any(rates)
            assert chart[str(two.address)][0] == 0
            # And no longer than the chart goes back.
            async with asyncio.timeout(CHART * 0.05 * 3):
                while len(pool["chart"]) > 1:
                    async with opened(port) as page:
                        _, whole = await page.next()
                    (pool,) = whole["pools"]
                    await asyncio.sleep(0.1)


async def test_page_that_does_not_read_is_sent_everything_anew_and_costs_no_memory() -> None:
    async with Member() as one, balance(one, stats=Stats()) as running:
        made = StatusFeed(lambda: [running.balancer], ContainerNames([]), access="open")
        with Subscriber(made) as slow, Subscriber(made) as quick:
            first = await slow.next()
            assert first == await quick.next()
            made._update(sample=True)
            assert (await quick.next()).startswith(b"event: delta\n")
            made._update(sample=True)
            assert (await quick.next()).startswith(b"event: delta\n")
            assert (await slow.next()).startswith(b"event: whole\n")
            made._update(sample=True)
            assert await slow.next() == await quick.next()
        assert made.page_count == 0


async def test_pages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_PAGES", 1)
    async with balance(stats=Stats()) as running, administer(running) as port:
        async with opened(port) as page:
            await page.next()
            response = await port.get("/api/stream")
            assert (response.status_code, response.json()["error"]) == (503, "too_many_pages")
        async with asyncio.timeout(5):
            while True:  # until it is noticed that the other has left
                async with port.stream("GET", "/api/stream") as response:
                    if response.status_code == 200:
                        break
                await asyncio.sleep(0.02)


async def test_end_of_the_balancer_ends_streams_at_once() -> None:
    async with balance(stats=Stats()) as running, administer(running) as port, opened(port) as page:
        await page.next()
        port.admin.stop()
        async with asyncio.timeout(2):
            async for _ in page._lines:
                pass


async def test_balancer_outlives_its_status_page(caplog: pytest.LogCaptureFixture) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running) as port:
        pool = port.admin._feed
        with caplog.at_level(logging.ERROR):
            pool._views = lambda: None  # type: ignore[assignment, return-value]
            pool._update(sample=True)
        assert "the status page could not be brought up to date" in caplog.text
        assert b" 200 " in await running.exchange(GET)
        assert (await port.get("/healthz")).text == "ok\n"
