"""The event loop that runs, or words for a program that runs none."""

from __future__ import annotations

import asyncio


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio. Raises RuntimeError where there is none: under trio, or outside."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "the balancer runs in an event loop of asyncio, and none runs here; under trio or in synchronous code, send"
            " requests to `balancer serve` instead"
        ) from None
