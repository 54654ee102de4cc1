"""The coroutines of an exchange: the upload of its request, and reading its response.

They are functions beside ``MemberExchange``, whose private attributes are theirs as well: that class is compiled, and
coroutines are not (docs/decisions/compilation.md).
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from balancer.errors import ConnectionDied, ProtocolViolation, TruncatedResponse
from balancer.http.chunked import chunk, last_chunk
from balancer.http.headers import NO_FIELDS, trailers
from balancer.http.request import Body
from balancer.loop_time import Limit, loop_time

if TYPE_CHECKING:
    from balancer.upstream.exchange import MemberExchange

# Seconds in which a member may say 100 (Continue). After these, clients are let go on, as curl goes on by itself.
CONTINUE_SECONDS = 1.0


async def wait_for_head(exchange: MemberExchange) -> None:
    """Wait for the head. Raises UpstreamError without one, ClientGone or Refusal if the body's source does."""
    try:
        while not exchange.started:
            if exchange._error:
                raise exchange._error
            await _wait(exchange)
        if exchange.switched and exchange.upload_task:
            await _wait_for_upload(exchange, exchange.upload_task)
    except BaseException:
        # Not connection.abort(): once the response is complete, the connection may serve another exchange.
        exchange.abandon()
        raise


async def _wait_for_upload(exchange: MemberExchange, upload: asyncio.Task[None]) -> None:
    """Hold a 101 back until all of the request has been sent: the other protocol begins behind its body.

    Raises ConnectionDied if the member dies before that, or the error of the body's source.
    """
    await asyncio.wait({upload})
    if isinstance(exchange._error, TruncatedResponse):
        raise ConnectionDied(f"{exchange._error} behind the switch of protocols", sent=True)
    if exchange._error:
        raise exchange._error


async def wait_for_body(exchange: MemberExchange, within: float) -> None:
    try:
        if _is_awaited(exchange):
            async with Limit(within):
                while _is_awaited(exchange):
                    await _wait(exchange)
    except TimeoutError:
        return
    except BaseException:
        exchange.abandon()
        raise
    # Also behind pieces that came together with the error: none has been passed on.
    if isinstance(exchange._error, TruncatedResponse) and not (exchange.complete or exchange.switched):
        kind = ProtocolViolation if exchange.protocol_error else ConnectionDied
        raise kind(f"{exchange._error} behind the response head", sent=True)


def _is_awaited(exchange: MemberExchange) -> bool:
    """Whether neither a piece of the body, nor its end, nor an error is there."""
    return not (exchange.pieces or exchange.complete or exchange.switched or exchange._error)


async def read(exchange: MemberExchange) -> tuple[bytes, bool]:
    while not exchange.pieces and not exchange.complete:
        if exchange._error:
            raise exchange._error
        await _wait(exchange)
    piece = exchange.take()
    if exchange.paused and not exchange.complete and not exchange._error:
        exchange._connection.resume()
    # An error may wait behind pieces that arrived before it.
    return piece, not exchange.complete


async def write(exchange: MemberExchange, data: bytes) -> None:
    if exchange._error:
        raise exchange._error
    if exchange._connection.writable:
        await exchange._connection.writable
    exchange._connection.write(data)


async def write_eof(exchange: MemberExchange) -> None:
    exchange._connection.write_eof()


async def close(exchange: MemberExchange) -> None:
    exchange.abandon()


async def _wait(exchange: MemberExchange) -> None:
    exchange._waiter = asyncio.get_running_loop().create_future()
    try:
        await exchange._waiter
    finally:
        exchange._waiter = None


# The upload.


def start_upload(exchange: MemberExchange, body: Body, chunked: bool, awaits_continue: bool) -> None:
    """Send the rest of the request's body.

    ``awaits_continue``: the client waits for 100 (Continue), from the member or, after CONTINUE_SECONDS, from here.
    """
    exchange.awaits_continue, exchange.one_segment = awaits_continue, False
    if awaits_continue:
        _set_deadline(exchange, exchange._connection.timeouts.response)
    exchange.upload_task = asyncio.get_running_loop().create_task(_upload(exchange, body, chunked))


async def _upload(exchange: MemberExchange, body: Body, chunked: bool) -> None:
    """Send the body as it comes from the client, no faster than the member takes it."""
    connection = exchange._connection
    try:
        while piece := await _next_piece(exchange, body):
            connection.write(chunk(piece) if chunked else piece)
        if chunked:
            connection.write(last_chunk(trailers(body.trailers)))
    except Exception as error:  # ClientGone, as a rule: it is raised to the reader of the response.
        connection.fail(error)
        return
    exchange.uploaded = True
    if not (exchange.complete or exchange.paused):
        _set_deadline(exchange, connection.timeouts.idle if exchange.started else connection.timeouts.response)


async def _next_piece(exchange: MemberExchange, body: Body) -> bytes:
    connection = exchange._connection
    if connection.writable:
        # The member does not take what it was sent, which is bounded.
        _set_deadline(exchange, connection.timeouts.response)
        await connection.writable
    if not exchange.awaits_continue:
        exchange.deadline = inf  # The client's time is not the member's.
        return await body.read()
    timer = loop_time().call_later(CONTINUE_SECONDS, _continue, exchange)
    try:
        return await body.read()
    finally:
        timer.cancel()
        exchange.awaits_continue = False


def _continue(exchange: MemberExchange) -> None:
    """Have the client send the body: the member is silent, and may ignore Expect (RFC 9110 section 10.1.1)."""
    if exchange.awaits_continue and exchange.on_interim and not exchange.started:
        exchange.awaits_continue = False
        exchange.deadline = inf  # The client's time is not the member's.
        exchange.on_interim(100, NO_FIELDS)


def _set_deadline(exchange: MemberExchange, timeout: float) -> None:
    exchange.set_deadline(loop_time().time(), timeout)
