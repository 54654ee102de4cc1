"""The coroutines of the native upstream: connecting to a member, and sending a request whose body may still come.

They are functions beside ``NativeUpstream``, whose private attributes are theirs as well: that class is compiled, and
coroutines are not (docs/decisions/compilation.md).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from balancer.errors import LOCAL_RESOURCE_ERRNOS, ConnectionDied, Refusal, connect_failed
from balancer.http.headers import as_lines
from balancer.http.serialize import request_head
from balancer.loop_time import Limit, loop_time
from balancer.types import Address
from balancer.upstream.base import UpstreamRequest
from balancer.upstream.connection import MemberConnection
from balancer.upstream.connection_pool import MemberPool, frame
from balancer.upstream.exchange import MemberExchange
from balancer.upstream.phase import CLOSED
from balancer.upstream.response import start_upload

if TYPE_CHECKING:
    from balancer.upstream.native import NativeUpstream


async def send(upstream: NativeUpstream, address: Address, request: UpstreamRequest) -> MemberExchange:
    """Send a request and wait for the response head; see ``balancer.upstream.base.Upstream.send``."""
    data = encode_head(request)
    member_pool = upstream.member_pool(address)
    connection = None if request.fresh else member_pool.take()
    if connection is None:
        connection = await _connect(upstream, address, member_pool, request.on_connect)
    upstream._use(connection)
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
    upstream: NativeUpstream, address: Address, member_pool: MemberPool, on_connect: Callable[[bool], None] | None
) -> MemberConnection:
    loop = asyncio.get_running_loop()
    if on_connect:
        on_connect(True)
    try:
        async with Limit(upstream._timeouts.connect):
            _, connection = await loop.create_connection(
                lambda: MemberConnection(address, upstream._timeouts, member_pool), *address
            )
    except OSError as error:
        if error.errno in LOCAL_RESOURCE_ERRNOS:
            words = f"the balancer cannot open another connection: {os.strerror(error.errno)}"
            raise Refusal(503, "overloaded", words, retry_after=1) from error
        raise connect_failed(error, upstream._timeouts.connect) from error
    finally:
        if on_connect:
            on_connect(False)
    upstream.opened += 1
    if upstream._sweeper is None:
        upstream._sweeper = loop_time().call_later(upstream._sweep_seconds, upstream._sweep)
    return connection


async def close(upstream: NativeUpstream) -> None:
    """Close every connection."""
    upstream._close_all()


def encode_head(request: UpstreamRequest) -> bytes:
    """Return a request head as bytes (RFC 9112 section 3). Raises Refusal if a header would break out of its line.

    An HTTP/1.1 server never lets such a request in; one that speaks HTTP/2 may.
    """
    head = request_head(request.method, request.target, as_lines(request.headers, request.spelling))
    lines = len(request.headers) + 2
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in request.target:
        raise Refusal(400, "malformed_request", "the request has a line break or a NUL in its target or a header field")
    return head
