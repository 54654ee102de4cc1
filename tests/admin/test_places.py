"""Places of open pages: a crowd without the token, or of one address, does not keep operators out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from balancer.admin import places
from balancer.asgi import application
from balancer.telemetry.stats import Stats
from tests.support.admin import AdminPort, administer, check
from tests.support.wire import Member, balance

TOKEN, OTHER_TOKEN = "correct-horse-battery", "another-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Crowd(AsyncExitStack):
    """Clients of many addresses that open pages."""

    def __init__(self, port: AdminPort) -> None:
        super().__init__()
        self._port = port

    async def open(self, host: str = "127.77.0.1", headers: dict[str, str] | None = None) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(local_address=host, verify=False)
        client = httpx.AsyncClient(transport=transport, base_url=f"http://{self._port.address}", timeout=10)
        await self.enter_async_context(client)
        response = await self.enter_async_context(client.stream("GET", "/api/stream", headers=headers))
        if response.status_code != 200:
            await response.aread()
            check("Problem", response.json())
        return response

    async def open_many(self, number: int) -> list[int]:
        """Open so many, each address as many as fit; the statuses."""
        return [(await self.open(f"127.77.0.{2 + index % 6}")).status_code for index in range(number)]


@asynccontextmanager
async def crowd(token: str | None = None) -> AsyncIterator[Crowd]:
    async with (
        balance(stats=Stats()) as running,
        administer(running, admin_token=token) as port,
        Crowd(port) as them,
    ):
        yield them


async def test_places_are_kept_for_those_who_send_the_token() -> None:
    async with crowd(TOKEN) as them:
        assert await them.open_many(168) == [200] * 168
        late = await them.open()
        assert (late.status_code, late.json()["error"]) == (503, "pages_need_token")
        for _ in range(places.KEPT):
            assert (await them.open(headers=BEARER)).status_code == 200
        late = await them.open(headers=BEARER)
        assert (late.status_code, late.json()["error"]) == (503, "too_many_pages")


async def test_all_places_are_for_all_where_no_token_is_set() -> None:
    async with crowd() as them:
        assert await them.open_many(200) == [200] * 200
        late = await them.open()
        assert (late.status_code, late.json()["reason"]) == (503, "200 pages are open already")


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_one_address_has_a_share_of_the_places(token: str | None) -> None:
    async with crowd(token) as them:
        for _ in range(places.SHARE):
            assert (await them.open()).status_code == 200
        late = await them.open()
        assert (late.status_code, late.json()["reason"]) == (503, "50 pages of your address are open already")
        assert (await them.open("127.77.0.2")).status_code == 200
        assert (await them.open(headers=BEARER)).status_code == (200 if token else 503)


async def test_page_with_a_wrong_token_is_refused_as_an_action_is() -> None:
    async with crowd(TOKEN) as them:
        late = await them.open(headers={"Authorization": "Bearer wrong-horse-battery"})
        assert (late.status_code, late.json()["error"]) == (401, "token_needed")
        assert late.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/api/status", "/metrics", "/"])
async def test_request_with_the_token_waits_for_no_turn(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "PAUSE", 100_000)
    async with balance(stats=Stats()) as running, administer(running, admin_token=TOKEN) as port:
        assert (await port.get(path)).status_code == 200
        waits = asyncio.create_task(port.get(path))
        for _ in range(3):
            assert (await port.get(path, headers=BEARER)).status_code == 200
        assert not waits.done()
        waits.cancel()


# The token in a file.


async def test_token_of_the_file_is_read_again_and_kept_where_that_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)

    async def status(port: AdminPort, token: str) -> int:
        return (await port.act("drain", "10.0.0.1:80", None, Authorization=f"Bearer {token}")).status_code

    async with (
        Member() as member,
        balance(member, stats=Stats()) as running,
        administer(running, admin_token=TOKEN, admin_token_file=str(file)) as port,
    ):
        assert [await status(port, token) for token in (TOKEN, OTHER_TOKEN)] == [404, 401]
        file.write_text(OTHER_TOKEN)
        port.admin.read_token_again()
        assert [await status(port, token) for token in (TOKEN, OTHER_TOKEN)] == [401, 404]
        file.write_text("")
        port.admin.read_token_again()
        assert [await status(port, token) for token in (TOKEN, OTHER_TOKEN)] == [401, 404]
        assert caplog.messages[-1].endswith("cannot be used: the file is empty; the token before stays")
