"""One keep-alive connection to a member: HTTP/1.1 on ``asyncio.BufferedProtocol`` and httptools.

Rules:
* At most one exchange at a time. Bytes that arrive without one, or after a response is complete,
  belong to nobody: the connection is closed and never used again.
* That a connection is dead is learnt from ``connection_lost``; nobody ever asks it.
* A response's end is where RFC 9112 section 6.3 says: nothing after HEAD, 204 and 304, else chunked, else
  Content-Length, else the close of the connection. What cannot be framed is a ProtocolViolation.
* A 101 that was asked for ends HTTP on the connection: what follows is passed on as it is, both ways, and
  no limit of HTTP applies to it (RFC 9110 section 7.8). One that was not asked for is a ProtocolViolation.
* Other interim responses are passed on as they come (RFC 9110 section 15.2), up to INTERIM_MAX of them.
* A head has HEAD_MAX bytes at most, and so has what comes between two pieces of a body.
* Limits are kept by ``overdue``, which the pool calls a few times a second; there is no timer for
  an exchange, let alone for a piece of body.
* All connections read into one buffer, whose size bounds what a single read can bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Protocol

import httptools

from balancer.errors import (
    ConnectionDied,
    Fault,
    ProtocolViolation,
    ResponseTimeout,
    SilentResponse,
    TruncatedResponse,
)
from balancer.http.headers import HOP_BY_HOP, Headers, content_length, nominated, trailers
from balancer.http.memo import HEAD_MAX as KNOWN_MAX
from balancer.http.memo import Memo
from balancer.http.request import Body
from balancer.http.serialize import chunk, last_chunk, response_lines
from balancer.types import Address
from balancer.upstream import tcp
from balancer.upstream.base import Timeouts
from balancer.upstream.response import KnownHead, Response

# How much is read at once. Reading pauses while nobody waits for what was read last, so this is also
# what a slow client costs here; it costs a few times as much in the server's own write buffer.
READ_SIZE = 32 * 1024

# Of a response: bytes of its head, or of chunk sizes and trailers in a row, and interim responses before it.
HEAD_MAX = 64 * 1024
INTERIM_MAX = 20

_buffer = bytearray(READ_SIZE)
_view = memoryview(_buffer)


class Owner(Protocol):
    """Who keeps a connection while it is idle. ``heads``: those that members have sent before.

    ``heard_at``: the loop's clock when the member last sent a byte, as far as that has been noticed.
    """

    heads: Memo[bytes, KnownHead]
    heard_at: float

    def ended(self, connection: MemberConnection) -> None:
        """An exchange has ended, and the next may begin."""

    def lost(self, connection: MemberConnection) -> None:
        """The connection is closed."""


class MemberConnection(asyncio.BufferedProtocol):
    """One connection. ``lost``: it cannot be used; ``paused``: reading waits for the client.

    ``idle_since`` belongs to the owner.
    """

    __slots__ = (
        "_acknowledged", "_check_at", "_chunked", "_deadline", "_expects", "_headers", "_inform", "_interim", "_length",
        "_loop", "_owner", "_parser", "_patience", "_progress", "_pump", "_received", "_repeatable", "_response",
        "_reused", "_silence", "_socket", "_spoilt", "_switched_to", "_timeouts", "_transport", "_unproductive",
        "_upgrade", "_upload_done", "_writable", "address", "idle_since", "lost", "paused",
    )  # fmt: skip

    def __init__(self, address: Address, timeouts: Timeouts, owner: Owner) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeouts = timeouts
        self._owner = owner
        self.address = address
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._response: Response | None = None
        self._headers: Headers = []
        self._chunked = False
        self._length = False
        # Interim responses so far, and who is told of them.
        self._interim = 0
        self._inform: Callable[[int, Headers], None] | None = None
        # Bytes since there was last something to pass on.
        self._unproductive = 0
        # The stream of bytes is not one of responses any more.
        self._spoilt = ""
        self._pump: asyncio.Task[None] | None = None
        self._upload_done = True
        self._writable: asyncio.Future[None] | None = None
        # When the member must have shown life, as a reading of the loop's clock; how long it gets; and
        # whether it has since the last look.
        self._deadline = inf
        self._patience = 0.0
        self._progress = False
        # When to look next whether the network is silent, and what counts as silence.
        self._check_at = 0.0
        self._silence = tcp.SILENCE
        self._received = False
        self._repeatable = False
        self._upgrade = False
        self._switched_to = b""
        # The body waits for the member's 100 (Continue).
        self._expects = False
        # The kernel's count of acknowledged bytes before a request that must not run twice was written.
        self._acknowledged: int | None = None
        self._reused = False
        self.idle_since = 0.0
        self.lost = False
        self.paused = False

    # The exchange.

    def begin(
        self,
        data: bytes,
        is_head: bool,
        repeatable: bool,
        upgrade: bool,
        inform: Callable[[int, Headers], None] | None,
        rest: Body | None = None,
        chunked: bool = False,
        expects: bool = False,
    ) -> Response:
        """Send a request; its response comes to life by and by.

        ``data`` is its head, and as much of its body as is at hand; ``rest`` gives what is not. For the others see
        ``balancer.upstream.base.UpstreamRequest``.
        """
        response = self._response = Response(self, is_head)
        self._repeatable = repeatable
        self._upgrade = upgrade
        self._inform = inform
        self._received = self._expects = False
        self._acknowledged = None
        self._interim = self._unproductive = 0
        if not repeatable and self._reused and rest is None and len(data) <= tcp.ONE_SEGMENT:
            self._acknowledged = tcp.acknowledged(self._socket)
        self._transport.write(data)
        self._upload_done = rest is None
        if rest is None:
            self._patience = patience = self._timeouts.response
            self._deadline = self._loop.time() + patience
        else:
            self._expects = expects
            if expects:
                self._expect_life(self._timeouts.response)
            self._pump = self._loop.create_task(self._upload(rest, chunked))
        return response

    async def _upload(self, body: Body, chunked: bool) -> None:
        """Send the body as it comes from the client, no faster than the member takes it."""
        try:
            while piece := await self._next_piece(body):
                self._transport.write(chunk(piece) if chunked else piece)
            if chunked:
                self._transport.write(last_chunk(trailers(body.trailers)))
        except Exception as error:  # ClientGone, as a rule: whoever waits for the response gets it.
            self._fail(error)
            return
        self._upload_done = True
        response = self._response
        if response and not self.paused:
            self._expect_life(self._timeouts.idle if response.started else self._timeouts.response)

    async def _next_piece(self, body: Body) -> bytes:
        if self._writable:
            # The member does not take what it was sent: that must not last for ever.
            self._expect_life(self._timeouts.response)
            await self._writable
        if not self._expects:
            self._deadline = inf  # From here on it is the client that is waited for.
        piece = await body.read()
        self._expects = False
        return piece

    def _fault(self, kind: type[Fault], message: str) -> Fault:
        """A fault of the exchange under way, whose request has been written at least in part."""
        return kind(message, sent=True, received=self._received, reused=self._reused)

    def _died(self, error: Exception | None) -> Fault:
        """The connection is closed, before the response was there."""
        # Only an orderly end carries the kernel's last word: after a reset, bytes may have been read all the same.
        orderly = error is None and self._acknowledged is not None and not self._received
        if orderly and tcp.acknowledged(self._socket) == self._acknowledged:
            words = "the member closed the connection before the request reached it"
            return ConnectionDied(words, sent=False, reused=True)
        return self._fault(ConnectionDied, _words(error))

    def _fail(self, error: Exception) -> None:
        """End the exchange and the connection with it."""
        response, self._response = self._response, None
        self.abort()
        if response:
            response.fail(error)

    def check_network(self) -> None:
        """No connection to the member can be made: have the kernel ask now whether this one still has a network.

        A request that may not be repeated gains nothing by that. It has the usual time for the network to come back.
        """
        if self._can_go_elsewhere and not self.lost:
            self._silence, self._check_at = tcp.DOUBTED_SILENCE, 0.0
            tcp.watch_silence(self._socket, idle=1, probes=tcp.UNANSWERED)

    @property
    def _can_go_elsewhere(self) -> bool:
        """Whether another member may be given the request: all of it was sent, and nothing has come back."""
        return self._response is not None and self._repeatable and self._upload_done and not self._received

    def abort(self) -> None:
        """Close at once. What is still expected on this connection will not come."""
        self._deadline = inf
        if self._pump:
            self._pump.cancel()
            self._pump = None
        self._response = None
        if not self.lost:
            self.lost = True
            self._owner.lost(self)
            self._transport.abort()

    def resume(self) -> None:
        """The client has caught up."""
        self.paused = False
        self._transport.resume_reading()
        if not (self._response and self._response.switched):
            self._expect_life(self._timeouts.idle)

    async def write(self, data: bytes) -> None:
        """Bytes of the protocol switched to."""
        if self._writable:
            await self._writable
        if not self.lost:
            self._transport.write(data)

    def write_eof(self) -> None:
        if not self.lost:
            self._transport.write_eof()

    def finish(self) -> None:
        """Close once everything has been written."""
        if not self.lost:
            self.lost = True
            self._response = None
            self._owner.lost(self)
            self._transport.close()

    def _expect_life(self, within: float) -> None:
        self._patience = within
        self._deadline = self._loop.time() + within

    def overdue(self, now: float) -> None:
        """Fail the exchange if the member, or the network to it, has been silent for too long."""
        if self._progress:
            self._progress = False
            self._owner.heard_at = now
            if self._deadline != inf:
                self._deadline = now + self._patience
        elif now > self._deadline:
            response = self._response
            if response and response.started:
                self._fail(SilentResponse(f"silent for {self._timeouts.idle:g} s in mid-body"))
            else:
                self._fail(self._fault(ResponseTimeout, f"no response within {self._timeouts.response:g} s"))
        elif self._is_hung(now):
            self._fail(self._fault(ConnectionDied, f"the member has sent nothing for {self._timeouts.hung:g} s"))
        elif now >= self._check_at:
            # (A look costs 3 us, and thousands of connections may wait for a long time.)
            self._check_at = now + self._silence / 4
            if tcp.is_silent(self._socket, self._silence):
                self._fail(self._fault(ConnectionDied, "the network to the member is silent"))

    def _is_hung(self, now: float) -> bool:
        """Whether a request that can go elsewhere waits for a member that has sent no byte for HUNG_TIMEOUT."""
        if self._deadline == inf or not self._can_go_elsewhere:
            return False
        asked = self._deadline - self._patience
        return now - max(asked, self._owner.heard_at) > self._timeouts.hung

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._socket = transport.get_extra_info("socket")
        tcp.watch_silence(self._socket)

    def get_buffer(self, sizehint: int) -> bytearray:
        return _buffer

    def buffer_updated(self, count: int) -> None:
        response = self._response
        if response is None:
            self.abort()  # Nobody asked.
            return
        head = b""
        if not self._received and not response.is_head:
            end = _buffer.find(b"\r\n\r\n", 0, count if count < KNOWN_MAX else KNOWN_MAX) + 4
            head = bytes(_view[:end])
            known = self._owner.heads.get(head)
            if known and end + known.length == count:
                # The parser has seen nothing since the response before was complete, and would be as it was then.
                response.answer(known, bytes(_view[end:count]))
                self._end(response)
                return
        self._progress = self._received = True
        try:
            if response.switched:
                response.pieces.append(bytes(_view[:count]))
            else:
                self._parser.feed_data(_view[:count])
        except httptools.HttpParserUpgrade as upgrade:
            if not response.switched:
                self._spoilt = "the member switched protocols unasked"
            elif upgrade.args[0] < count:
                response.pieces.append(bytes(_view[upgrade.args[0] : count]))
        except httptools.HttpParserError as error:
            # Nonsense after a complete response does not make the response nonsense.
            self._spoilt = str(error)
        if self._response is not response:
            return
        if response.complete:
            if head and not (response.closes or self._interim or self._spoilt) and self._owner.heads.wants(head):
                self._get_to_know(response, head, count - len(head))
            self._end(response)
        elif self._spoilt:
            self._fail(
                TruncatedResponse(self._spoilt) if response.started else self._fault(ProtocolViolation, self._spoilt)
            )
        else:
            if response.pieces or response.switched:
                if not response.awaited:
                    self._transport.pause_reading()
                    self.paused = True
                    self._deadline = inf  # From here on it is the client that is waited for.
            else:
                self._unproductive += count
                if self._unproductive > HEAD_MAX:
                    self._fail(self._too_much(response))
                    return
            response.arrived()

    def _get_to_know(self, response: Response, head: bytes, length: int) -> None:
        """Remember the head of a response that came whole, if all behind it is a body of Content-Length bytes."""
        if content_length(response.headers) == sum(map(len, response.pieces)) == length > 0:
            lines = response_lines(response.status, response.headers)
            self._owner.heads.keep(head, KnownHead(response.status, response.headers, length, lines))

    def _too_much(self, response: Response) -> Exception:
        if response.started:
            return TruncatedResponse(f"{HEAD_MAX} bytes with nothing of the body")
        return self._fault(ProtocolViolation, f"a response head of more than {HEAD_MAX} bytes")

    def _end(self, response: Response) -> None:
        """The response is complete: give the connection back, or close it if it cannot be used again."""
        self._response = self._inform = None
        self._deadline = inf
        if response.closes or self._spoilt or not self._upload_done:
            self.abort()
        else:
            self._reused = True
            self._owner.ended(self)
        response.arrived()

    def eof_received(self) -> bool:
        response = self._response
        if response and response.switched:
            # One direction of the other protocol has ended, and the other may go on.
            response.complete = True
            response.arrived()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.resume_writing()  # There is no point in waiting any more.
        # The parser knows this object's methods: without it, reference counts alone free both.
        del self._parser
        response = self._response
        if response:
            if response.started and not (self._chunked or self._length or response.switched) and error is None:
                response.complete = True
                self._end(response)
            elif response.started:
                self._fail(TruncatedResponse(_words(error)))
            else:
                self._fail(self._died(error))
        if not self.lost:
            self.lost = True
            self._owner.lost(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable and not writable.done():
            writable.set_result(None)
            self._progress = True

    # httptools' side.

    def on_message_begin(self) -> None:
        response = self._response
        if response is None or response.complete:
            self._spoilt = "bytes after the end of the response"

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def _fields(self) -> Headers:
        """Those of a head that go on; the others are looked at here."""
        passed: Headers = []
        options: list[bytes] = []
        for pair in self._headers:
            name = pair[0]
            if name == b"content-length":
                self._length = True
                passed.append(pair)
            elif name not in HOP_BY_HOP:
                passed.append(pair)
            elif name == b"connection":
                options.append(pair[1])
            elif name == b"upgrade":
                self._switched_to = pair[1]
            elif name == b"transfer-encoding":
                if self._chunked or pair[1].rstrip().lower() != b"chunked":
                    self._spoilt = "only Transfer-Encoding: chunked, once, can be framed"
                self._chunked = True
        self._headers = []
        gone = options and nominated(b",".join(options))
        return [it for it in passed if it[0] not in gone] if gone else passed

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None or response.complete or self._spoilt:
            return
        headers = self._fields()
        status = self._parser.get_status_code()
        if status < 100:
            self._spoilt = f"{status} is no status"
        elif self._chunked and self._parser.get_http_version() == "1.0":
            self._spoilt = "there are no chunks in that version of HTTP"
        if self._spoilt:
            return
        if status < 200:
            if self._length:
                # httptools reads a body here, and others do not: RFC 9110 section 8.6 forbids to announce one.
                if content_length(headers):
                    self._spoilt = "an interim response with a body"
                headers = [it for it in headers if it[0] != b"content-length"]
            if self._chunked:
                self._spoilt = "an interim response with a body"
            self._chunked = self._length = False
            if not self._spoilt:
                self._on_interim(response, status, headers)
            return
        response.status, response.headers, response.started = status, headers, True
        self._patience = self._timeouts.idle
        response.closes = not self._parser.should_keep_alive()
        if response.is_head:
            # httptools would wait for the body that the header fields describe.
            response.complete = True
            self._parser = httptools.HttpResponseParser(self)
            self._chunked = self._length = False

    def _on_interim(self, response: Response, status: int, headers: Headers) -> None:
        self._interim += 1
        if status == 101:
            if self._upgrade:
                response.status, response.headers, response.started, response.switched = status, headers, True, True
                response.upgrade = self._switched_to
                self._deadline = inf
            else:
                self._spoilt = "the member switched protocols unasked"
        elif self._interim > INTERIM_MAX:
            self._spoilt = f"more than {INTERIM_MAX} interim responses"
        else:
            if status == 100 and self._expects:
                self._expects = False
                self._deadline = inf  # From here on it is the client that is waited for.
            if self._inform:
                self._inform(status, headers)

    def on_body(self, piece: bytes) -> None:
        response = self._response
        if response is None or response.complete:
            self._spoilt = "bytes after the end of the response"
        elif not self._spoilt:
            response.pieces.append(piece)

    def on_message_complete(self) -> None:
        response = self._response
        if response and response.started and not self._spoilt and not response.switched:
            response.complete = True
            self._chunked = self._length = False
            if self._headers:
                response.trailers = trailers(self._headers)
        self._headers = []


def frame(piece: bytes, body: Body, chunked: bool, last: bool) -> bytes:
    """A piece of a body as it goes over the wire; with its end if it is the ``last``."""
    if not chunked:
        return piece
    return chunk(piece) + (last_chunk(trailers(body.trailers)) if last else b"")


def _words(error: Exception | None) -> str:
    return str(error) if error else "the member closed the connection"
