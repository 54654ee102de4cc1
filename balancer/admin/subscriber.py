"""One open status page, and what it is sent as server-sent events."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from balancer.admin.history import Json

if TYPE_CHECKING:
    from balancer.admin.status_feed import StatusFeed


class Subscriber:
    """One open page: use it within ``with``, and await ``next`` for what to send it."""

    def __init__(self, board: StatusFeed) -> None:
        self._board = board
        self._seen = -1
        self.wake = asyncio.Event()
        self.gone = False

    def __enter__(self) -> Subscriber:
        self._board.subscribers.add(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.subscribers.discard(self)

    def leave(self) -> None:
        self.gone = True
        self.wake.set()

    async def next(self) -> bytes:
        """What the page has not seen, as server-sent events; nothing at the end.

        A page that reads more slowly than there is news misses some, and gets the whole picture anew.
        """
        board = self._board
        while self._seen == board.number and not (self.gone or board.closed):
            self.wake.clear()
            await self.wake.wait()
        if self.gone or board.closed:
            return b""
        piece = board._delta if self._seen == board._delta_from >= 0 else board.full_state()
        self._seen = board.number
        return piece


def iso(wall: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sse(event: str, message: Json) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2)."""
    return f"event: {event}\ndata: {json.dumps(message, separators=(',', ':'))}\n\n".encode()
