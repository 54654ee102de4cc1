"""What every test shares: the event loop, quick stops of uvicorn, and the ways through the balancer."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace

import pytest
import uvicorn.server
import uvloop
from hypothesis import settings

from balancer.frontend import client_connection, client_registry
from balancer.process import data_listener
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.native import NativeUpstream
from tests.support import wire
from tests.support.pipes import PipeLoop

# Modules are compiled once and not by each of the processes that tests start, which takes 0.2 s of CPU every time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Hypothesis without its deadline, which reads the real clock.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output; pytest-xdist sends reports between processes as UTF-8."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode("utf-8")) for title, text in report.sections
    ]
    return report


def pytest_xdist_auto_num_workers() -> int:
    """Two processes for each core: three quarters of what a test takes is waiting for sockets and processes."""
    return 2 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_collection_finish() -> None:
    """Exempt what stays from garbage collection: a full one takes 2 ms instead of 200, and many tests ask for it."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the balancer runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def quick_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each stop uvicorn sleeps for a tenth of a second, and a listener with TLS for a fifth, once a test."""
    own = {**vars(asyncio), "sleep": lambda seconds: asyncio.sleep(seconds / 10)}
    monkeypatch.setattr(uvicorn.server, "asyncio", SimpleNamespace(**own))
    monkeypatch.setattr(data_listener, "FINISHED_SECONDS", 0.01)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def loop() -> Iterator[PipeLoop]:
    """A loop on which connections are pipes and time is virtual."""
    loop = PipeLoop()
    yield loop
    loop.close()


@pytest.fixture(
    params=[(True, NativeUpstream), (False, NativeUpstream), (True, HttpxUpstream)],
    ids=["native", "asgi", "httpx"],
)
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs as it is for users, with clients served through ASGI, and with httpx's connections to members."""
    own_edge, upstream = request.param
    monkeypatch.setattr(wire, "edge", own_edge)
    monkeypatch.setattr(wire, "upstream_class", upstream)
    yield


@pytest.fixture
def through_asgi(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """ClientRegistry are served through ASGI, which has no message for some of what HTTP can say.

    There the balancer speaks WebSocket itself, and holds members to it; a tunnel passes on whatever it gets.
    """
    if "each_way" in request.fixturenames:
        request.getfixturevalue("each_way")  # which must not have its way after this
    monkeypatch.setattr(wire, "edge", False)


@pytest.fixture(params=[True, False], ids=["edge", "asgi"])
def each_front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with clients served by our own front end, and through ASGI."""
    monkeypatch.setattr(wire, "edge", request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits of tenths of seconds."""
    for name in ("header_timeout", "keepalive_timeout", "stream_idle_timeout"):
        monkeypatch.setitem(wire.defaults, name, 0.3)
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    yield
