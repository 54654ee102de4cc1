"""The status page in a browser, over made-up members; tests/engine/test_page.py has it on the real system."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Page, expect

from balancer.admin import places
from balancer.admin.status_feed import StatusFeed
from balancer.admin.subscriber import Subscriber
from balancer.demo.dns_server import DnsServer, Zone
from balancer.discovery.container_names import ContainerNames
from balancer.dispatch.context import RequestRecord
from balancer.http.request import Request
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.admin import AdminPort, administer
from tests.support.browser import browser
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import Running, balance

MANY = [Address(f"10.0.0.{number}", 80) for number in range(1, 256)]


def answered(stats: Stats, address: Address, seconds: float = 0.004) -> None:
    record = RequestRecord(Request("GET", b"/", [], "192.0.2.1"), 0.0, b"id")
    record.status, record.member, record.duration = 200, address, seconds
    stats.done(record)


@asynccontextmanager
async def shown(
    addresses: list[Address], viewport: tuple[int, int] = (1280, 900), **settings: Any
) -> AsyncIterator[tuple[Page, Running, ScriptedProbe, AdminPort]]:
    """The page over these members; it must not complain of anything nor ask anybody else."""
    probe = ScriptedProbe()
    resolver = ScriptedResolver(*addresses)
    async with (
        browser() as chromium,
        balance(*addresses, resolve=resolver, probe=probe, stats=Stats()) as running,
        administer(running, **settings) as port,
    ):
        page = await chromium.new_page(viewport={"width": viewport[0], "height": viewport[1]})
        complaints: list[str] = []
        hosts: set[str] = set()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # A refused action is an answer, of which the browser complains all the same.
        page.on("console", lambda line: None if "409 (Conflict)" in line.text else complaints.append(line.text))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        await page.goto(f"http://{port.address}/")
        await expect(page.locator("#live")).to_have_text("live")
        yield page, running, probe, port
        assert complaints == []
        assert hosts == {str(port.address)}
        await page.close()


async def test_page_with_255_members_stays_readable() -> None:
    async with shown(MANY) as (page, _, probe, _):
        rows = page.locator("#rows tr")
        await expect(page.get_by_role("heading", name="255 members")).to_be_visible()
        await expect(rows).to_have_count(50)
        await page.get_by_role("button", name="Show all 255").click()
        await expect(rows).to_have_count(255)
        await expect(rows.last).to_contain_text("10.0.0.255:80")
        await page.get_by_label("Filter members").fill("10.0.0.77")
        await expect(rows).to_have_count(1)
        await page.get_by_label("Filter members").fill("")
        probe.down = {MANY[6], MANY[200]}
        await expect(page.get_by_role("button", name="down 2")).to_be_visible(timeout=15_000)
        await page.get_by_role("button", name="down 2").click()
        await expect(rows).to_have_count(2)
        await expect(rows.first).to_contain_text("connection refused, for")
        await expect(page.get_by_role("list", name="Events")).to_contain_text("10.0.0.7:80 down: connection refused")


async def test_keyboard_sorts_reads_the_chart_and_drains() -> None:
    async with shown(MANY[:3]) as (page, running, _, _):
        for _ in range(9):
            answered(running.balancer.stats or Stats(), MANY[1])
        await expect(page.locator("#rows tr").nth(1)).to_contain_text("100 %", timeout=10_000)
        await page.get_by_role("button", name="Share").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("th[aria-sort=descending]")).to_have_text("Share")
        await expect(page.locator("#rows tr").first).to_contain_text("10.0.0.2:80")
        await page.locator("#chart").focus()
        await page.keyboard.press("ArrowLeft")
        await expect(page.locator("#tip")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#tip")).to_be_hidden()
        await page.get_by_role("button", name="Drain 10.0.0.2:80").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Undrain 10.0.0.2:80")).to_be_visible()
        assert running.balancer.membership.members[MANY[1]].drained
        await expect(page.locator("#announce")).to_contain_text("10.0.0.2:80 drained by hand")


async def test_ejected_member_is_shown_with_its_figures_and_restored_by_a_button() -> None:
    async with shown(MANY[:3]) as (page, running, _, _):
        member = running.balancer.membership.members[MANY[1]]
        running.balancer.eject(member, 60)
        row = page.locator("#rows tr", has_text="10.0.0.2:80")
        await expect(row.locator(".badge")).to_have_text("⊘ ejected")
        await expect(row.locator(".why")).to_contain_text("by hand; for 5")
        await expect(page.get_by_role("button", name="Restore 10.0.0.1:80")).to_be_hidden()
        await page.get_by_role("button", name="Restore 10.0.0.2:80").click()
        await expect(row.locator(".badge")).to_have_text("✓ up")
        await expect(page.get_by_role("list", name="Events").get_by_text("10.0.0.2:80 restored")).to_be_visible()
        assert member.ejection is None


async def test_container_that_takes_the_address_of_another_is_a_row_of_its_own() -> None:
    zone = Zone()

    def point(name: str) -> None:
        zone.records["1.0.0.10.in-addr.arpa"] = [("PTR", f"{name}.shop_backend.")]

    point("worker-1")
    async with DnsServer(zone) as dns, shown(MANY[:2], resolver=dns.address) as (page, running, probe, _):
        button = page.get_by_role("button", name="Drain worker-1 10.0.0.1:80")
        await expect(button).to_be_visible()
        # The button is about to be pressed when the address becomes another container's.
        point("worker-2")
        await button.click()
        await expect(page.get_by_text("10.0.0.1:80 is worker-2 by now, not worker-1: nothing changes")).to_be_visible()
        await expect(page.get_by_role("button", name="Drain worker-2 10.0.0.1:80")).to_be_visible()
        await expect(page.locator("#rows tr")).to_have_count(2)
        assert not running.balancer.membership.members[MANY[0]].drained
        log = page.get_by_role("list", name="Events")
        probe.down = {MANY[0]}
        await expect(log.get_by_text("10.0.0.1:80 down: connection refused (worker-2)")).to_be_visible(timeout=15_000)
        point("worker-3")
        probe.down = set()
        up = log.get_by_text("10.0.0.1:80 up: accepts connections")
        await expect(up.first).to_have_text("10.0.0.1:80 up: accepts connections (worker-3)", timeout=15_000)
        await expect(up.last).to_have_text("10.0.0.1:80 up: accepts connections (worker-1)")
        await expect(log.get_by_text("10.0.0.1:80 down: connection refused (worker-2)")).to_be_visible()


async def test_page_where_actions_are_refused_says_why() -> None:
    async with shown(MANY[:1], admin_bind=Address("0.0.0.0", 9000)) as (page, _, _, _):
        await expect(page.get_by_text("BALANCER_ADMIN_TOKEN is not set")).to_be_visible()
        await expect(page.get_by_role("button", name="Drain")).to_be_disabled()


async def test_page_without_a_place_asks_for_the_token_and_gets_a_place_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_PAGES", places.KEPT + 1)
    token = "correct-horse-battery"
    async with shown(MANY[:1], admin_token=token) as (page, _, _, port):
        assert page.context.browser
        late = await page.context.browser.new_page()
        await late.goto(f"http://{port.address}/")
        await expect(late.locator("#live")).to_have_text("refused, trying again")
        await expect(late.locator("#banner")).to_contain_text("with it there are places left")
        await late.get_by_role("button", name="Token").click()
        await late.locator("#token-value").fill("wrong-horse-battery")
        await late.keyboard.press("Enter")
        await expect(late.locator("#token-why")).to_contain_text("That is not the token.")
        await late.locator("#token-value").fill(token)
        await late.keyboard.press("Enter")
        await expect(late.locator("#live")).to_have_text("live")
        await expect(late.locator("#rows tr")).to_have_count(1)
        await late.close()


async def test_telephone_shows_everything_without_scrolling_sideways() -> None:
    async with shown(MANY[:3], viewport=(360, 700)) as (page, _, _, _):
        await expect(page.locator("#rows tr")).to_have_count(3)
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        await expect(page.get_by_label("Sort by")).to_be_visible()


async def test_page_without_available_members_says_so() -> None:
    async with shown(MANY[:2]) as (page, _, probe, _):
        probe.down = set(MANY)
        await expect(page.locator("#banner")).to_have_text("No member is available.", timeout=15_000)


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage takes several times as long as what it measures")
async def test_twenty_pages_over_255_busy_members_take_under_3_percent_of_a_core() -> None:
    """The CPU time of what is made for pages each second; to write it takes each socket one call more."""
    stats = Stats()
    resolver = ScriptedResolver(*MANY)
    async with balance(*MANY, resolve=resolver, probe=ScriptedProbe(), stats=stats) as running:
        board = StatusFeed(lambda: [running.balancer], ContainerNames([]), access="open")
        open_pages = [Subscriber(board) for _ in range(20)]
        for page in open_pages:
            page.__enter__()
        spent = []
        for turn in range(12):
            for number, address in enumerate(MANY):
                for _ in range(3):
                    answered(stats, address, 0.001 * (1 + (number + turn) % 40))
            began = time.process_time()
            board._update(sample=True)
            pieces = await asyncio.gather(*(page.next() for page in open_pages))
            spent.append(time.process_time() - began)
            assert len(set(map(id, pieces))) == 1  # made once for all
        assert len(pieces[0]) < 25_000
    assert sorted(spent)[len(spent) // 2] < 0.03, spent
