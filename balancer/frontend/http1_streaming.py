"""The coroutines of an HTTP/1.1 exchange: reading its body, and a response that comes in pieces.

They are functions beside ``Http1Exchange``, whose private attributes are theirs as well: that class is compiled, and
coroutines are not (docs/decisions/compilation.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from balancer.dispatch.interfaces import COMPLETE, END_OF_EVENT, PENDING, STARTED
from balancer.dispatch.serving import end_between_events
from balancer.errors import SHUTTING_DOWN, ClientGone
from balancer.frontend.tunnel import CLOSE_SECONDS, Tunnel
from balancer.http.headers import NO_FIELDS, Headers, as_lines
from balancer.http.serialize import response_head
from balancer.upstream.base import UpstreamResponse

if TYPE_CHECKING:
    from balancer.frontend.http1_exchange import Http1Exchange

# Statuses from which an answer that comes before the end of the request's body is no part of a conversation.
FINAL = 300


async def read(exchange: Http1Exchange) -> bytes:
    """Return the next piece of the body, or b"" at its end."""
    while not exchange._pieces and not exchange.complete:
        if exchange._error:
            raise exchange._error
        exchange._connection.resume()  # A request before may have paused it.
        exchange._waiter = exchange._connection.loop.create_future()
        try:
            await exchange._waiter
        finally:
            exchange._waiter = None
    piece = exchange._take()
    if not exchange.complete:
        exchange._connection.resume()
    return piece


async def serve(exchange: Http1Exchange) -> None:
    """Await the dispatcher, then clean up."""
    assert exchange.task
    try:
        await exchange._connection.registry.proxy.serve(exchange, exchange.context, exchange.task)
    finally:
        exchange._clean_up()


async def start(exchange: Http1Exchange, status: int, headers: Headers, reason: bytes) -> None:
    """Begin a response."""
    if exchange.state is not PENDING:
        raise ClientGone("refused in mid-response")
    exchange.state = STARTED
    exchange._headers = headers
    exchange._sent = END_OF_EVENT[0]
    # The rest of a body is of no use to a member that has refused the request, or sent the client elsewhere.
    exchange.closes = exchange.closes or (status >= FINAL and not exchange.complete)
    exchange._head = exchange._render(status, headers, reason)
    # Head and body leave together where the body is at hand, and the head alone where it is not.
    exchange._connection.loop.call_soon(exchange.flush)


async def write(exchange: Http1Exchange, data: bytes, more: bool, trailers: Headers) -> None:
    """Send a piece of the body."""
    connection = exchange._connection
    if connection.transport.is_closing():
        raise ClientGone
    if exchange.state is COMPLETE:
        # It was ended between two events, before the task came to this point.
        raise ClientGone(SHUTTING_DOWN.token)
    exchange.pass_on(data, more, trailers)
    if not more:
        exchange.task = None
        return
    exchange._sent = b""
    if not connection.writable.is_set():
        await connection.writable.wait()
    exchange._sent = data
    if exchange.ends_after_event:
        await end_between_events(exchange)


async def finish(exchange: Http1Exchange) -> None:
    """Send the end of the response, if the client is still there."""
    exchange.state = COMPLETE
    if not exchange._connection.transport.is_closing():
        exchange.pass_on(b"", False, NO_FIELDS)


async def switch(
    exchange: Http1Exchange, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]
) -> None:
    """Pass bytes of another protocol on both ways."""
    exchange.state = STARTED
    upgrade = response.upgrade or exchange.request.upgrade
    lines = as_lines([*headers, (b"connection", b"upgrade"), (b"upgrade", upgrade)], exchange.spelling)
    exchange._send(response_head(101, lines, response.reason))
    # Only a client whose request names WebSocket speaks it, whatever protocol the member names.
    requested = [name.strip() for name in exchange.request.upgrade.lower().split(b",")]
    websocket = upgrade.lower() == b"websocket" and b"websocket" in requested
    exchange.tunnel = Tunnel(exchange._connection, response, websocket)
    exchange._connection.become_tunnel(exchange.tunnel)
    await exchange.tunnel.run(count)


async def end_tunnel(exchange: Http1Exchange, tunnel: Tunnel) -> None:
    """Close a WebSocket, and wait for its end."""
    if exchange.task and tunnel.send_close():
        await asyncio.wait([exchange.task], timeout=CLOSE_SECONDS)
