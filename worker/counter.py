"""The counter in Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# Seconds that a visit waits for Redis. Measured: `docker compose restart redis` takes up to 1.2 of them,
# `stop`, 1 s, `start` 2.3, since a look-up of the unknown name has to fail first.
PATIENCE = 3.0
# Limits in seconds for a connection to Redis and for its answer.
CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 1.0
# Seconds between two attempts to reach Redis.
PAUSE_SECONDS = 0.1
# Commands at a time, so that visits that waited do not all come with a new connection each.
CONNECTIONS = 20
# The sorted set of recorded names. A member is the quoted name, a space, the id of the visit.
RECORDED = "recorded"


class CounterDown(Exception):
    """Redis cannot be reached, or does not answer in time."""


class Counter:
    """Counts visits under one key, shared by all workers.

    While Redis is away, a visit waits up to PATIENCE for it. Its command may then be sent twice,
    since the answer to the first may be all that was lost; every command here allows for that.
    """

    def __init__(self, host: str, port: int, key: str = "hits") -> None:
        self._key = key
        self._redis = Redis(
            host=host,
            port=port,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=ANSWER_TIMEOUT,
            max_connections=CONNECTIONS + 1,  # one more to find Redis again
            retry=Retry(NoBackoff(), 0),
        )
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._available = asyncio.Event()
        self._available.set()
        self._problem: Exception = TimeoutError("too many visits at a time")
        self._search: asyncio.Task[None] | None = None

    async def hit(self) -> int:
        """Count one visit; return the value that this very increment made. Raises CounterDown.

        Sent twice, it skips a number. No number is ever given to two visits.
        """
        return await self._run(lambda: self._redis.incr(self._key))

    async def record(self, name: str) -> int:
        """Count the visits that recorded ``name``; return their number. Raises CounterDown.

        Sent twice, it adds the same member again, which changes nothing.
        """
        quoted = quote(name, safe="")
        member = f"{quoted} {secrets.token_hex(8)}"

        async def add_and_count() -> int:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.zadd(RECORDED, {member: 0})
            # "!" comes after the space that ends a name; a quoted name has neither.
            pipeline.zlexcount(RECORDED, f"[{quoted} ", f"({quoted}!")
            return int((await pipeline.execute())[1])

        return await self._run(add_and_count)

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._search:
            self._search.cancel()
        await self._redis.aclose()

    async def _run(self, command: Callable[[], Awaitable[int]]) -> int:
        """Send ``command`` until it is answered, PATIENCE seconds at most.

        A pause of this process, such as `docker compose pause`, does not count: see ``_after_failure``.
        """
        loop = asyncio.get_running_loop()
        deadline, failed = loop.time() + PATIENCE, False
        while True:
            # Only waits are cut short. A command has limits of its own, and one that is cancelled
            # would leave redis-py a connection to clean up.
            try:
                async with asyncio.timeout_at(deadline):
                    await self._available.wait()
                    await self._turns.acquire()
            except TimeoutError:
                raise CounterDown(f"{type(self._problem).__name__}: {self._problem}") from None
            try:
                return await command()
            except (RedisError, OSError) as error:
                self._problem = error
                if not failed:
                    deadline, failed = _after_failure(deadline, loop.time()), True
                if self._available.is_set():
                    self._available.clear()
                    self._search = asyncio.create_task(self._wait_for_redis())
            finally:
                self._turns.release()

    async def _wait_for_redis(self) -> None:
        """Wait until Redis is there again, on behalf of all visits that wait, so that they do not all try."""
        while not self._available.is_set():
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                # Idle connections are from before; redis-py would not notice until a command on each has failed.
                await self._redis.connection_pool.disconnect(inuse_connections=False)
                await self._redis.ping()
            except (RedisError, OSError) as error:
                self._problem = error
            else:
                self._available.set()


def _after_failure(deadline: float, now: float) -> float:
    """Return the deadline of a visit whose first command has failed at ``now``.

    After a pause of this process, timers run before the answer that has come meanwhile is read: a command fails, and
    the deadline has passed as well. So a command that fails by its own limit leaves what it leaves without a pause.
    """
    return max(deadline, now + PATIENCE - ANSWER_TIMEOUT)
