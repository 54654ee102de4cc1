"""A keep-alive connection to a member: HTTP/1.1 on ``asyncio.BufferedProtocol``.

Rules:
* At most one exchange at a time. Bytes that arrive without one, before its request is written, or after a response is
  complete, belong to no request: the connection is closed and never used again.
* A request that is all at hand is written at the end of the turn (``balancer.outbox``). The end of the connection may
  still be noticed in that turn: the request may go elsewhere then, whatever its method.
* ``connection_lost`` alone shows that a connection is dead; no system call checks for it.
* State of an exchange is on its ``MemberExchange``, which is made for it; ``phase`` is what the connection does.
* After a 101 that the request allows, bytes are passed on as they are, both ways, and no limit of HTTP applies.
* A head has HEAD_MAX bytes at most, and so has what comes between two pieces of a body.
* ``balancer.upstream.connection_limits`` has the limits of time.
* All connections read into one buffer, whose size bounds what a single read can bring. Behind a read that fills it,
  the others have their turn first: libuv would read up to 32 times in a row.
* Behind bytes that have waited for a client, or came in many pieces, reads are small: they are what waits here.

This module has no coroutine: those of an exchange are in ``balancer.upstream.response``.
"""

from __future__ import annotations

import asyncio
from math import inf

from mypy_extensions import mypyc_attr

from balancer.errors import (
    ConnectionDied,
    ProtocolViolation,
    TruncatedResponse,
    UpstreamError,
)
from balancer.loop_time import LoopTime
from balancer.outbox import Outbox
from balancer.phase_checks import CHECK_STATES, check_phases
from balancer.types import Address
from balancer.upstream import tcp
from balancer.upstream.base import Timeouts
from balancer.upstream.connection_limits import LimitedConnection
from balancer.upstream.exchange import MemberExchange
from balancer.upstream.phase import ACTIVE, CLOSED, IDLE, TRANSITIONS, TUNNEL, Phase
from balancer.upstream.response_parser import ResponseParser

# Bytes of one read. Head and body of 64 KiB, which many servers send at a time, fit in one: read by 32 KiB, such a
# response took three reads and three writes.
READ_SIZE = 128 * 1024
# The same behind bytes that have waited so many seconds for the client, or came in more than so many pieces. Reading
# pauses until they are taken. (A first read may bring 21,000 chunks of one byte, which take 4 ms.)
SMALL_READ_SIZE, SLOW_SECONDS, PIECES_PER_TURN = 32 * 1024, 0.01, 1000

# Why a request on a reused connection has not been carried out.
NOT_REACHED = "the member closed the idle connection before the request reached it"
UNASKED = "the member sent bytes on the idle connection before the request was written"

# Bytes of a response's head, or of chunk sizes and trailers in a row.
HEAD_MAX = 64 * 1024

_buffer = bytearray(READ_SIZE)
_view = memoryview(_buffer)
_small_view = _view[:SMALL_READ_SIZE]


@mypyc_attr(allow_interpreted_subclasses=True)
class PoolCallbacks:
    """The keeper of a connection while it is idle.

    ``last_byte_at``: a reading of ``clock`` at the last byte from the member, as far as that has been noticed.
    """

    clock: LoopTime
    outbox: Outbox
    last_byte_at: float

    def ended(self, connection: MemberConnection) -> None:
        """Take a connection back after its exchange."""
        raise NotImplementedError

    def lost(self, connection: MemberConnection) -> None:
        """Drop a connection that is closed."""
        raise NotImplementedError


class MemberConnection(LimitedConnection):
    """A connection. ``writable``: None, or a future, done once the member takes more. ``idle_since``: the pool's."""

    __slots__ = (
        "_loop", "_parser", "_reused", "_transport", "_unsent", "address", "idle_since", "phase", "writable",
    )  # fmt: skip

    def __init__(self, address: Address, timeouts: Timeouts, callbacks: PoolCallbacks) -> None:
        super().__init__(timeouts, callbacks)
        # Global.
        self._loop = asyncio.get_running_loop()

        # Per connection.
        self.address = address
        self.phase: Phase = IDLE
        self.idle_since = 0.0
        self.writable: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self._parser = ResponseParser(timeouts.idle)
        self._reused = False

        # Per exchange: a request that waits for the end of the turn: no byte of it has been written.
        self._unsent = b""

    def __repr__(self) -> str:
        host, port = self.address
        use = repr(self._exchange) if self._exchange else "reused" if self._reused else "new"
        return f"<MemberConnection {host}:{port} {self.phase.value}, {use}>"

    # The exchange.

    def begin(self, exchange: MemberExchange, data: bytes) -> None:
        """Write a request: its head, and as much of its body as is at hand. The exchange fills in as bytes arrive."""
        self.phase = ACTIVE
        self._exchange = self._parser.exchange = exchange
        if exchange.uploaded:
            if len(data) > tcp.ONE_SEGMENT:
                exchange.one_segment = False
            elif self._reused and not exchange.repeatable:
                exchange.acknowledged = tcp.acknowledged(self._socket)
            # (As ``set_deadline`` and ``LoopTime.time`` do, without two calls for each request.)
            exchange.timeout = timeout = self.timeouts.response
            exchange.deadline = self._loop.time() - self._callbacks.clock.lost + timeout
            self._unsent = data
            self._callbacks.outbox.add(self._send)
        else:
            self._transport.write(data)

    def _send(self) -> None:
        """Write the request that waits, unless the connection has ended in the same turn."""
        if self.phase is not CLOSED and not self._transport.is_closing():
            data, self._unsent = self._unsent, b""
            self._transport.write(data)

    def resume(self) -> None:
        """Read again: the client has caught up."""
        exchange = self._exchange
        if exchange:
            exchange.paused = False
            exchange.reads_little = self._loop.time() > exchange.slow_from
            self._transport.resume_reading()
            exchange.set_deadline(self._callbacks.clock.time(), self.timeouts.idle)

    def write(self, data: bytes) -> None:
        """Write bytes of a request's body, or of the protocol switched to."""
        if self.phase is not CLOSED:
            self._transport.write(data)

    def write_eof(self) -> None:
        """End the bytes of the protocol switched to."""
        if self.phase is not CLOSED:
            self._transport.write_eof()

    def finish(self) -> None:
        """Close once everything has been written."""
        if self._detach():
            self._transport.close()

    def abort(self) -> None:
        """Close immediately. The exchange gets no more bytes."""
        if self._detach():
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """End the exchange with an error, and the connection with it."""
        exchange = self._exchange
        self.abort()
        if exchange:
            exchange.fail(error)

    def _detach(self) -> bool:
        """Detach the exchange and leave the pool; return whether the connection was open."""
        exchange, self._exchange = self._exchange, None
        self._parser.exchange = None
        if exchange and exchange.upload_task:
            exchange.upload_task.cancel()
        if self.phase is CLOSED:
            return False
        self.phase = CLOSED
        self._callbacks.lost(self)
        return True

    def _end(self, exchange: MemberExchange) -> None:
        """Give the connection back after a complete response, or close it if it cannot be used again."""
        if exchange.closes or exchange.protocol_error or not exchange.uploaded:
            self.abort()
        else:
            self._exchange = self._parser.exchange = None
            self._reused = True
            self.phase = IDLE
            self._callbacks.ended(self)
        exchange.arrived()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._socket = transport.get_extra_info("socket")
        tcp.watch_silence(self._socket)

    def get_buffer(self, sizehint: int) -> memoryview:
        exchange = self._exchange
        return _small_view if exchange and exchange.reads_little else _view

    def buffer_updated(self, count: int) -> None:
        exchange = self._exchange
        if exchange is None or self._unsent:
            self.fail(ConnectionDied(UNASKED, sent=False))  # No request waits for these bytes.
            return
        exchange.progress = True
        if self.phase is TUNNEL:
            exchange.pieces.append(bytes(_view[:count]))
            self._pass_on(exchange)
        else:
            self._parser.feed(exchange, _buffer, _view[:count])
            self._parsed(exchange, count)
        if count == READ_SIZE and self._exchange is exchange:
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Read again, in another turn of the event loop."""
        if self.phase is not CLOSED and not (self._exchange and self._exchange.paused):
            self._transport.resume_reading()

    def _parsed(self, exchange: MemberExchange, count: int) -> None:
        """Act on what ``count`` bytes have made of the exchange."""
        if self._exchange is not exchange:
            return  # An interim response has made the client end it.
        if exchange.complete:
            self._end(exchange)
        elif exchange.protocol_error:
            self._violate(exchange, exchange.protocol_error)
        elif exchange.switched:
            self.phase = TUNNEL
            self._pass_on(exchange)
        elif exchange.pieces:
            self._pass_on(exchange)
        else:
            exchange.unproductive += count
            if exchange.unproductive > HEAD_MAX:
                what = "nothing of the body in" if exchange.started else "a response head of more than"
                self._violate(exchange, f"{what} {HEAD_MAX} bytes")
            else:
                exchange.arrived()

    def _pass_on(self, exchange: MemberExchange) -> None:
        """Report pieces; reading pauses until they are taken."""
        has_many = len(exchange.pieces) > PIECES_PER_TURN
        if has_many or not exchange.awaited:
            self._transport.pause_reading()
            exchange.paused = True
            exchange.slow_from = -inf if has_many else self._loop.time() + SLOW_SECONDS
            exchange.deadline = inf  # The client's time is not the member's.
        exchange.arrived()

    def _violate(self, exchange: MemberExchange, message: str) -> None:
        """Fail an exchange whose bytes are no response."""
        exchange.protocol_error = message
        self.fail(TruncatedResponse(message) if exchange.started else ProtocolViolation(message, sent=True))

    def eof_received(self) -> bool:
        exchange = self._exchange
        if exchange and self.phase is TUNNEL:
            # One direction of the other protocol has ended, and the other may go on.
            exchange.complete = True
            exchange.arrived()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.resume_writing()  # There is no point in waiting any more.
        self._parser.close()
        exchange = self._exchange
        if exchange:
            if not exchange.started:
                self.fail(self._died(exchange, error))
            elif exchange.lasts_until_close and error is None:
                exchange.closes = exchange.complete = True
                self._end(exchange)
            else:
                self.fail(TruncatedResponse(_words(error)))
        self._detach()

    def _died(self, exchange: MemberExchange, error: Exception | None) -> UpstreamError:
        """Return the error of a connection that is closed before the response was there."""
        if self._unsent:
            return ConnectionDied(NOT_REACHED, sent=False)
        # Only an orderly end carries the kernel's last word: after a reset, bytes may have been read all the same.
        orderly = self._reused and error is None and exchange.one_segment and not exchange.received
        if orderly and tcp.took_nothing(self._socket, exchange.acknowledged):
            return ConnectionDied(NOT_REACHED, sent=False)
        return ConnectionDied(f"{_words(error)} before a response", sent=True)

    def pause_writing(self) -> None:
        self.writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable and not writable.done():
            writable.set_result(None)
            if self._exchange:
                self._exchange.progress = True


def _words(error: Exception | None) -> str:
    return str(error) if error else "the member closed the connection"


if CHECK_STATES:
    check_phases(MemberConnection, TRANSITIONS, IDLE)
