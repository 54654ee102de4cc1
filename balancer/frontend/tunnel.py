"""A connection that no longer speaks HTTP: a member has answered 101, and bytes go both ways as they are.

Rules:
* Bytes pass unchanged. The frames of a WebSocket are counted, so that a close frame can follow a side that ends
  without one: 1014 for a member that died, 1001 for a client that left or a balancer that stops (RFC 6455 section
  7.4.1). The client's answer to 1001 goes on to the member, which closes too.
* What one side does not take is not read from the other. A client that takes too little is cut off like any other, by
  its connection.
* Either side may end its direction first; the other then has STREAM_IDLE_TIMEOUT between two pieces. A side that is cut
  off cuts off the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from balancer.errors import TruncatedResponse
from balancer.http.websocket_frames import BAD_GATEWAY, GOING_AWAY, Frames, close_frame
from balancer.loop_time import Limit
from balancer.upstream.base import UpstreamResponse

if TYPE_CHECKING:
    from balancer.frontend.http1_connection import Http1Connection

# Seconds that a WebSocket's side may take to answer a close.
CLOSE_SECONDS = 1.0
# Bytes from a client that may wait for the member.
HIGH_WATER = 64 * 1024


class Tunnel(asyncio.Protocol):
    """Bytes between a client and a member. ``connection``: the client's, which still checks what its client takes."""

    def __init__(self, connection: Http1Connection, response: UpstreamResponse, websocket: bool) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._response = response
        self._silence = connection.limits.stream_idle_timeout
        self._client_frames = Frames() if websocket else None
        self._member_frames = Frames() if websocket else None
        self._pieces: list[bytes] = []
        self._size = 0
        self._reading = True
        self._client_ended = False
        self._client_progress = asyncio.Event()
        # Runs once a side has begun to end; with ``_renewed``, again from each piece of the other.
        self._limit = Limit(None)
        self._renewed = False
        self._is_over = False
        # A close frame is due to the client, and (``_close_sent``) has been sent.
        self._close_due = False
        self._close_sent = False

    # asyncio's side.

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and self._reading:
            self._reading = False
            self._transport.pause_reading()
        self._client_progress.set()

    def eof_received(self) -> bool:
        self._client_ended = True
        self._client_progress.set()
        return True

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._client_ended = True
        self._client_progress.set()
        self._connection.writable.set()
        self._set_limit(CLOSE_SECONDS)
        self._connection.registry.remove(self._connection)

    # The course of a tunnel.

    async def run(self, count: Callable[[int], None]) -> None:
        """Pass everything on until both directions have ended. ``count``: called with bytes to the client."""
        try:
            async with self._limit, asyncio.TaskGroup() as directions:
                directions.create_task(self._upward())
                directions.create_task(self._downward(count))
        except TimeoutError:
            pass  # One direction had ended, and the other does not.
        finally:
            self._is_over = True

    def send_close(self) -> bool:
        """Close a WebSocket as soon as a frame may be put in. Returns False for what cannot be closed."""
        if not self._member_frames:
            return False
        self._close_due = True
        self._send_due_close()
        return True

    def _send_due_close(self) -> None:
        if self._close_due and self._member_frames and self._member_frames.is_between:
            self._close_sent = True
            self._close_client(GOING_AWAY, "the balancer is shutting down")

    def _close_client(self, code: int, reason: str) -> None:
        assert self._member_frames
        self._member_frames.closed = True
        if self._transport.is_closing():
            return
        self._transport.write(close_frame(code, reason, masked=False))
        self._set_limit(CLOSE_SECONDS)

    def _set_limit(self, within: float, renewed: bool = False) -> None:
        if not self._is_over:
            self._renewed = renewed
            self._limit.renew(within)

    def _progress(self) -> None:
        if self._renewed:
            self._set_limit(self._silence, renewed=True)

    async def _upward(self) -> None:
        """From the client to the member."""
        try:
            while self._pieces or not self._client_ended:
                if not self._pieces:
                    self._client_progress.clear()
                    await self._client_progress.wait()
                    continue
                data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                self._size = 0
                while data:
                    size = _turn(self._client_frames, data)
                    await self._response.write(data[:size])
                    if data := data[size:]:
                        await asyncio.sleep(0)
                if not self._reading and not self._transport.is_closing():
                    self._reading = True
                    self._transport.resume_reading()
                self._progress()
            if self._client_frames and self._client_frames.is_between:
                self._client_frames.closed = True
                await self._response.write(close_frame(GOING_AWAY, "", masked=True))
            await self._response.write_eof()
        except TruncatedResponse:
            pass  # The other direction fails, too.
        self._end_direction()

    async def _downward(self, count: Callable[[int], None]) -> None:
        """From the member to the client."""
        more = True
        while more:
            try:
                data, more = await self._response.read()
            except TruncatedResponse:
                if not self._member_frames:
                    self._transport.abort()  # The client must not take what it has for the whole.
                break
            if self._transport.is_closing():
                break
            while data and not (self._close_sent or self._transport.is_closing()):
                size = _turn(self._member_frames, data)
                self._transport.write(data[:size])
                count(size)
                self._send_due_close()
                self._progress()
                if data := data[size:]:
                    await asyncio.sleep(0)
            await self._connection.writable.wait()
        if self._member_frames and self._member_frames.is_between:
            self._close_client(BAD_GATEWAY, "the member's connection died")
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._end_direction()

    def _end_direction(self) -> None:
        """Limit the time of the other direction: this one is over."""
        if self._client_frames:
            self._set_limit(CLOSE_SECONDS)
        elif not self._transport.is_closing():
            self._set_limit(self._silence, renewed=True)


def _turn(frames: Frames | None, data: bytes) -> int:
    """Return how many bytes one turn of the event loop takes: all, unless they have too many frames."""
    return frames.feed(data) if frames else len(data)
