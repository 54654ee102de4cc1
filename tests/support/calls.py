"""A client's own calls through ``BalancedTransport``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from balancer import BalancedTransport, LoadBalancer
from balancer.dispatch.context import RequestRecord
from balancer.telemetry.observer import Observer
from tests.support.scripted import ScriptedResolver
from tests.support.wire import Connection, Member, eventually


class Records(Observer):
    def __init__(self) -> None:
        self.all: list[RequestRecord] = []

    def done(self, record: RequestRecord) -> None:
        self.all.append(record)


class Calls:
    """A client over members, with the balancer behind it."""

    def __init__(self, client: httpx.AsyncClient, balancer: LoadBalancer, records: list[RequestRecord]) -> None:
        self.client = client
        self.balancer = balancer
        self.records = records

    @property
    def in_flight(self) -> int:
        return sum(it.in_flight for it in self.balancer.membership.members.values())

    async def idle(self) -> None:
        """Wait until no call is in progress and every member has its slot back."""
        await eventually(lambda: self.balancer.proxy.active == self.in_flight == 0)


@asynccontextmanager
async def calling(*members: Member, timeout: Any = None, library: Any = httpx, **settings: Any) -> AsyncIterator[Calls]:
    """A client of a library, httpx or httpx2, whose calls go to the members."""
    records = Records()
    resolve = ScriptedResolver(*(it.address for it in members))
    transport = BalancedTransport("apps", resolve=resolve, observers=[records], **settings)
    async with library.AsyncClient(transport=transport, base_url="http://shop.example", timeout=timeout) as client:
        await eventually(lambda: len(transport.balancer.membership.available) == len(members))
        yield Calls(client, transport.balancer, records.all)


def scripted(play: Callable[[Connection], Awaitable[None]]) -> Member:
    """A member that reads the head of a request and then plays."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            await play(connection)

    return Member(script)


def answering(response: bytes) -> Member:
    async def answer(connection: Connection) -> None:
        await connection.send(response)

    return scripted(answer)


async def hang(connection: Connection) -> None:
    await connection.to_end()


CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun"
