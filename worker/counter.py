"""The counter in Redis."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# Limits in seconds for a connection to Redis and for its answer.
CONNECT_TIMEOUT = 1.0
ANSWER_TIMEOUT = 1.0
# After so many idle seconds a connection is tried before an increment is trusted to it.
CHECK_AFTER = 1.0
# The hash of what was recorded, by name.
RECORDS = "records"


class CounterDown(Exception):
    """Redis cannot be reached, or does not answer in time."""


class Counter:
    """Counts visits under one key, shared by all workers."""

    def __init__(self, host: str, port: int, key: str = "hits") -> None:
        self._key = key
        # No retry: an INCR whose answer was lost may have been carried out.
        self._redis = Redis(
            host=host,
            port=port,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=ANSWER_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._last_used = 0.0

    async def hit(self) -> int:
        """Count one visit; returns the value that this very increment made. Raises CounterDown."""
        return await self._increment(lambda: self._redis.incr(self._key))

    async def record(self, name: str) -> int:
        """Count how often ``name`` was recorded; returns that. Raises CounterDown."""
        return await self._increment(lambda: self._redis.hincrby(RECORDS, name, 1))

    async def _increment(self, command: Callable[[], Awaitable[int]]) -> int:
        if time.monotonic() - self._last_used > CHECK_AFTER:
            await self._drop_dead_connections()
        try:
            count = int(await command())
        except (RedisError, OSError) as error:
            raise CounterDown(str(error) or type(error).__name__) from error
        self._last_used = time.monotonic()
        return count

    async def _drop_dead_connections(self) -> None:
        """redis-py does not notice that an idle connection was closed until a command on it has failed."""
        try:
            await self._redis.ping()
        except (RedisError, OSError):
            await self._redis.connection_pool.disconnect()

    async def close(self) -> None:
        await self._redis.aclose()
