"""The admin listener on loopback, the way ``balancer serve`` runs it, and what its API is documented to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

import balancer.admin
from balancer.config.settings import Settings
from balancer.process.admin_listener import Admin
from balancer.process.sockets import listen
from balancer.types import Address
from tests.support.wire import LIMIT, Running

OPENAPI = json.loads((Path(balancer.admin.__file__).parent / "openapi.json").read_text())
JSON = {"Content-Type": "application/json"}


def check(schema: str, value: object) -> None:
    """Raises ValidationError unless ``value`` is as the OpenAPI file says."""
    known = {"$ref": f"#/components/schemas/{schema}", "components": OPENAPI["components"]}
    Draft202012Validator(known).validate(value)


class AdminPort(httpx.AsyncClient):
    """A client of the admin listener, and the way to stop it."""

    def __init__(self, admin: Admin, address: Address) -> None:
        # Without TLS, for which httpx reads the authorities of this machine: 20 ms a client.
        super().__init__(base_url=f"http://{address}", trust_env=False, timeout=10, verify=False)
        self.admin = admin
        self.address = address

    async def act(self, what: str, address: object, body: object = None, **headers: str) -> httpx.Response:
        content = b"" if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.post(f"/api/members/{address}/{what}", content=content, headers=JSON | named)

    async def member(self, address: object) -> dict[str, Any]:
        """What the status says of one member."""
        (pool,) = (await self.get("/api/status")).json()["pools"]
        (found,) = (it for it in pool["members"] if it["address"] == str(address))
        return dict(found)


@asynccontextmanager
async def administer(running: Running, **settings: Any) -> AsyncIterator[AdminPort]:
    """The admin listener of a balancer that runs with ``Stats``; ``settings`` differ from the balancer's own."""
    sock = listen("ADMIN", Address("127.0.0.1", 0))
    address = Address("127.0.0.1", sock.getsockname()[1])
    defaults: dict[str, Any] = {"admin_bind": address, "resolver": Address("127.0.0.1", 1)}
    admin = Admin(lambda: [running.balancer], Settings(**{**defaults, **settings}))
    serving = asyncio.create_task(admin.serve(sock))
    try:
        async with AdminPort(admin, address) as port:
            yield port
    finally:
        admin.stop()
        await serving


class Page:
    """One open stream: ``next`` is the next message, with the kind of its event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(10):
            kind = (await anext(self._lines)).removeprefix("event: ")
            data = json.loads((await anext(self._lines)).removeprefix("data: "))
            assert await anext(self._lines) == ""
        check(kind.capitalize(), data)
        return kind, data


@asynccontextmanager
async def opened(port: AdminPort) -> AsyncIterator[Page]:
    """An open page, as far as the stream goes."""
    async with port.stream("GET", "/api/stream") as response:
        assert response.status_code == 200, await response.aread()
        yield Page(response)


async def until(page: Page, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first message of which ``wanted`` is true."""
    async with asyncio.timeout(LIMIT):
        while True:
            _, message = await page.next()
            if wanted(message):
                return message
