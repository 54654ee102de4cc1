"""What the balancer itself has run out of is no evidence against a member."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from balancer.config.settings import Settings
from balancer.errors import ConnectFailed, Refusal
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import HealthEvent, State
from balancer.members.probe import make_probe
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.native import NativeUpstream
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import eventually

ONE, TWO = Address("10.0.0.1", 80), Address("10.0.0.2", 80)
TIMEOUTS = Timeouts(connect=1, response=1, idle=1)

exhausted = pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL], ids=errno.errorcode.get
)
theirs = pytest.mark.parametrize(
    ("number", "event"),
    [
        (errno.ECONNREFUSED, HealthEvent.REFUSED),
        (errno.EHOSTUNREACH, HealthEvent.UNREACHABLE),
        (errno.ENETUNREACH, HealthEvent.UNREACHABLE),
    ],
    ids=lambda it: errno.errorcode.get(it),
)


class Failing:
    """Stands in for what opens connections; ``number`` is the error, and ``calls`` counts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    async def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        raise OSError(self.number, os.strerror(self.number))


@exhausted
async def test_connection_that_the_balancer_cannot_open_is_its_own_overload(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", Failing(number))
    upstream = NativeUpstream(TIMEOUTS)
    with pytest.raises(Refusal) as caught:
        await upstream.send(ONE, UpstreamRequest("GET", b"/", [(b"host", b"a")]))
    assert (caught.value.status, caught.value.token, caught.value.retry_after) == (503, "overloaded", 1)
    assert os.strerror(number) in caught.value.reason
    assert (upstream.active, upstream.idle) == (0, 0)
    await upstream.close()


@exhausted
async def test_so_it_is_with_httpx(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = Failing(number)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connecting)
    upstream = HttpxUpstream(TIMEOUTS)
    with pytest.raises(Refusal) as caught:
        await upstream.send(ONE, UpstreamRequest("GET", b"/", [(b"host", b"a")]))
    assert (caught.value.status, caught.value.token, caught.value.retry_after) == (503, "overloaded", 1)
    assert connecting.calls == 1
    await upstream.close()


@theirs
async def test_connection_that_a_member_does_not_take_is_its_fault(
    number: int, event: HealthEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", Failing(number))
    upstream = NativeUpstream(TIMEOUTS)
    with pytest.raises(ConnectFailed) as caught:
        await upstream.send(ONE, UpstreamRequest("GET", b"/", [(b"host", b"a")]))
    assert caught.value.refused is (event is HealthEvent.REFUSED)
    await upstream.close()


@exhausted
@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_probe_that_the_balancer_cannot_send_says_nothing(
    number: int, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "open_connection", Failing(number))
    event, words = await make_probe(Settings(health_path=path))(ONE)
    assert event is None
    assert os.strerror(number) in words


@theirs
async def test_probe_that_a_member_does_not_take_says_so(
    number: int, event: HealthEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "open_connection", Failing(number))
    assert (await make_probe(Settings())(ONE))[0] is event


@asynccontextmanager
async def balanced(probe: Any = None) -> AsyncIterator[tuple[LoadBalancer, httpx.AsyncClient]]:
    settings = Settings(queue_timeout=1, resolve_interval=0.1, health_interval=0.1)
    balancer = LoadBalancer(settings, resolve=ScriptedResolver(ONE, TWO), probe=probe)
    async with (
        balancer,
        httpx.AsyncClient(transport=httpx.ASGITransport(balancer), base_url="http://shop.example") as client,
    ):
        yield balancer, client


def states(balancer: LoadBalancer) -> set[State]:
    return {it.state for it in balancer.membership.members.values()}


@exhausted
async def test_members_stay_up_while_requests_cannot_be_passed_on(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = Failing(number)
    async with balanced(ScriptedProbe()) as (balancer, client):
        await eventually(lambda: len(balancer.membership.available) == 2)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connecting)
        for _ in range(4):
            response = await client.get("/")
            assert (response.status_code, response.headers["x-balancer-error"]) == (503, "overloaded")
            assert response.headers["retry-after"] == "1"
        assert states(balancer) == {State.UP}
        # Another member would not make a difference: each request is tried once.
        assert connecting.calls == 4


@exhausted
async def test_members_stay_up_while_probes_cannot_be_sent(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, calls = False, 0
    failing = Failing(number)
    monkeypatch.setattr(asyncio, "open_connection", failing)
    ask = make_probe(Settings())

    async def probe(address: Address) -> Any:
        nonlocal calls
        calls += broken
        return await ask(address) if broken else (HealthEvent.PROBE_OK, "accepts connections")

    async with balanced(probe) as (balancer, _):
        await eventually(lambda: len(balancer.membership.available) == 2)
        broken = True
        await eventually(lambda: calls >= 10)
        assert states(balancer) == {State.UP}
        assert failing.calls
