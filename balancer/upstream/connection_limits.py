"""How long a member, and the network to it, may be silent while a request waits.

``check_deadline``, which the pool calls a few times a second, keeps the limits. There is no timer for an exchange, let
alone for a piece of body.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

from balancer.errors import ConnectionDied, ResponseTimeout, SilentResponse
from balancer.upstream import tcp
from balancer.upstream.base import Timeouts
from balancer.upstream.exchange import MemberExchange

if TYPE_CHECKING:
    from balancer.upstream.connection import PoolCallbacks


class LimitedConnection(asyncio.BufferedProtocol):
    """The limits of a connection to a member. ``timeouts``: of its pool."""

    __slots__ = ("_callbacks", "_check_at", "_exchange", "_silence", "_socket", "timeouts")

    def __init__(self, timeouts: Timeouts, callbacks: PoolCallbacks) -> None:
        self._callbacks = callbacks
        self.timeouts = timeouts
        self._exchange: MemberExchange | None = None
        self._socket: Any
        # When to check the silence of the network next, and the seconds of silence that count.
        self._check_at = 0.0
        self._silence = tcp.SILENCE

    def fail(self, error: Exception) -> None:
        """End the exchange with an error, and the connection with it."""
        raise NotImplementedError

    def check_deadline(self, now: float) -> None:
        """Fail the exchange if the member, or the network to it, has been silent for too long."""
        exchange = self._exchange
        if exchange:
            if exchange.progress:
                exchange.progress = False
                self._callbacks.last_byte_at = now
                if exchange.deadline != inf:
                    exchange.deadline = now + exchange.timeout
                return
            if now > exchange.deadline:
                self._fail_overdue(exchange)
                return
            if self._is_hung(exchange, now):
                self.fail(ConnectionDied(f"the member has sent nothing for {self.timeouts.hung:g} s", sent=True))
                return
        if now >= self._check_at:
            self._check_at = now + self._silence / 4  # A check costs 3 us, and thousands of connections may wait.
            if tcp.is_silent(self._socket, self._silence):
                self.fail(ConnectionDied("the network to the member is silent", sent=True))

    def _fail_overdue(self, exchange: MemberExchange) -> None:
        if exchange.started:
            self.fail(SilentResponse(f"silent for {self.timeouts.idle:g} s in mid-body"))
        else:
            self.fail(ResponseTimeout(f"no response within {self.timeouts.response:g} s", sent=True))

    def _is_hung(self, exchange: MemberExchange, now: float) -> bool:
        """Whether a request that can go elsewhere waits for a member that has sent no byte for HUNG_TIMEOUT."""
        if exchange.deadline == inf or not exchange.may_go_elsewhere:
            return False
        sent_at = exchange.deadline - exchange.timeout
        return now - max(sent_at, self._callbacks.last_byte_at) > self.timeouts.hung

    def check_network(self) -> None:
        """Have the kernel check the network of this connection: no other to the member can be made.

        A request that may not be repeated gains nothing by that. It waits as long as ever for the network to come back.
        """
        if self._exchange and self._exchange.may_go_elsewhere:
            self._silence, self._check_at = tcp.DOUBTED_SILENCE, 0.0
            tcp.watch_silence(self._socket, idle=1, probes=tcp.UNANSWERED)
