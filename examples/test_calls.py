"""Tests of a program that calls through BalancedTransport: without workers, DNS or sockets.

pytest test_calls.py
"""

import asyncio
import time
from collections.abc import Callable

import httpx
import respx

from balancer import BalancedTransport
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.members.health import HealthEvent
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream

ONE, TWO = Address("10.0.0.1", 80), Address("10.0.0.2", 80)
TIMEOUTS = Timeouts(connect=1, response=5, idle=5)


async def resolve() -> Snapshot:
    """Stands in for DNS: two members."""
    answer = Answer("A", Outcome.FOUND, frozenset({Endpoint(ONE), Endpoint(TWO)}))
    return Snapshot((answer,), time.monotonic())


async def probe(address: Address) -> tuple[HealthEvent, str]:
    """Stands in for the health check: every member is up."""
    return HealthEvent.PROBE_OK, "up"


async def greet(transport: httpx.AsyncBaseTransport) -> str:
    """Stands in for the program: it takes its transport as an argument."""
    async with httpx.AsyncClient(transport=transport, base_url="http://apps") as client:
        response = await client.get("/greeting")
        return response.raise_for_status().text


def over(answer: Callable[[httpx.Request], httpx.Response]) -> BalancedTransport:
    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(answer))
    return BalancedTransport("apps", upstream=upstream, resolve=resolve, probe=probe)


def test_members_see_the_call() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host in {ONE.host, TWO.host}  # which of them is the balancer's choice
        assert request.headers["host"] == "apps"
        return httpx.Response(200, text=f"hello from {request.url.path}")

    assert asyncio.run(greet(over(answer))) == "hello from /greeting"


def test_member_that_refuses_is_not_noticed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == ONE.host:
            raise httpx.ConnectError("connection refused")
        return httpx.Response(200, text="hello")

    assert asyncio.run(greet(over(answer))) == "hello"


def test_routes_of_respx() -> None:
    router = respx.Router()
    router.get(path="/greeting", headers={"host": "apps"}).respond(text="hello")
    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(router.async_handler))
    transport = BalancedTransport("apps", upstream=upstream, resolve=resolve, probe=probe)
    assert asyncio.run(greet(transport)) == "hello"
    assert router.calls.call_count == 1


@respx.mock
def test_mocks_that_take_the_place_of_httpx() -> None:
    respx.get(path="/greeting", headers={"host": "apps"}).respond(text="hello")
    transport = BalancedTransport("apps", upstream=HttpxUpstream(TIMEOUTS), resolve=resolve, probe=probe)
    assert asyncio.run(greet(transport)) == "hello"
