"""The counter in Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from math import inf

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# Limits in seconds for a connection to Redis and for its answer.
CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 1.0
# After so many idle seconds a connection is tried before an increment is trusted to it.
CHECK_AFTER = 1.0
# After a failure nobody tries for so long: a name that does not resolve keeps a thread busy for seconds,
# and a client is better served by an answer at once.
REST = 0.3
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
        self._last_used = self._failed = -inf
        self._trying = asyncio.Lock()

    async def hit(self) -> int:
        """Count one visit; returns the value that this very increment made. Raises CounterDown."""
        return await self._increment(lambda: self._redis.incr(self._key))

    async def record(self, name: str) -> int:
        """Count how often ``name`` was recorded; returns that. Raises CounterDown."""
        return await self._increment(lambda: self._redis.hincrby(RECORDS, name, 1))

    async def _increment(self, command: Callable[[], Awaitable[int]]) -> int:
        if time.monotonic() - self._last_used > CHECK_AFTER:
            async with self._trying:
                await self._try_out()
        try:
            count = int(await command())
        except (RedisError, OSError) as error:
            self._last_used = -inf
            raise CounterDown(str(error) or type(error).__name__) from error
        self._last_used = time.monotonic()
        return count

    async def _try_out(self) -> None:
        """Before an increment is trusted to Redis, one visitor at a time finds out whether it is there.

        redis-py does not notice that an idle connection was closed until a command on it has failed.
        """
        now = time.monotonic()
        if now - self._last_used <= CHECK_AFTER:
            return
        if now - self._failed < REST:
            raise CounterDown("it was away a moment ago")
        # A connection from before may be dead; after a failure there is none.
        for last in (True,) if self._failed > self._last_used else (False, True):
            try:
                await self._redis.ping()
            except (RedisError, OSError) as error:
                await self._redis.connection_pool.disconnect()
                if last:
                    self._failed = time.monotonic()
                    raise CounterDown(str(error) or type(error).__name__) from error
            else:
                self._last_used = time.monotonic()
                return

    async def close(self) -> None:
        await self._redis.aclose()
