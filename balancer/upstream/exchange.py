"""A request to a member and its response, as far as nothing waits.

An exchange is made for one request and is never used again, so that nothing of it reaches the next one on its
connection. ``balancer.upstream.response`` has what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from math import inf
from typing import TYPE_CHECKING, Any

from balancer.errors import TruncatedResponse, UpstreamError
from balancer.http.headers import Headers
from balancer.upstream import response
from balancer.upstream.base import PendingResponse

if TYPE_CHECKING:
    from balancer.upstream.connection import MemberConnection


class MemberExchange(PendingResponse):
    """A request and its response as it arrives; see ``balancer.upstream.base.PendingResponse``.

    ``is_head``: the method is HEAD. ``repeatable``: another member may get the request. ``may_switch``: it names
    another protocol. ``on_interim``: called with status and headers of each interim response.
    """

    # Defaults of attributes that most exchanges leave alone.

    # The request. Whether all of it has been written, and the task that writes the rest. Whether the body waits for 100
    # (Continue). Whether it fits into one segment. The kernel's count of acknowledged bytes before a request that must
    # not run twice was written.
    uploaded: bool = True
    upload_task: asyncio.Task[None] | None = None
    awaits_continue: bool = False
    one_segment: bool = True
    acknowledged: int | None = None

    # The response. Whether any byte of it has come; bytes of its body that are still to come, where httptools does not
    # read it; interim responses so far; bytes since there was last something to pass on. Whether its body lasts until
    # the connection is closed; whether the member has switched protocols; why the bytes cannot be a response, or "".
    received: bool = False
    left: int = 0
    interim_count: int = 0
    unproductive: int = 0
    lasts_until_close: bool = False
    switched: bool = False
    protocol_error: str = ""

    # Reading. Whether it waits for the client, from which time of the loop on the client is slow, and whether the next
    # reads are small; the future that a reader waits for; the error that ended the exchange.
    paused: bool = False
    slow_from: float = inf
    reads_little: bool = False
    _waiter: asyncio.Future[None] | None = None
    _error: Exception | None = None

    # Time. When the member must have sent or taken a byte, as a reading of ``LoopTime``. The seconds that it has
    # for that; whether it has done so since the last check.
    deadline: float = inf
    timeout: float = 0.0
    progress: bool = False

    def __init__(
        self,
        connection: MemberConnection,
        is_head: bool,
        repeatable: bool,
        may_switch: bool,
        on_interim: Callable[[int, Headers], None] | None,
    ) -> None:
        self._connection = connection
        self.is_head = is_head
        self.repeatable = repeatable
        self.may_switch = may_switch
        self.on_interim = on_interim
        # Body that has not been taken.
        self.pieces: list[bytes] = []

    def __repr__(self) -> str:
        if self._error:
            state = "failed"
        elif self.complete:
            state = "complete"
        elif self.switched:
            state = "switched"
        else:
            state = "body" if self.started else "head"
        words = [state, *([str(self.status)] if self.started else [])]
        words += ["uploading"] * (not self.uploaded) + ["paused"] * self.paused
        return f"<{type(self).__name__} {' '.join(words)}>"

    @property
    def may_go_elsewhere(self) -> bool:
        """Whether another member may get the request: all of it was sent, and nothing has come back."""
        return self.repeatable and self.uploaded and not self.received

    @property
    def awaited(self) -> bool:
        """Whether a listener or a reader waits for the next piece."""
        return self.listener is not None or (self._waiter is not None and not self._waiter.done())

    def set_deadline(self, now: float, timeout: float) -> None:
        """Give the member ``timeout`` seconds from ``now`` on to send or take a byte; no limit applies to a tunnel."""
        if not self.switched:
            self.timeout = timeout
            self.deadline = now + timeout

    @property
    def is_flowing(self) -> bool:
        if self.complete:
            return self.started
        return self.pieces != [] and not (self.paused or self.switched or self._error)

    def take(self) -> bytes:
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def arrived(self) -> None:
        """Report progress: the head, a piece of the body, its end."""
        if self.listener:
            self.listener()
        elif self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the exchange early; a response that has started is truncated."""
        if self.started and isinstance(error, UpstreamError):
            error = TruncatedResponse(str(error))
        self._error = error
        self.arrived()

    def drop(self) -> None:
        self.abandon()  # A response whose end has been read has given its connection back.

    def abandon(self) -> None:
        """End the exchange before its end: unless the response is complete, the connection is closed."""
        if self.switched:
            self._connection.finish()
        elif not self.complete and not self._error:
            self._error = TruncatedResponse("abandoned")
            self._connection.abort()

    # What waits.

    def wait_for_head(self) -> Coroutine[Any, Any, None]:
        return response.wait_for_head(self)

    def wait_for_body(self, within: float) -> Coroutine[Any, Any, None]:
        return response.wait_for_body(self, within)

    def read(self) -> Coroutine[Any, Any, tuple[bytes, bool]]:
        return response.read(self)

    def write(self, data: bytes) -> Coroutine[Any, Any, None]:
        return response.write(self, data)

    def write_eof(self) -> Coroutine[Any, Any, None]:
        return response.write_eof(self)

    def close(self) -> Coroutine[Any, Any, None]:
        return response.close(self)
