from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from balancer.httpx_upstream import HttpxUpstream
from balancer.native_upstream import NativeUpstream
from tests.support import wire


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the balancer runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(
    params=[(True, NativeUpstream), (False, NativeUpstream), (True, HttpxUpstream)],
    ids=["native", "asgi", "httpx"],
)
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs as it is for users, with clients served through ASGI, and with httpx's connections to members."""
    edge, upstream = request.param
    monkeypatch.setattr(wire, "edge", edge)
    monkeypatch.setattr(wire, "upstream_class", upstream)
    yield


@pytest.fixture
def through_asgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are served through ASGI, which has no message for some of what HTTP can say."""
    monkeypatch.setattr(wire, "edge", False)


@pytest.fixture(params=[True, False], ids=["edge", "asgi"])
def each_front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with clients served by our own front end, and through ASGI."""
    monkeypatch.setattr(wire, "edge", request.param)
