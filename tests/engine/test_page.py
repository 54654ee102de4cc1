"""The status page in a browser, on the real system: what is done to the workers is seen as it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.support.browser import browser
from tests.support.compose import Compose

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

TOKEN = "only-for-this-test"
# Seconds within which a change has to be on the page; the engine itself takes as long as it takes.
SEEN = 2.0
PATIENCE = 20_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(engine: None) -> AsyncIterator[Compose]:
    """A project of its own, because actions need a token here."""
    compose = Compose("balancerpage", BALANCER_ADMIN_TOKEN=TOKEN, BALANCER_HEALTH_PATH="/healthz")
    async with compose.running():
        yield compose


@pytest_asyncio.fixture(loop_scope="session")
async def page(system: Compose) -> AsyncIterator[Page]:
    """The page, open; it must not complain of anything, and is never loaded again."""
    async with browser() as chromium:
        opened = await chromium.new_page()
        complaints: list[str] = []
        loads: list[str] = []
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        opened.on("load", lambda _: loads.append("load"))
        await opened.goto(system.admin)
        await expect(opened.get_by_role("status").first).to_have_text("live")
        yield opened
        refused = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
        assert [it for it in complaints if it != refused] == []
        assert loads == ["load"]


async def test_workers_that_start_are_on_the_page_within_two_seconds_of_dns(system: Compose, page: Page) -> None:
    await system.scale(1)
    rows = page.locator("#rows tr")
    await expect(rows).to_have_count(1, timeout=PATIENCE)
    scaling = asyncio.create_task(system.scale(3))
    # Compose returns when the containers have started; the page may know before.
    await scaling
    done = time.monotonic()
    await expect(page.locator("#rows .badge", has_text="up")).to_have_count(3, timeout=PATIENCE)
    assert time.monotonic() - done < SEEN
    await expect(rows).to_have_count(3)
    for number in (1, 2, 3):
        await expect(rows.filter(has_text=f"{system.project}-worker-{number}")).to_have_count(1, timeout=PATIENCE)


async def test_drain_by_the_button_stops_traffic_to_that_member(system: Compose, page: Page) -> None:
    await system.scale(2)
    row = page.locator("#rows tr").filter(has_text="worker-1")
    await expect(page.locator("#rows .badge", has_text="up")).to_have_count(2, timeout=PATIENCE)
    await row.get_by_role("button", name="Drain").click()
    # A wrong token first, and then the right one.
    await page.get_by_label("Token", exact=True).fill("not-the-token")
    await page.get_by_role("button", name="Use it").click()
    await expect(page.get_by_text("That is not the token")).to_be_visible()
    await page.get_by_label("Token", exact=True).fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(row.locator(".badge")).to_have_text("◆ drained by hand")
    assert len(await system.hostnames(1, 1.0)) == 1
    before = await requests(system)
    await system.greetings(20)
    after = await requests(system)
    moved = {address: after[address] - before[address] for address in after}
    drained = await row.locator(".address").inner_text()
    assert moved.pop(drained) == 0
    assert list(moved.values()) == [20]
    log = page.get_by_role("list", name="Events")
    await expect(log.get_by_text(f"{drained} drained by hand")).to_have_count(1)
    await row.get_by_role("button", name="Undrain").click()
    await expect(row.locator(".badge")).to_have_text("✓ up")
    assert len(await system.hostnames(2, 5.0)) == 2


async def test_event_log_says_why_a_member_went_and_what_it_cost(system: Compose, page: Page) -> None:
    await system.scale(2)
    await expect(page.locator("#rows .badge", has_text="up")).to_have_count(2, timeout=PATIENCE)
    victim, _ = await system.containers("worker")
    address = f"{await system.address(victim)}:80"
    async with system.load(rate=100) as tally:
        await system.run("docker", "update", "--restart", "no", victim)
        await system.run("docker", "kill", victim)
        log = page.get_by_role("list", name="Events")
        await expect(log.get_by_text(f"{address} left DNS")).to_be_visible(timeout=PATIENCE)
        await expect(page.locator("#rows tr")).to_have_count(1, timeout=PATIENCE)
    assert not tally.failures
    async with httpx.AsyncClient(trust_env=False) as client:
        events = (await client.get(system.admin + "/api/events")).json()["events"]
    # Whether a request, or the probe, or DNS is the first to notice, the page says what the API says.
    told = [it["text"] for it in events if address in it["text"] and it["kind"] in ("state", "left", "failed")]
    assert told
    for text in told:
        await expect(log.get_by_text(text).first).to_be_attached()
    await system.run("docker", "rm", "--force", victim)


async def requests(system: Compose) -> dict[str, int]:
    """How many each member has had."""
    async with httpx.AsyncClient(trust_env=False) as client:
        (pool,) = (await client.get(system.admin + "/api/status")).json()["pools"]
    return {it["address"]: it["requests"] for it in pool["members"]}


async def test_actions_without_a_browser_take_the_token_too(system: Compose) -> None:
    await system.scale(1)
    async with httpx.AsyncClient(trust_env=False) as client:
        (pool,) = (await client.get(system.admin + "/api/status")).json()["pools"]
        url = f"{system.admin}/api/members/{pool['members'][0]['address']}/undrain"
        assert (await client.post(url, json={})).status_code == 401
        assert (await client.post(url, json={}, headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200
