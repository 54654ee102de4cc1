"""WebSockets through ASGI: the client is accepted only once the member has accepted.

The server handles the protocol with the client, and ``websockets`` handles it with the member. So each side's pings
are answered on its own connection, and messages and close codes cross.

Rules (RFC 6455):
* The client of a member that refuses gets its answer: its status, its fields, its body.
* A message is passed on before the next is read, both ways, so that a slow side slows the other down.
* Each side gets the close code and reason of the other. Where one vanishes without, its peer gets a code for that:
  1001 for a client that left, 1014 for a member whose connection died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.utils import accept_key, generate_key

from balancer.asgi.request import AsgiRequest
from balancer.asgi.scope import client, target
from balancer.dispatch.interfaces import PENDING, STARTED
from balancer.errors import ClientGone, Refusal, TruncatedResponse
from balancer.http.headers import NO_FIELDS, Headers, folded, host, request_id
from balancer.http.request import Request
from balancer.http.websocket_frames import BAD_GATEWAY, GOING_AWAY
from balancer.loop_time import Limit
from balancer.types import Message, Receive, Scope, Send
from balancer.upstream.base import UpstreamResponse

# The largest message that passes, in bytes: a message is whole before it is passed on.
MAX_MESSAGE = 16 * 1024 * 1024

# Seconds that the other side may take to answer a close.
CLOSE_SECONDS = 1.0

INVALID_DATA, TOO_BIG = 1007, 1009
# Codes that an ASGI server reports, but neither side may send (RFC 6455 section 7.4.1).
NO_CODE, ABNORMAL = 1005, 1006

# Fields between the balancer and one side alone.
_HOP = frozenset({b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-accept"})


class WebSocketRequest(AsgiRequest):
    """A WebSocket, from handshake to close: the sink of its request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        super().__init__(receive, send, task)
        self._scope = scope
        self._key = generate_key()
        # Messages of the client from before it was accepted.
        self._early: list[Message] = []
        self._relay: _Relay | None = None

    async def request(self) -> Request:
        """Return the handshake as a request to a member (RFC 6455 section 4.1)."""
        await self._receive()  # websocket.connect
        headers = [(name, value.strip()) for name, value in self._scope["headers"] if folded(name) not in _HOP]
        headers += [(b"sec-websocket-key", self._key.encode()), (b"sec-websocket-version", b"13")]
        scheme = "https" if self._scope.get("scheme") == "wss" else "http"
        return Request(
            "GET", target(self._scope), headers, client(self._scope), scheme, upgrade=b"websocket", host=host(headers),
            id=request_id(headers),
        )  # fmt: skip

    @property
    def is_watchable(self) -> bool:
        return self.state is PENDING and not self._early

    async def _await_disconnect(self) -> None:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.end()
        else:
            self._early.append(message)

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        """Send the member's refusal. A server without the extension for it can only send 403."""
        if self.state is not PENDING:
            raise ClientGone("refused in mid-response")
        self.state = STARTED
        if "websocket.http.response" in self._scope.get("extensions", {}):
            await self._send_message({"type": "websocket.http.response.start", "status": status, "headers": headers})
        else:
            await self._send_message({"type": "websocket.close"})

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        if "websocket.http.response" in self._scope.get("extensions", {}):
            await self._send_message({"type": "websocket.http.response.body", "body": data, "more_body": more})

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        fields = dict(headers)
        if fields.get(b"sec-websocket-accept") != accept_key(self._key).encode():
            raise Refusal(502, "bad_response", "the member's handshake has a wrong Sec-WebSocket-Accept")
        subprotocol = fields.get(b"sec-websocket-protocol")
        passed = [pair for pair in headers if pair[0] not in _HOP and pair[0] != b"sec-websocket-protocol"]
        self.unwatch()
        self.state = STARTED
        await self._send_message(
            {
                "type": "websocket.accept",
                "subprotocol": subprotocol.decode("latin-1") if subprotocol else None,
                "headers": passed,
            }
        )
        self._relay = _Relay(response, self._next, self._send_message, count)
        await self._relay.run()

    async def begin_shutdown(self) -> None:
        """Close both sides with 1001; returns when that is done, or CLOSE_SECONDS have passed."""
        if self._relay and self.task:
            await self._relay.close(GOING_AWAY, "the balancer is shutting down")
            await asyncio.wait([self.task], timeout=CLOSE_SECONDS)

    async def _next(self) -> Message:
        return self._early.pop(0) if self._early else await self._receive()


class _Relay:
    """The messages of one WebSocket, both ways, until both sides have closed."""

    def __init__(
        self,
        response: UpstreamResponse,
        receive: Receive,
        send: Send,
        count: Callable[[int], None],
    ) -> None:
        self._response = response
        self._receive = receive
        self._send_message = send
        self._count = count
        self._member = Protocol(Side.CLIENT, state=State.OPEN, max_size=MAX_MESSAGE)
        self._fragments: list[bytes] = []
        self._is_text = False
        self._client_open = True
        # Runs once either side has begun to close.
        self._limit = Limit(None)
        self._is_over = False

    async def run(self) -> None:
        upward = asyncio.get_running_loop().create_task(self._upward())
        try:
            async with self._limit:
                await self._downward()
        except TimeoutError:
            pass  # The member does not answer a close.
        finally:
            self._is_over = True
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)

    async def close(self, code: int, reason: str) -> None:
        """Close both sides in the balancer's own name."""
        await self._close_member(code, reason)
        await self._close_client(code, reason)

    async def _downward(self) -> None:
        """Pass messages from the member to the client, until the member's end of file."""
        more = True
        while more:
            try:
                data, more = await self._response.read()
            except TruncatedResponse:
                data, more = b"", False
            if data:
                self._member.receive_data(data)
            for event in self._member.events_received():
                assert isinstance(event, Frame)
                await self._frame(event)
            await self._flush()
            if self._member.close_sent and not self._limit.is_set:
                # Either the member began to close, or it broke the rules: it has a moment to finish.
                self._limit_close()
                if not self._member.close_rcvd:
                    code = self._member.close_sent.code
                    await self._close_client(code if code == TOO_BIG else BAD_GATEWAY, self._member.close_sent.reason)
        await self._close_client(BAD_GATEWAY, "the member's connection died")

    async def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            close = self._member.close_rcvd
            assert close
            await self._close_client(1000 if close.code == NO_CODE else close.code, close.reason)
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                data = b"".join(self._fragments)
                self._fragments.clear()
                await self._message(data)

    async def _message(self, data: bytes) -> None:
        if not self._client_open:
            return
        message: Message = {"type": "websocket.send", "bytes": data}
        if self._is_text:
            try:
                message = {"type": "websocket.send", "text": data.decode()}
            except UnicodeDecodeError:
                self._member.fail(INVALID_DATA, "invalid UTF-8 in a text message")
                return
        try:
            await self._send_message(message)
        except ClientGone:
            self._client_open = False
        else:
            self._count(len(data))

    async def _upward(self) -> None:
        """Pass messages from the client to the member, until the client closes."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._client_open = False
                code = message.get("code") or NO_CODE
                await self._close_member(GOING_AWAY if code in (NO_CODE, ABNORMAL) else code, message.get("reason"))
                return
            if self._member.state is not State.OPEN:
                continue
            if (text := message.get("text")) is not None:
                self._member.send_text(text.encode())
            else:
                self._member.send_binary(message["bytes"])
            await self._flush()

    async def _close_client(self, code: int, reason: str) -> None:
        if self._client_open:
            self._client_open = False
            try:
                await self._send_message({"type": "websocket.close", "code": code, "reason": reason})
            except ClientGone:
                pass

    async def _close_member(self, code: int, reason: str | None) -> None:
        if self._member.state is State.OPEN:
            self._member.send_close(code, reason or "")
            self._limit_close()
            await self._flush()

    def _limit_close(self) -> None:
        if not self._is_over:
            self._limit.renew(CLOSE_SECONDS)

    async def _flush(self) -> None:
        """Send the protocol's output to the member: messages, pongs, closes."""
        try:
            if data := b"".join(self._member.data_to_send()):
                await self._response.write(data)
        except TruncatedResponse:
            pass  # The other direction fails, too.
