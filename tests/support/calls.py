"""A client's own calls through ``BalancedTransport``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from balancer import BalancedTransport, LoadBalancer
from balancer.dispatch.context import RequestRecord
from balancer.telemetry.observer import Observer
from tests.support.scripted import ScriptedResolver
from tests.support.wire import Member, eventually


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
async def calling(*members: Member, timeout: Any = None, **settings: Any) -> AsyncIterator[Calls]:
    records = Records()
    resolve = ScriptedResolver(*(it.address for it in members))
    transport = BalancedTransport("apps", resolve=resolve, observers=[records], **settings)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example", timeout=timeout) as client:
        await eventually(lambda: len(transport.balancer.membership.available) == len(members))
        yield Calls(client, transport.balancer, records.all)
