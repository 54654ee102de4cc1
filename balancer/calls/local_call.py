"""A call of this program, on its way through ``balancer.dispatch``; ``balancer.transport`` offers it to httpx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from math import inf
from typing import Any

from balancer.asgi.app import Proxy
from balancer.calls.patience import Patience, Wait
from balancer.calls.request_parts import request_parts
from balancer.dispatch.context import RequestContext
from balancer.dispatch.interfaces import PENDING, STARTED, ActiveRequest
from balancer.errors import ClientGone, Refusal, SilentResponse
from balancer.http.headers import NO_FIELDS, Headers, host, request_id
from balancer.http.request import Request
from balancer.upstream.base import UpstreamResponse
from balancer.upstream.httpx_library import HttpxLibrary


class LocalCall(ActiveRequest):
    """A call: the source of its body, and the sink of its response, whose body is read here.

    ``running``: the task that serves it.
    """

    # httpx has no place for them.
    trailers = NO_FIELDS
    status = 0
    reason = b""
    fields: Headers = NO_FIELDS

    def __init__(
        self, request: Any, library: HttpxLibrary, begin: Callable[[Request], RequestContext], proxy: Proxy
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._httpx = library.httpx
        method, target, fields, length = request_parts(request, self._httpx)
        chunked = length is None
        self._source = request.stream
        self._pieces: AsyncIterator[bytes] | None = None
        # Bytes of the body that are still due, if that is known.
        self._due = length
        self.ended = length == 0
        self.context = begin(
            Request(
                method,
                target,
                fields,
                client="",
                body=None if self.ended else self,
                chunked=chunked,
                host=host(fields),
                id=request_id(fields),
            )
        )
        self.context.is_local_call = True
        self._patience = Patience(request.extensions.get("timeout", {}), self._report_progress)
        self._patience.begin(self._at_member)
        # An error of the caller's own body.
        self._failure: Exception | None = None
        self._piece = b""
        self._whole = False
        self._progress: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self.running = self.task = self._loop.create_task(self._serve(proxy))
        self.running.add_done_callback(self._clean_up)

    async def _serve(self, proxy: Proxy) -> None:
        task = self.running
        await proxy.serve(self, self.context, task)

    def _clean_up(self, running: asyncio.Task[None]) -> None:
        self.task = None
        self._patience.end()
        # Without these two, reference counts alone free all that the call was made of.
        self.context.body = self.context.request.body = None
        self._report_progress()

    # What it waits for.

    @property
    def _at_member(self) -> Wait:
        return Wait.RESPONSE if self.ended else Wait.UPLOAD

    def on_queue(self, is_queued: bool) -> None:
        self._patience.begin(Wait.MEMBER if is_queued else self._at_member)

    def on_connect(self, is_connecting: bool) -> None:
        self._patience.begin(Wait.CONNECTION if is_connecting else self._at_member)

    # The call's body.

    async def read(self) -> bytes:
        """Return the next piece of the caller's body; see ``balancer.http.request.Body``."""
        if self.ended:
            return b""
        if self._pieces is None:
            self._pieces = aiter(self._source)
        self._patience.begin(Wait.SOURCE)
        piece = b""
        try:
            async for piece in self._pieces:
                if piece:
                    break
            else:
                piece = b""
        except Exception as error:
            self._failure = error
            raise ClientGone from error
        self._count(piece)
        self._patience.begin(self._at_member)
        return piece

    def _count(self, piece: bytes) -> None:
        """Count a piece. A body of another length than announced would spoil the next request, or wait for it."""
        self.ended = not piece
        if self._due is not None:
            self._due -= len(piece)
            # The end of any other stream itself shows that there is no more.
            self.ended |= self._due == 0 and isinstance(self._source, self._httpx.ByteStream)
            if self._due < 0 or (not piece and self._due):
                much = "little" if self._due > 0 else "much"
                self._failure = self._httpx.LocalProtocolError(f"Too {much} data for declared Content-Length")
                raise ClientGone

    # The response, as it comes from the balancer.

    def send_interim(self, status: int, headers: Headers) -> None:
        """Do nothing: httpx has no place for interim responses."""

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        if self.state is not PENDING:
            raise ClientGone("refused in mid-response")
        self.state = STARTED
        self.status, self.reason, self.fields = status, reason, headers
        self._report_progress()

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        self._piece = data
        if not more:
            self._whole = True
            self.task = None
        self._report_progress()
        if more and data:
            self._taken = self._loop.create_future()
            await self._taken

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None:
        raise AssertionError("a call does not ask for another protocol")

    def _report_progress(self) -> None:
        if self._progress and not self._progress.done():
            self._progress.set_result(None)

    # The response, as httpx reads it.

    async def wait_for_head(self) -> None:
        """Wait for the head. Raises the errors of httpx if it does not come."""
        while self.state is PENDING and not self.running.done() and not self._patience.expired:
            await self._wait_until(inf)
        self._patience.end()
        if self.state is PENDING:
            expired = self._patience.expired
            raise self._error(*expired.value[1:]) if expired else self._broken()

    async def _wait_until(self, when: float) -> bool:
        """Wait for progress until ``when``; return whether there was any."""
        self._progress = self._loop.create_future()
        try:
            async with asyncio.timeout_at(None if when == inf else when):
                await self._progress
        except TimeoutError:
            return False
        return True

    async def next_piece(self) -> bytes:
        """Return the next piece of the response's body, or b"" at its end. Raises the errors of httpx."""
        while True:
            piece, self._piece = self._piece, b""
            if self._taken and not self._taken.done():
                self._taken.set_result(None)
            if piece or self._whole:
                return piece
            if self.running.done():
                raise self._broken()
            if not await self._wait_until(self._loop.time() + self._patience.limit("read")):
                raise self._error("ReadTimeout", "nothing more of the response in time")

    def _broken(self) -> Exception:
        """Return the error of a response that is not complete."""
        if self._failure:
            return self._failure
        if not self.running.cancelled() and (error := self.running.exception()):
            assert isinstance(error, Exception)
            return error
        if self.context.error == "truncated" and self.context.attempts:
            last = self.context.attempts[-1]
            is_silent = last.reason == SilentResponse.reason
            return self._error("ReadTimeout" if is_silent else "RemoteProtocolError", str(last))
        was_ended = isinstance(self.close_reason, Refusal)
        return self._error("ReadError", str(self.close_reason) if was_ended else "the call was broken off")

    def _error(self, name: str, words: str) -> Exception:
        """Return an exception of the library that the caller uses."""
        error: Exception = getattr(self._httpx, name)(words)
        return error

    async def aclose(self) -> None:
        """End the call, and wait until it has ended."""
        self.end()
        if not self.running.done():
            await asyncio.wait([self.running])

    def end_threadsafe(self) -> None:
        """End a call whose response the caller has dropped. The garbage collector may be at work in any thread."""
        if not self.running.done():
            with suppress(RuntimeError):  # A closed loop has ended its calls.
                self._loop.call_soon_threadsafe(self.end)
