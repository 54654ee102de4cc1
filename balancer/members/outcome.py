"""The outcome of an attempt at a member, for what learns from it: policies, limits, ejection. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.members.member import Member


class Outcome:
    """The outcome of one attempt. Times are in seconds, from the moment at which the member was given the request.

    Attributes:
        status: The status of the member's response, or 0 if none came.
        failure: The word of a failure (``balancer.errors.REASONS``), or "". A response that broke off has one.
        first_byte: The time to the head of the response, or to the failure. A body that came at the client's own pace
            begins it with its last byte.
        duration: The time to the end of the attempt. The client's own pace is part of it.
        is_stream: Whether the response is a WebSocket or server-sent events.
    """

    __slots__ = ("duration", "failure", "first_byte", "is_stream", "status")

    def __init__(self, status: int, failure: str, first_byte: float, duration: float = 0.0) -> None:
        self.status = status
        self.failure = failure
        self.first_byte = first_byte
        self.duration = duration
        self.is_stream = False

    def __repr__(self) -> str:
        words = [str(self.status)] * (self.status > 0) + [self.failure] * (self.failure != "")
        return f"<Outcome {' '.join(words)}, {self.first_byte:.3f} s of {self.duration:.3f} s>"


# Called once for each attempt that has an outcome. One whose client left before the head of a response has none.
Learner = Callable[["Member", Outcome], None]
