"""Fair turns: a client that sends as fast as it can is read a piece in each turn of the event loop.

Rules:
* uvloop hands over 250 KiB at once, and libuv reads one socket up to 32 times in a turn. Of what comes, TURN_BYTES are
  parsed in a turn. The rest waits, and no more is read before it is parsed.
* Bytes that cost nothing each, those of a body of known length, need no turns. Their back-pressure ends the reads.
* While the protocol wants no bytes, what waits goes on waiting, as if the client had not sent it.
* Time in which bytes wait is the balancer's.
"""

from __future__ import annotations

import asyncio

from mypy_extensions import mypyc_attr

from balancer.frontend.client_registry import ClientRegistry, RegisteredConnection
from balancer.frontend.places import Place

# Bytes of a connection that are parsed in one turn. 16 KiB of the smallest chunks or frames take 1 to 3 ms.
TURN_BYTES = 16 * 1024


@mypyc_attr(allow_interpreted_subclasses=True)
class FairConnection(RegisteredConnection):
    """A client connection whose bytes are parsed in turns. A piece of at most TURN_BYTES costs no call."""

    __slots__ = ("_is_due", "_reading", "_waiting")

    loop: asyncio.AbstractEventLoop

    def __init__(self, registry: ClientRegistry, place: Place) -> None:
        super().__init__(registry, place)
        # Whether the protocol wants bytes.
        self._reading = True
        # Bytes for the turns to come: None while the transport may read, and empty where only its reads wait.
        self._waiting: memoryview | None = None
        self._is_due = False

    # Each protocol defines these.

    @property
    def free_bytes(self) -> int:
        """Bytes that may be parsed in one turn because they cost nothing each."""
        return 0

    def data_received(self, data: bytes) -> None:
        """Parse bytes, after ``end_turn`` if there are more than one turn takes."""
        raise NotImplementedError

    # Back-pressure.

    def pause(self) -> None:
        """Stop reading from the client for now."""
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read from the client again: first what waits, if there is something."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            if self._waiting is None:
                self.transport.resume_reading()
            else:
                self._schedule_turn()

    # Turns.

    def end_turn(self, data: bytes) -> bytes:
        """Return the bytes of a large piece that are for this turn. The others wait, and nothing is read meanwhile."""
        size = max(TURN_BYTES, self.free_bytes)
        self._waiting = memoryview(data)[size:]
        self.transport.pause_reading()
        self._schedule_turn()
        return data[:size]

    def _schedule_turn(self) -> None:
        """Go on with what waits in the next turn of the event loop."""
        if not self._is_due:
            self._is_due = True
            self.loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_due = False
        waiting = self._waiting
        if waiting is None or not self._reading:
            return
        if self.transport.is_closing():
            self._waiting = None
            return
        size = max(TURN_BYTES, self.free_bytes)
        if len(waiting) > size:
            self._waiting = waiting[size:]
            self._schedule_turn()
            waiting = waiting[:size]
        else:
            self._waiting = None
            self.transport.resume_reading()
        if waiting:
            self.data_received(bytes(waiting))

    def take_waiting(self) -> bytes:
        """Return the bytes that wait, for whatever else reads them, and let the transport read."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._reading:
            self.transport.resume_reading()
        return bytes(waiting or b"")

    def drop_waiting(self) -> None:
        """Drop the bytes that wait: the connection has ended."""
        self._waiting = None

    @property
    def waiting(self) -> bytes:
        """Bytes of the client that wait for their turn."""
        return bytes(self._waiting or b"")

    @property
    def has_waiting(self) -> bool:
        """Whether bytes of the client wait for their turn."""
        return bool(self._waiting)
