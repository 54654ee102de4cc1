"""An upstream over any ``AsyncBaseTransport`` of httpx or httpx2: the library's own, a mock, HTTP/2, a user's.

The transport is called directly. An ``httpx.AsyncClient`` would add headers, keep one cookie jar
for all users, follow redirects, decode bodies and rewrite URLs. Each member has a transport of its
own, so that forgetting a member closes its connections and no request waits for a pool slot of
another. Its pool is unbounded, because httpcore 1.0.9 loses slots when a request is cancelled
while it waits for one (encode/httpcore issue 1093).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from balancer.errors import ConnectionDied, ProtocolViolation, SilentResponse, TruncatedResponse
from balancer.forks import abandon, renew_in_child
from balancer.http.headers import Headers, announces_close, response_headers, without_length
from balancer.http.request import Body
from balancer.http.serialize import own_reason
from balancer.loop_time import Limit, Timer, loop_time
from balancer.types import Address
from balancer.upstream import tcp
from balancer.upstream.base import Timeouts, Upstream, UpstreamRequest, UpstreamResponse
from balancer.upstream.drain import drain
from balancer.upstream.httpx_library import EITHER, HttpxLibrary, any_library, fault_of, faults, library_of, words_of

if TYPE_CHECKING:
    import httpx
    import httpx2

    Transport = httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport

# Below the 5 s after which a uvicorn member closes an idle connection.
KEEPALIVE_SECONDS = 4.0

# Bytes of one read of a protocol that a member switched to.
READ_SIZE = 32 * 1024


class HttpxUpstream(Upstream):
    """Sends requests through transports of httpx, such as ``httpx.AsyncHTTPTransport(http2=True)``.

    Args:
        timeouts: Limits in seconds.
        make_transport: Function that returns a transport, called once for each member. Default: plain HTTP/1.1.

    Raises:
        TypeError: ``make_transport`` is a transport, not a function that makes one.
    """

    def __init__(self, timeouts: Timeouts, make_transport: Callable[[], Transport] | None = None) -> None:
        if hasattr(make_transport, "handle_async_request") and not isinstance(make_transport, type):
            kind = type(make_transport).__qualname__
            raise TypeError(f"make_transport is a function that returns a transport, such as lambda: {kind}(...)")
        self._timeouts = timeouts
        self._make_transport = make_transport or _default_transport()
        self._members: dict[Address, _Member] = {}
        self._closing: set[asyncio.Task[None]] = set()
        renew_in_child(self, HttpxUpstream._begin_anew)

    def _begin_anew(self) -> None:
        """Leave the transports to the process before this one: two that use the same connections mix up responses."""
        abandon(self._members, self._closing)
        self._members, self._closing = {}, set()

    def send_nowait(self, *request: object) -> None:
        """Return None: a transport does not show whether it would have to wait."""

    async def send(self, address: Address, request: UpstreamRequest) -> _Response:
        member = self._members.get(address)
        if member is None:
            member = self._members[address] = _member(self._make_transport(), address)
        # httpcore reads "read" anew for the head and for the body: see _Response.
        limits = {
            "connect": self._timeouts.connect,
            "pool": self._timeouts.connect,
            "write": self._timeouts.response,
            "read": self._timeouts.response,
        }
        httpx = member.library.httpx
        stream_class = member.library.stream_class(_RequestStream)
        outgoing = httpx.Request(
            request.method,
            _with_target(member, request.target),
            headers=request.headers,
            stream=stream_class(request, request.body) if request.body else httpx.ByteStream(b""),
            extensions={"target": request.target, "timeout": limits, **_traced(request)},
        )
        outgoing.method = request.method  # httpx turns it into upper case.
        member.in_use += 1
        try:
            with faults(httpx):
                response = await self._head(member, outgoing, request.repeatable)
        except BaseException:
            self.release(member)
            raise
        limits["read"] = self._timeouts.idle
        answer = _Response(response, self._timeouts.idle, member, self)
        if response.status_code == 101 and not (request.upgrade and answer.switched):
            await answer.close()
            raise ProtocolViolation("the member switched protocols unasked", sent=True)
        return answer

    async def _head(self, member: _Member, outgoing: Any, repeatable: bool) -> Any:
        """Return the response's head. Raises ConnectionDied if the member hangs and the request can go elsewhere."""
        clock = loop_time()
        timeout = self._timeouts.hung if repeatable else inf
        sent_at = clock.time()
        timer: Timer | None = None

        def check() -> None:
            nonlocal timer
            left = max(sent_at, member.last_byte_at) + timeout - clock.time()
            if left <= 0:
                scope.renew(0.0)
            else:
                timer = clock.call_later(left, check)

        try:
            async with Limit(None) as scope:
                if timeout != inf:
                    check()
                response = await member.transport.handle_async_request(outgoing)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise ConnectionDied(f"the member has sent nothing for {timeout:g} s", sent=True) from error
        finally:
            if timer:
                timer.cancel()
        member.last_byte_at = clock.time()
        return response

    def forget(self, address: Address) -> None:
        member = self._members.pop(address, None)
        if member:
            member.forgotten = True
            self._close_if_unused(member)

    def on_member_answered(self, address: Address) -> None:
        if member := self._members.get(address):
            member.last_byte_at = loop_time().time()

    def check_network(self, address: Address) -> None:
        """Do nothing: sockets are the transport's own. Those of the default one have ``tcp.watch_silence``."""

    async def close(self) -> None:
        for address in list(self._members):
            self.forget(address)
        while self._closing:
            await asyncio.gather(*self._closing)

    def release(self, member: _Member) -> None:
        """Count an exchange with a member off."""
        member.in_use -= 1
        self._close_if_unused(member)

    def _close_if_unused(self, member: _Member) -> None:
        if member.forgotten and not member.in_use:
            self.close_soon(member.transport.aclose())

    def close_soon(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run what closes something, in a task that ``close`` waits for."""
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


@dataclass(slots=True)
class _Member:
    """A member's transport, the library that it takes requests of, and how many exchanges use it."""

    transport: Any
    library: HttpxLibrary
    url: Any
    in_use: int = 0
    last_byte_at: float = -inf
    forgotten: bool = False


class _Response(UpstreamResponse):
    def __init__(self, response: Any, idle: float, member: _Member, upstream: HttpxUpstream) -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._clock = loop_time()
        self._member = member
        self.status = response.status_code
        self.reason = own_reason(self.status, response.extensions.get("reason_phrase", b""))
        fields = [(name.lower(), value.strip()) for name, value in response.headers.raw]
        self.headers = response_headers(fields)
        if self.status < 200 or self.status == 204:
            self.headers = without_length(self.headers)
        self.closes = announces_close(fields)
        self.upgrade = next((value for name, value in fields if name == b"upgrade"), b"")
        # httpcore reads trailers and keeps them to itself.
        self.trailers: Headers = []
        self._response = response
        # Until it is closed.
        self._upstream: HttpxUpstream | None = upstream
        self._library, self._httpx = member.library, member.library.httpx
        self._pieces = aiter(response.stream)
        # The read that ``wait_for_body`` has begun.
        self._first: asyncio.Task[tuple[bytes, bool]] | None = None
        # The other protocol's bytes, where the member switched to one.
        self._network = response.extensions.get("network_stream") if response.status_code == 101 else None

    @property
    def switched(self) -> bool:
        """Whether the connection speaks another protocol, which can be read and written."""
        return self._network is not None

    async def wait_for_body(self, within: float) -> None:
        if self._network:
            return
        self._first = self._loop.create_task(self._read())
        try:
            await asyncio.wait([self._first], timeout=within)
            if self._first.done():
                self._first.result()
        except BaseException as error:
            await self.close()
            if isinstance(error, TruncatedResponse):
                if isinstance(error.__cause__, self._httpx.TransportError):
                    raise fault_of(error.__cause__, self._httpx) from error
                raise ConnectionDied(str(error), sent=True) from error
            raise

    def drop(self) -> None:
        if self._upstream:
            self._upstream.close_soon(drain(self))

    async def read(self) -> tuple[bytes, bool]:
        first, self._first = self._first, None
        return await (first or self._read())

    async def _read(self) -> tuple[bytes, bool]:
        try:
            if self._network:
                data = bytes(await self._network.read(READ_SIZE, timeout=None))
                return data, bool(data)
            async for piece in self._pieces:
                self._member.last_byte_at = self._clock.time()
                if piece:
                    return piece, True
        except (self._httpx.TransportError, self._library.httpcore.NetworkError, OSError) as error:
            kind = SilentResponse if isinstance(error, self._httpx.TimeoutException) else TruncatedResponse
            raise kind(words_of(error)) from error
        return b"", False

    async def write(self, data: bytes) -> None:
        assert self._network, "the member has not switched protocols"
        try:
            await self._network.write(data, timeout=self._idle)
        except (self._library.httpcore.NetworkError, self._library.httpcore.TimeoutException, OSError) as error:
            raise TruncatedResponse(words_of(error)) from error

    async def write_eof(self) -> None:
        """Do nothing: httpcore's streams cannot be closed one way. The end of the response closes both."""

    async def close(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream:
            if self._first:
                self._first.cancel()
                await asyncio.wait([self._first])
            try:
                await self._response.aclose()
            finally:
                upstream.release(self._member)


def _traced(request: UpstreamRequest) -> dict[str, Any]:
    """Return the extension of httpcore that shows when a connection is made, if the request asks for that."""
    on_connect = request.on_connect
    if on_connect is None:
        return {}

    async def trace(event: str, details: object) -> None:
        if event.startswith("connection.connect_tcp."):
            on_connect(event.endswith(".started"))

    return {"trace": trace}


class _RequestStream:
    # A member's library makes an ``AsyncByteStream`` of it.

    def __init__(self, request: UpstreamRequest, body: Body) -> None:
        self._request = request
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._request.expects and self._request.on_interim:
            # httpcore sends the whole body before it reads anything, such as the member's own 100 (Continue).
            self._request.on_interim(100, [])
        while piece := await self._body.read():
            yield piece


def _member(transport: Any, address: Address) -> _Member:
    """Return a member with its transport. Raises TypeError where that is none."""
    if not hasattr(transport, "handle_async_request"):
        words = f"make_transport has to return an AsyncBaseTransport of {EITHER}"
        raise TypeError(f"{words}, not an object of type {type(transport).__qualname__}")
    library = library_of(transport) or any_library()
    url = library.httpx.URL(scheme="http", host=address.host, port=address.port, path="/")
    return _Member(transport, library, url)


def _with_target(member: _Member, target: bytes) -> Any:
    """Return the URL for what looks at it, such as mocks; on the wire goes the target as it is.

    A target without a place in a URL of httpx is left out: ``*``, a proxy's absolute form, raw bytes, more than 64 KiB.
    """
    if target == b"/":
        return member.url
    try:
        return member.url.copy_with(raw_path=target)
    except (member.library.httpx.InvalidURL, ValueError):
        return member.url


def _default_transport() -> Callable[[], Transport]:
    httpx = any_library().httpx
    # One TLS context for all: making one takes milliseconds, and plain HTTP needs none.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
    return partial(
        httpx.AsyncHTTPTransport,
        verify=context,
        limits=limits,
        trust_env=False,
        socket_options=tcp.keep_alive_options(),
    )
