from __future__ import annotations

from collections.abc import Iterator

import pytest

from balancer.httpx_upstream import HttpxUpstream
from balancer.native_upstream import NativeUpstream
from tests.support import wire


@pytest.fixture(params=[NativeUpstream, HttpxUpstream], ids=["native", "httpx"])
def each_upstream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs twice: over our own connections, and over httpx's behind the adapter."""
    monkeypatch.setattr(wire, "upstream_class", request.param)
    yield
