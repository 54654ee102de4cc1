"""The counter in Redis."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# Limits in seconds for a connection to Redis and for its answer.
CONNECT_TIMEOUT = 1.0
ANSWER_TIMEOUT = 1.0


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

    async def hit(self) -> int:
        """Count one visit; returns the value that this very increment made. Raises CounterDown."""
        try:
            return int(await self._redis.incr(self._key))
        except (RedisError, OSError) as error:
            raise CounterDown(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        await self._redis.aclose()
