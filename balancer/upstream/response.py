"""A member's response as it arrives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from balancer.errors import (
    Fault,
    TruncatedResponse,
)
from balancer.http.headers import Headers
from balancer.upstream.base import PendingResponse

if TYPE_CHECKING:
    from balancer.upstream.connection import MemberConnection


class KnownHead(NamedTuple):
    """What a response head that comes again says. ``length``: bytes of the body; ``lines``: the head for a client."""

    status: int
    headers: Headers
    length: int
    lines: bytes


class Response(PendingResponse):
    """A member's response as it arrives; see ``balancer.upstream.base.PendingResponse``."""

    # Most responses leave these alone.
    # The connection does not speak HTTP any more.
    switched = False
    _waiter: asyncio.Future[None] | None = None
    _error: Exception | None = None

    def __init__(self, connection: MemberConnection, is_head: bool) -> None:
        self._connection = connection
        self.is_head = is_head
        # Body that nobody has taken yet.
        self.pieces: list[bytes] = []

    async def wait_for_head(self) -> None:
        """Raises Fault if the head does not come, ClientGone or Refusal if the request body's source does."""
        try:
            while not self.started:
                if self._error:
                    raise self._error
                await self._wait()
        except BaseException:
            # Not connection.abort(): once the response is complete, the connection may be somebody else's.
            self.abandon()
            raise

    async def read(self) -> tuple[bytes, bool]:
        while not self.pieces and not self.complete:
            if self._error:
                raise self._error
            await self._wait()
        piece = self.take()
        if not self.complete and not self._error and self._connection.paused:
            self._connection.resume()
        # An error may wait behind pieces that arrived before it.
        return piece, not self.complete

    def answer(self, head: KnownHead, body: bytes) -> None:
        """All of it has come, with a head that is known."""
        self.status, self.headers, _, self.lines = head
        self.started = self.complete = True
        self.pieces.append(body)

    def take(self) -> bytes:
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def write(self, data: bytes) -> None:
        if self._error:
            raise self._error
        await self._connection.write(data)

    async def write_eof(self) -> None:
        self._connection.write_eof()

    async def close(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Nobody will read on: unless the response is complete, its connection goes."""
        if self.switched:
            self._connection.finish()
        elif not self.complete and not self._error:
            self._error = TruncatedResponse("abandoned")
            self._connection.abort()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for news that has not come yet."""
        return self.listener is not None or (self._waiter is not None and not self._waiter.done())

    async def _wait(self) -> None:
        self._waiter = self._connection._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def arrived(self) -> None:
        """There is news: the head, a piece of the body, its end."""
        if self.listener:
            self.listener()
        elif self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        if self.started and isinstance(error, Fault):
            error = TruncatedResponse(str(error))
        self._error = error
        self.arrived()
