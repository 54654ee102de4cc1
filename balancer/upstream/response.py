"""The coroutines of an exchange: the upload of its request, and reading its response."""

from __future__ import annotations

import asyncio
from math import inf

from balancer.errors import ConnectionDied, ProtocolViolation, TruncatedResponse
from balancer.http.chunked import chunk, last_chunk
from balancer.http.headers import NO_FIELDS, trailers
from balancer.http.request import Body
from balancer.loop_time import loop_time
from balancer.upstream.exchange import MemberExchange

# Seconds in which a member may say 100 (Continue). After these, clients are let go on, as curl goes on by itself.
CONTINUE_SECONDS = 1.0


class Response(MemberExchange):
    """A member's response as it arrives; see ``balancer.upstream.base.PendingResponse``."""

    async def wait_for_head(self) -> None:
        """Wait for the head. Raises UpstreamError without one, ClientGone or Refusal if the body's source does."""
        try:
            while not self.started:
                if self._error:
                    raise self._error
                await self._wait()
            if self.switched and self.upload_task:
                await self._wait_for_upload(self.upload_task)
        except BaseException:
            # Not connection.abort(): once the response is complete, the connection may serve another exchange.
            self.abandon()
            raise

    async def _wait_for_upload(self, upload: asyncio.Task[None]) -> None:
        """Hold a 101 back until all of the request has been sent: the other protocol begins behind its body.

        Raises ConnectionDied if the member dies before that, or the error of the body's source.
        """
        await asyncio.wait({upload})
        if isinstance(self._error, TruncatedResponse):
            raise ConnectionDied(f"{self._error} behind the switch of protocols", sent=True)
        if self._error:
            raise self._error

    async def wait_for_body(self, within: float) -> None:
        if self.pieces or self.complete or self.switched:
            return
        timer = asyncio.get_running_loop().call_later(within, self.arrived)
        try:
            if not self._error:
                await self._wait()
            if not self.pieces and isinstance(self._error, TruncatedResponse):
                kind = ProtocolViolation if self.protocol_error else ConnectionDied
                raise kind(f"{self._error} behind the response head", sent=True)
        except BaseException:
            self.abandon()
            raise
        finally:
            timer.cancel()

    async def read(self) -> tuple[bytes, bool]:
        while not self.pieces and not self.complete:
            if self._error:
                raise self._error
            await self._wait()
        piece = self.take()
        if self.paused and not self.complete and not self._error:
            self._connection.resume()
        # An error may wait behind pieces that arrived before it.
        return piece, not self.complete

    async def write(self, data: bytes) -> None:
        if self._error:
            raise self._error
        if self._connection.writable:
            await self._connection.writable
        self._connection.write(data)

    async def write_eof(self) -> None:
        self._connection.write_eof()

    async def close(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        """End the exchange before its end: unless the response is complete, the connection is closed."""
        if self.switched:
            self._connection.finish()
        elif not self.complete and not self._error:
            self._error = TruncatedResponse("abandoned")
            self._connection.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # The upload.

    def start_upload(self, body: Body, chunked: bool, awaits_continue: bool) -> None:
        """Send the rest of the request's body.

        ``awaits_continue``: the client waits for 100 (Continue), from the member or, after CONTINUE_SECONDS, from here.
        """
        self.awaits_continue, self.one_segment = awaits_continue, False
        if awaits_continue:
            self._set_deadline(self._connection.timeouts.response)
        self.upload_task = asyncio.get_running_loop().create_task(self._upload(body, chunked))

    async def _upload(self, body: Body, chunked: bool) -> None:
        """Send the body as it comes from the client, no faster than the member takes it."""
        connection = self._connection
        try:
            while piece := await self._next_piece(body):
                connection.write(chunk(piece) if chunked else piece)
            if chunked:
                connection.write(last_chunk(trailers(body.trailers)))
        except Exception as error:  # ClientGone, as a rule: it is raised to the reader of the response.
            connection.fail(error)
            return
        self.uploaded = True
        if not (self.complete or self.paused):
            self._set_deadline(connection.timeouts.idle if self.started else connection.timeouts.response)

    async def _next_piece(self, body: Body) -> bytes:
        connection = self._connection
        if connection.writable:
            # The member does not take what it was sent, which is bounded.
            self._set_deadline(connection.timeouts.response)
            await connection.writable
        if not self.awaits_continue:
            self.deadline = inf  # The client's time is not the member's.
            return await body.read()
        timer = loop_time().call_later(CONTINUE_SECONDS, self._continue)
        try:
            return await body.read()
        finally:
            timer.cancel()
            self.awaits_continue = False

    def _continue(self) -> None:
        """Have the client send the body: the member is silent, and may ignore Expect (RFC 9110 section 10.1.1)."""
        if self.awaits_continue and self.on_interim and not self.started:
            self.awaits_continue = False
            self.deadline = inf  # The client's time is not the member's.
            self.on_interim(100, NO_FIELDS)

    def _set_deadline(self, timeout: float) -> None:
        self.set_deadline(loop_time().time(), timeout)
