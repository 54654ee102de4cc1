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


@pytest.fixture(params=[NativeUpstream, HttpxUpstream], ids=["native", "httpx"])
def each_upstream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs twice: over our own connections, and over httpx's behind the adapter."""
    monkeypatch.setattr(wire, "upstream_class", request.param)
    yield
