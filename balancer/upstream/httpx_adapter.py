"""An upstream over any ``httpx.AsyncBaseTransport``: httpx's own, a mock, HTTP/2, a user's.

The transport is called directly. An ``httpx.AsyncClient`` would add headers, keep one cookie jar
for all users, follow redirects, decode bodies and rewrite URLs. Each member has a transport of its
own, so that forgetting a member closes its connections and no request waits for a pool slot of
another. Its pool is unbounded, because httpcore 1.0.9 loses slots when a request is cancelled
while it waits for one (encode/httpcore issue 1093).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import httpcore
import httpx

from balancer.errors import (
    LOCAL_RESOURCE_ERRNOS,
    ConnectFailed,
    ConnectionDied,
    ProtocolViolation,
    Refusal,
    ResponseTimeout,
    SilentResponse,
    TruncatedResponse,
    UpstreamError,
)
from balancer.http.headers import Headers, announces_close, response_headers
from balancer.http.request import Body
from balancer.loop_time import Limit, Timer, loop_time
from balancer.types import Address
from balancer.upstream import tcp
from balancer.upstream.base import Timeouts, Upstream, UpstreamRequest, UpstreamResponse

# Below the 5 s after which a uvicorn member closes an idle connection.
KEEPALIVE_SECONDS = 4.0

# Bytes of one read of a protocol that a member switched to.
READ_SIZE = 32 * 1024

# Characters kept of an exception's text: it may quote all that the member has sent.
WORDS_MAX = 200

# h11's words for an end of file where a response head, or a body, was due.
_CLOSED_SILENTLY = ("Server disconnected", "peer closed connection")


class HttpxUpstream(Upstream):
    """Sends requests through transports of httpx, such as ``httpx.AsyncHTTPTransport(http2=True)``.

    Args:
        timeouts: Limits in seconds.
        make_transport: Function that returns a transport, called once for each member. Default: plain HTTP/1.1.
    """

    def __init__(
        self, timeouts: Timeouts, make_transport: Callable[[], httpx.AsyncBaseTransport] | None = None
    ) -> None:
        self._timeouts = timeouts
        self._make_transport = make_transport or _default_transport()
        self._members: dict[Address, _Member] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def send_nowait(self, *request: object) -> None:
        """Return None: a transport does not show whether it would have to wait."""

    async def send(self, address: Address, request: UpstreamRequest) -> _Response:
        member = self._members.get(address)
        if member is None:
            member = self._members[address] = _Member(self._make_transport(), _url(address))
        # httpcore reads "read" anew for the head and for the body: see _Response.
        limits = {
            "connect": self._timeouts.connect,
            "pool": self._timeouts.connect,
            "write": self._timeouts.response,
            "read": self._timeouts.response,
        }
        outgoing = httpx.Request(
            request.method,
            member.url,
            headers=request.headers,
            stream=_RequestStream(request, request.body) if request.body else httpx.ByteStream(b""),
            extensions={"target": request.target, "timeout": limits},
        )
        member.in_use += 1
        try:
            with _faults():
                response = await self._head(member, outgoing, request.repeatable)
        except BaseException:
            self._release(member)
            raise
        limits["read"] = self._timeouts.idle
        answer = _Response(response, self._timeouts.idle, member, self._release)
        if response.status_code == 101 and not (request.upgrade and answer.switched):
            await answer.close()
            raise ProtocolViolation("the member switched protocols unasked", sent=True)
        return answer

    async def _head(self, member: _Member, outgoing: httpx.Request, repeatable: bool) -> httpx.Response:
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
        await asyncio.gather(*self._closing)

    def _release(self, member: _Member) -> None:
        member.in_use -= 1
        self._close_if_unused(member)

    def _close_if_unused(self, member: _Member) -> None:
        if member.forgotten and not member.in_use:
            task = asyncio.get_running_loop().create_task(member.transport.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


@dataclass(slots=True)
class _Member:
    """A member's transport and how many exchanges use it."""

    transport: httpx.AsyncBaseTransport
    url: httpx.URL
    in_use: int = 0
    last_byte_at: float = -inf
    forgotten: bool = False


class _Response(UpstreamResponse):
    def __init__(
        self, response: httpx.Response, idle: float, member: _Member, release: Callable[[_Member], None]
    ) -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._clock = loop_time()
        self._member = member
        self.status = response.status_code
        fields = [(name.lower(), value) for name, value in response.headers.raw]
        self.headers = response_headers(fields)
        self.closes = announces_close(fields)
        self.upgrade = next((value for name, value in fields if name == b"upgrade"), b"")
        # httpcore reads trailers and keeps them to itself.
        self.trailers: Headers = []
        self._response = response
        self._release: Callable[[_Member], None] | None = release
        assert isinstance(response.stream, httpx.AsyncByteStream)
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
                if isinstance(error.__cause__, httpx.TransportError):
                    raise _fault(error.__cause__) from error
                raise ConnectionDied(str(error), sent=True) from error
            raise

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
        except (httpx.TransportError, httpcore.NetworkError, OSError) as error:
            kind = SilentResponse if isinstance(error, httpx.TimeoutException) else TruncatedResponse
            raise kind(_words(error)) from error
        return b"", False

    async def write(self, data: bytes) -> None:
        assert self._network, "the member has not switched protocols"
        try:
            await self._network.write(data, timeout=self._idle)
        except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
            raise TruncatedResponse(_words(error)) from error

    async def write_eof(self) -> None:
        """Do nothing: httpcore's streams cannot be closed one way. The end of the response closes both."""

    async def close(self) -> None:
        release, self._release = self._release, None
        if release:
            if self._first:
                self._first.cancel()
                await asyncio.wait([self._first])
            try:
                await self._response.aclose()
            finally:
                release(self._member)


class _RequestStream(httpx.AsyncByteStream):
    def __init__(self, request: UpstreamRequest, body: Body) -> None:
        self._request = request
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._request.expects and self._request.on_interim:
            # httpcore sends the whole body before it reads anything, such as the member's own 100 (Continue).
            self._request.on_interim(100, [])
        while piece := await self._body.read():
            yield piece


@contextmanager
def _faults() -> Iterator[None]:
    """Turn httpx's exceptions into the balancer's."""
    try:
        yield
    except httpx.LocalProtocolError as error:
        raise Refusal(400, "malformed_request", f"the request cannot be passed on: {error}") from error
    except httpx.TransportError as error:
        number = _errno(error)
        if number in LOCAL_RESOURCE_ERRNOS:
            words = f"the balancer cannot open another connection: {os.strerror(number)}"
            raise Refusal(503, "overloaded", words, retry_after=1) from error
        raise _fault(error) from error


def _errno(error: BaseException | None) -> int:
    """Return the error number of the operating system at the bottom of an exception, or 0."""
    number = 0
    seen = set[int]()
    while error and id(error) not in seen:  # One that was raised twice may be its own context's cause.
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            number = error.errno
        error = error.__cause__ or error.__context__
    return number


def _fault(error: httpx.TransportError) -> UpstreamError:
    text = _words(error)
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return ConnectFailed(text, refused="refused" in text.lower())
        case httpx.TimeoutException():
            return ResponseTimeout(text, sent=True)
        case httpx.RemoteProtocolError() if not text.startswith(_CLOSED_SILENTLY):
            return ProtocolViolation(text, sent=True)
    return ConnectionDied(text, sent=True)


def _words(error: Exception) -> str:
    return str(error)[:WORDS_MAX] or type(error).__name__


def _url(address: Address) -> httpx.URL:
    return httpx.URL(scheme="http", host=address.host, port=address.port, path="/")


def _default_transport() -> Callable[[], httpx.AsyncBaseTransport]:
    # One TLS context for all: making one takes milliseconds, and plain HTTP needs none.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
    return lambda: httpx.AsyncHTTPTransport(
        verify=context, limits=limits, trust_env=False, socket_options=tcp.keep_alive_options()
    )
