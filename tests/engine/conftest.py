from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.support.compose import Compose, engine_problem


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of ``python -m bench.drill``."""
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    if problem := engine_problem():
        if os.environ.get("CI"):
            pytest.fail(f"CI has to run the engine tests, but {problem}")
        pytest.skip(problem)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def compose(engine: None) -> AsyncIterator[Compose]:
    """The project, up with one worker; each test sets the scale that it needs."""
    async with Compose().running() as compose:
        yield compose
