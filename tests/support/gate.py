"""A member whose answers wait for a test."""

from __future__ import annotations

import asyncio

from tests.support.wire import OK, Connection


class Gate:
    """A member's script that answers as many requests as a test lets; ``waiting`` of them are in its hands."""

    def __init__(self) -> None:
        self.waiting = 0
        self.most = 0
        self._let = asyncio.Semaphore(0)

    async def __call__(self, connection: Connection) -> None:
        while True:
            await connection.head()
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            try:
                await self._let.acquire()
            finally:
                self.waiting -= 1
            await connection.send(OK)

    def let(self, requests: int = 1) -> None:
        for _ in range(requests):
            self._let.release()
