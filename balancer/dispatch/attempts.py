"""The attempts that a request has left. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from balancer.dispatch.queue import QueuedRequest


@dataclass(slots=True)
class Attempts:
    """The attempts that a request has left.

    ``until``: the reading of ``LoopTime`` up to which it may wait for a member. ``repeats``: repeats after a member had
    the request. ``fresh``: the next one takes a new connection. ``pause``: it comes after a pause. ``began``: the
    reading at which the last attempt began; infinite if it came to no connection.
    """

    queued: QueuedRequest
    until: float = 0.0
    repeats: int = 0
    fresh: bool = False
    pause: bool = False
    began: float = 0.0

    def repeat(self, until: float, died: bool) -> None:
        """Count a repeat, which may wait ``until`` then. ``died``: the connection, and perhaps others with it."""
        self.until = until
        self.repeats += 1
        self.fresh = died
        self.pause = died and self.repeats > 1
