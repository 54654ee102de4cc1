"""A request body that can be sent again."""

from __future__ import annotations

import time
from math import inf

from balancer.dispatch.refusals import too_large
from balancer.http.headers import Headers
from balancer.http.request import Body
from balancer.http.validation import malformed
from balancer.types import Clock

# A request body up to this size stays in hand, so that the request can be sent again.
REPLAY_BYTES = 64 * 1024


class ReplayableBody:
    """A request body that can be sent again from its beginning, while it is small.

    ``limit``: bytes that it may have at most. ``in_hand``: all that has been read is kept. ``length``: bytes that its
    Content-Length announces, or None where there is none. A body of another length is refused: what is beyond it would
    be another request for a member. HTTP/2 and servers of ASGI frame bodies in their own way. ``ended_at``: reading of
    the clock when its end was read, or -inf if all of it was there at once.
    """

    length: int | None = None
    ended_at = -inf

    def __init__(self, source: Body, limit: float = inf, clock: Clock = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self.limit = limit
        self._kept: list[bytes] = []
        self._size = 0  # of what has been read from the source so far
        self._position = 0
        self._source_ended = False
        self.in_hand = True

    @property
    def trailers(self) -> Headers:
        """Trailers of the source, once all of the body has been read."""
        return self._source.trailers

    def keep(self, whole: bytes) -> None:
        """Take all of the body, which the source has given at once."""
        self._kept, self._size, self._source_ended = [whole] if whole else [], len(whole), True

    @property
    def received(self) -> int:
        """Bytes that have come from the source."""
        return self._size

    @property
    def size(self) -> int:
        """Bytes of the body that are kept."""
        return self._size if self.in_hand else 0

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the body have come and are kept. (Over HTTP/2 its end may follow by itself.)"""
        return self.in_hand and (self._source_ended or self._size == self.length)

    def rewind(self) -> None:
        """Read from the beginning again."""
        self._position = 0

    @property
    def ended(self) -> bool:
        """Whether all of the body has been read."""
        return self._source_ended and self._position == len(self._kept)

    async def read(self) -> bytes:
        """Return the next piece, or b"" at the end. Raises Refusal beyond ``limit`` bytes, and for another ``length``.

        No byte of a piece that is refused is returned.
        """
        if self._size > self.limit:
            raise too_large(self.limit)
        if self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        if self._source_ended:
            return b""
        piece = await self._source.read()
        self._source_ended = not piece or self._source.ended
        if self._source_ended:
            self.ended_at = self._clock()
        self._size += len(piece)
        if self._size > self.limit:
            raise too_large(self.limit)
        if self.length is not None and (self._size > self.length or (self._source_ended and self._size < self.length)):
            raise malformed("the body is longer or shorter than its Content-Length")
        if self.in_hand and self._size > REPLAY_BYTES:
            self.in_hand = False
            self._kept.clear()
            self._position = 0
        if self.in_hand and piece:
            self._kept.append(piece)
            self._position += 1
        return piece
