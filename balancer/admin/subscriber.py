"""An open status page, and its stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from balancer.admin.history import Json

if TYPE_CHECKING:
    from balancer.admin.status_feed import StatusFeed


class Subscriber:
    """An open page: use it within ``with``, and await ``next`` for the bytes to send.

    ``client``: the address of one without the token, or None for one with it.
    """

    def __init__(self, feed: StatusFeed, client: str | None = None) -> None:
        self._feed = feed
        self.client = client
        self._seen = -1
        self.wake = asyncio.Event()

    def __enter__(self) -> Subscriber:
        self._feed.subscribers.add(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._feed.subscribers.discard(self)

    async def next(self) -> bytes:
        """Return what the page has not got, as server-sent events; b"" at the end.

        A page that reads too slowly misses some messages, and gets the whole state again.
        """
        feed = self._feed
        while self._seen == feed.number and not feed.closed:
            self.wake.clear()
            await self.wake.wait()
        if feed.closed:
            return b""
        piece = feed._delta if self._seen == feed._delta_from >= 0 else feed.full_state()
        self._seen = feed.number
        return piece


def iso(wall: float) -> str:
    """Return a time in ISO 8601, in UTC, to the millisecond. ``wall``: seconds since 1970."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sse(event: str, message: Json) -> bytes:
    """Return one server-sent event (WHATWG HTML, section 9.2)."""
    return f"event: {event}\ndata: {json.dumps(message, separators=(',', ':'))}\n\n".encode()
