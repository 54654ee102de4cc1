"""The coroutines of an HTTP/1.1 exchange: reading its body, and a response that comes in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from balancer.dispatch.active_requests import end_between_events, end_event_stream
from balancer.dispatch.interfaces import COMPLETE, END_OF_EVENT, PENDING, STARTED
from balancer.errors import SHUTTING_DOWN, ClientGone
from balancer.frontend.http1_exchange import CHUNKED, FINAL, ClientExchange
from balancer.frontend.tunnel import CLOSE_SECONDS, Tunnel
from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.serialize import response_head
from balancer.upstream.base import UpstreamResponse


class Http1Exchange(ClientExchange):
    """A request of an HTTP/1.1 client; see ``ClientExchange``."""

    _tunnel: Tunnel | None = None

    async def read(self) -> bytes:
        while not self._pieces and not self.complete:
            if self._error:
                raise self._error
            self._connection.resume()  # A request before may have paused it.
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        piece = self._take()
        if not self.complete:
            self._connection.resume()
        return piece

    async def _serve(self) -> None:
        assert self.task
        try:
            await self._connection.registry.proxy.serve(self, self.context, self.task)
        finally:
            self._clean_up()

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        if self.state is not PENDING:
            raise ClientGone("refused in mid-response")
        self.state = STARTED
        self._headers = headers
        self._sent = END_OF_EVENT[0]
        # The rest of a body is of no use to a member that has refused the request, or sent the client elsewhere.
        self.closes = self.closes or (status >= FINAL and not self.complete)
        self._head = self._render(status, headers, reason)
        # Head and body leave together where the body is at hand, and the head alone where it is not.
        self._connection.loop.call_soon(self.flush)

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        connection = self._connection
        if connection.transport.is_closing():
            raise ClientGone
        if self.state is COMPLETE:
            # It was ended between two events, before the task came to this point.
            raise ClientGone(SHUTTING_DOWN.token)
        self.pass_on(data, more, trailers)
        if not more:
            self.task = None
            return
        self._sent = b""
        if not connection.writable.is_set():
            await connection.writable.wait()
        self._sent = data
        if self.ends_after_event:
            await end_between_events(self)

    async def finish(self) -> None:
        self.flush()
        self._send(b"0\r\n\r\n" if self.framing is CHUNKED else b"")
        self.state = COMPLETE

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        self.state = STARTED
        upgrade = response.upgrade or self.request.upgrade
        lines = b"connection: upgrade", b"upgrade: " + upgrade
        head = response_head(101, headers, *lines, reason=response.reason)
        self._send(head)
        # Only a client whose request names WebSocket speaks it, whatever protocol the member names.
        requested = [name.strip() for name in self.request.upgrade.lower().split(b",")]
        websocket = upgrade.lower() == b"websocket" and b"websocket" in requested
        self._tunnel = Tunnel(self._connection, response, websocket)
        self._connection.become_tunnel(self._tunnel)
        await self._tunnel.run(count)

    def begin_shutdown(self) -> Coroutine[Any, Any, None] | None:
        return self._end_tunnel(self._tunnel) if self._tunnel else end_event_stream(self)

    async def _end_tunnel(self, tunnel: Tunnel) -> None:
        if self.task and tunnel.send_close():
            await asyncio.wait([self.task], timeout=CLOSE_SECONDS)
