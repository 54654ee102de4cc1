"""The upstream that requests go through by default: keep-alive connections to members, and nothing else.

Each member has a stack of idle connections; the one used last is used next, so that those not
needed any more expire. To take one and to give one back cost the same with one connection as with
thousands; no lock is held, no list scanned, no system call made to learn whether one is alive.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from math import inf

from balancer import malloc
from balancer.errors import OURS, ConnectionDied, Refusal, connect_failed
from balancer.http.headers import Headers
from balancer.http.memo import Memo
from balancer.http.request import Request
from balancer.http.serialize import request_head
from balancer.types import Address
from balancer.upstream.base import Timeouts, Upstream, UpstreamRequest
from balancer.upstream.connection import MemberConnection, frame
from balancer.upstream.response import KnownHead, Response

# Below the 5 s after which a uvicorn member closes an idle connection, by more than one sweep.
KEEPALIVE_SECONDS = 4.0
# Members whose idle connections are closed in one turn of the event loop; thousands would keep everybody waiting.
FAREWELLS = 50
# How often limits are checked, in seconds: a quarter of the shortest, within these bounds.
SWEEP_MIN, SWEEP_MAX = 0.01, 0.5


class NativeUpstream(Upstream):
    """HTTP/1.1 to members. ``active`` and ``idle`` count its connections, ``opened`` all that there have been.

    ``requests``: how many it has sent.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._links: dict[Address, _Link] = {}
        self._active: set[MemberConnection] = set()
        self._heads: Memo[bytes, KnownHead] = Memo()
        shortest = min(timeouts.response, timeouts.idle, timeouts.hung)
        self._sweep_seconds = min(SWEEP_MAX, max(SWEEP_MIN, shortest / 4))
        self._sweeper: asyncio.TimerHandle | None = None
        # Of members that are forgotten: idle connections that are still to be closed.
        self._forgotten: deque[_Link] = deque()
        self._closing: asyncio.Handle | None = None
        self.opened = 0
        self.requests = 0

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def idle(self) -> int:
        return sum(len(link.idle) for link in self._links.values())

    def send_at_once(
        self,
        address: Address,
        request: Request,
        head: bytes,
        body: bytes,
        inform: Callable[[int, Headers], None],
    ) -> Response | None:
        link = self._links.get(address)
        connection = link and link.take()
        if not connection:
            return None
        self._active.add(connection)
        self.requests += 1
        data = head
        if request.body:
            data += frame(body, request.body, request.chunked, last=True)
        return connection.begin(data, request.method == "HEAD", True, request.upgrade != b"", inform)

    async def send(self, address: Address, request: UpstreamRequest) -> Response:
        data = encode_head(request.method, request.target, request.headers)
        link = self._links.get(address) or self.link(address)
        connection = (None if request.fresh else link.take()) or await self._connect(address, link)
        self._active.add(connection)
        self.requests += 1
        try:
            rest = body = request.body
            if body and not request.expects:
                # The first piece goes out together with the head. Often it is all there is.
                piece = await body.read()
                if body.ended:
                    rest = None
                data += frame(piece, body, request.chunked, last=rest is None)
            if connection.lost:
                raise ConnectionDied("the idle connection was closed before it was used", sent=False)
        except BaseException:
            connection.abort()
            raise
        response = connection.begin(
            data, request.method == "HEAD", request.repeatable, request.upgrade != b"", request.inform, rest,
            request.chunked, request.expects,
        )  # fmt: skip
        await response.wait_for_head()
        return response

    def link(self, address: Address) -> _Link:
        """The connections to a member, of which there may be none."""
        return self._links.setdefault(address, _Link(self._active, self._heads))

    async def _connect(self, address: Address, link: _Link) -> MemberConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect):
                _, connection = await loop.create_connection(
                    lambda: MemberConnection(address, self._timeouts, link), *address
                )
        except OSError as error:
            if error.errno in OURS:
                words = f"the balancer cannot open another connection: {os.strerror(error.errno)}"
                raise Refusal(503, "overloaded", words, retry_after=1) from error
            raise connect_failed(error, self._timeouts.connect) from error
        self.opened += 1
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)
        return connection

    def _sweep(self) -> None:
        """Keep the limits: of exchanges under way, and of idle connections, oldest first."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._active):
            connection.overdue(now)
        for link in self._links.values():
            link.expire(now - KEEPALIVE_SECONDS)
        if self._active or any(link.idle for link in self._links.values()):
            self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)
        else:
            self._sweeper = None
            malloc.trim()

    def heard(self, address: Address) -> None:
        if link := self._links.get(address):
            link.heard_at = asyncio.get_running_loop().time()

    def check_network(self, address: Address) -> None:
        for connection in self._active:
            if connection.address == address:
                connection.check_network()

    def forget(self, address: Address) -> None:
        link = self._links.pop(address, None)
        if link:
            link.forgotten = True
            if link.idle:
                self._forgotten.append(link)
                if self._closing is None:
                    self._closing = asyncio.get_running_loop().call_soon(self._close_forgotten)

    def _close_forgotten(self) -> None:
        for _ in range(min(FAREWELLS, len(self._forgotten))):
            self._forgotten.popleft().expire(inf)
        self._closing = asyncio.get_running_loop().call_soon(self._close_forgotten) if self._forgotten else None

    async def close(self) -> None:
        for address in list(self._links):
            self.forget(address)
        if self._closing:
            self._closing.cancel()
            self._closing = None
        while self._forgotten:
            self._forgotten.popleft().expire(inf)
        for connection in list(self._active):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None


class _Link:
    """The connections to one member: ``idle`` is a stack, whose order of insertion is that of their last use."""

    def __init__(self, active: set[MemberConnection], heads: Memo[bytes, KnownHead]) -> None:
        self._active = active
        self.heads = heads
        self._loop = asyncio.get_running_loop()
        self.idle: dict[MemberConnection, None] = {}
        self.heard_at = -inf
        self.forgotten = False

    def take(self) -> MemberConnection | None:
        if self.idle:
            connection, _ = self.idle.popitem()
            if connection.idle_since > self._loop.time() - KEEPALIVE_SECONDS:
                return connection
            connection.abort()
            self.expire(inf)  # The others have been idle for longer.
        return None

    def expire(self, idle_since: float) -> None:
        """Close the connections that have been idle since then or longer."""
        while self.idle:
            connection = next(iter(self.idle))
            if connection.idle_since > idle_since:
                break
            del self.idle[connection]
            connection.abort()

    def ended(self, connection: MemberConnection) -> None:
        self._active.discard(connection)
        if self.forgotten:
            connection.abort()
        else:
            self.heard_at = connection.idle_since = self._loop.time()
            self.idle[connection] = None

    def lost(self, connection: MemberConnection) -> None:
        self._active.discard(connection)
        self.idle.pop(connection, None)


def encode_head(method: str, target: bytes, headers: Headers) -> bytes:
    """A request head on the wire (RFC 9112 section 3). Raises Refusal if a field would break out of its line.

    An HTTP/1.1 server never lets such a request in; one that speaks HTTP/2 may.
    """
    head = request_head(method, target, headers) + b"\r\n"
    lines = len(headers) + 2
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in target:
        raise Refusal(400, "malformed_request", "the request has a line break or a NUL in its target or a header field")
    return head
