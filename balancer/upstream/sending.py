"""The default upstream: keep-alive connections to members, and nothing else.

This module has what waits; ``balancer.upstream.connection_pool`` has the connections themselves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from balancer.errors import LOCAL_RESOURCE_ERRNOS, ConnectionDied, Refusal, connect_failed
from balancer.http.headers import as_lines
from balancer.http.serialize import request_head
from balancer.loop_time import Limit, loop_time
from balancer.types import Address
from balancer.upstream.base import Connections, UpstreamRequest
from balancer.upstream.connection import MemberConnection
from balancer.upstream.connection_pool import ConnectionPool, MemberPool, frame
from balancer.upstream.exchange import MemberExchange
from balancer.upstream.phase import CLOSED
from balancer.upstream.response import start_upload


class NativeUpstream(ConnectionPool):
    """HTTP/1.1 to members. ``active`` and ``idle`` count its connections, ``opened`` all so far.

    ``requests``: sent on them so far.
    """

    async def send(self, address: Address, request: UpstreamRequest) -> MemberExchange:
        data = encode_head(request)
        member_pool = self.member_pool(address)
        connection = None if request.fresh else member_pool.take()
        if connection is None:
            connection = await self._connect(address, member_pool, request.on_connect)
        self._use(connection)
        try:
            rest = body = request.body
            if body and not request.expects:
                # The first piece goes out together with the head. Often it is all there is.
                piece = await body.read()
                if body.ended:
                    rest = None
                data += frame(piece, body, request.chunked, last=rest is None)
            if connection.phase is CLOSED:
                raise ConnectionDied("the idle connection was closed before it was used", sent=False)
        except BaseException:
            connection.abort()
            raise
        response = MemberExchange(
            connection, request.method == "HEAD", request.repeatable, request.upgrade != b"", request.on_interim
        )
        response.uploaded = rest is None
        connection.begin(response, data)
        if rest is not None:
            start_upload(response, rest, request.chunked, request.expects)
        await response.wait_for_head()
        return response

    async def _connect(
        self, address: Address, member_pool: MemberPool, on_connect: Callable[[bool], None] | None
    ) -> MemberConnection:
        loop = asyncio.get_running_loop()
        if on_connect:
            on_connect(True)
        try:
            async with Limit(self._timeouts.connect):
                _, connection = await loop.create_connection(
                    lambda: MemberConnection(address, self._timeouts, member_pool), *address
                )
        except OSError as error:
            if error.errno in LOCAL_RESOURCE_ERRNOS:
                words = f"the balancer cannot open another connection: {os.strerror(error.errno)}"
                raise Refusal(503, "overloaded", words, retry_after=1) from error
            raise connect_failed(error, self._timeouts.connect) from error
        finally:
            if on_connect:
                on_connect(False)
        self.opened += 1
        if self._sweeper is None:
            self._sweeper = loop_time().call_later(self._sweep_seconds, self._sweep)
        return connection

    def counts(self) -> Connections:
        """Return the numbers of connections to members."""
        return Connections(self.active, self.idle, self.opened, self.requests)

    async def close(self) -> None:
        self._close_all()


def encode_head(request: UpstreamRequest) -> bytes:
    """Return a request head as bytes (RFC 9112 section 3). Raises Refusal if a header would break out of its line.

    An HTTP/1.1 server never lets such a request in; one that speaks HTTP/2 may.
    """
    head = request_head(request.method, request.target, as_lines(request.headers, request.spelling))
    lines = len(request.headers) + 2
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in request.target:
        raise Refusal(400, "malformed_request", "the request has a line break or a NUL in its target or a header field")
    return head
