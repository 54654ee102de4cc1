"""Accepts connections that begin with something before HTTP: a PROXY header, a TLS handshake, or both in this order.

A client that speaks HTTP where TLS is due is refused in HTTP.

asyncio's listener has no PROXY headers and no time limit for TLS, so connections are accepted here. Each
is handed to the protocol that its client speaks.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import termios
from collections.abc import Callable, Iterable
from typing import Any, cast

from balancer.config.settings import Settings
from balancer.errors import LOCAL_RESOURCE_ERRNOS, Refusal
from balancer.frontend.client_connection import Phase, timeout, unread_timeout
from balancer.frontend.http1_connection import Http1Connection
from balancer.frontend.http1_streaming import Http1Exchange
from balancer.frontend.tls import HTTP2, Certificate
from balancer.frontend.tunnel import HIGH_WATER
from balancer.http.proxy_protocol import FIXED, REST_MAX, Malformed, parse
from balancer.http.request import Request
from balancer.http.validation import TOKEN, malformed
from balancer.loop_time import Limit
from balancer.telemetry.client_limits import ClientLimits

log = logging.getLogger(__name__)

# Seconds of a timer that is not wanted.
_NEVER = 1e6
# Seconds without accepting after the process has run out of files.
PAUSE_SECONDS = 1.0
# Sockets accepted in one turn of the event loop.
ACCEPTS_PER_TURN = 100

# Makes a protocol for a new connection; its argument: whether the client speaks HTTP/2.
Make = Callable[[bool], asyncio.Protocol]


class Acceptor:
    """Accepts on ``sock`` until it is closed.

    ``limits``: a PROXY header and a TLS handshake have ``header_timeout`` each. Once the last byte has been sent, a
    client has ``stream_idle_timeout`` to take it and to end TLS from its side. ``certificate``: TLS is spoken.
    ``has_proxy_header``: called with a peer's IP address ("" on a Unix socket); returns whether its connections must
    begin with a PROXY header. Those of other peers must not, and are served as their own. ``make_plain``: makes a
    protocol for a client that speaks HTTP where TLS is due. ``reached``: counts the bounds that clients reach.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Make,
        limits: Settings,
        certificate: Certificate | None = None,
        has_proxy_header: Callable[[str], bool] = lambda peer: False,
        *,
        make_plain: Callable[[], asyncio.Protocol],
        reached: ClientLimits,
    ) -> None:
        self._sock = sock
        self._make = make
        self._limits = limits
        self._certificate = certificate
        self._has_proxy_header = has_proxy_header
        self._make_plain = make_plain
        self._reached = reached
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)

    async def close(self) -> None:
        """Stop accepting, and drop connections that have not come to a protocol."""
        if self._resume:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for task in self._arriving:
            task.cancel()
        await asyncio.gather(*self._arriving, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in LOCAL_RESOURCE_ERRNOS:
                    raise
                log.error("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._sock)
                self._resume = self._loop.call_later(PAUSE_SECONDS, self._loop.add_reader, self._sock, self._accept)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._arrive(sock, peer[0] if isinstance(peer, tuple) else ""))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _arrive(self, sock: socket.socket, peer: str) -> None:
        who = peer or "a Unix socket"
        try:
            source = ""
            if self._has_proxy_header(peer):
                async with Limit(timeout(Phase.HANDSHAKE, self._limits)):
                    source = await self._read_source(sock)
            async with Limit(timeout(Phase.HANDSHAKE, self._limits)):
                tls = await self._prepare_tls(sock)
                is_misdirected = self._certificate is not None and not tls
                make: Make = (lambda http2: self._make_plain()) if is_misdirected else self._make
                await self._loop.connect_accepted_socket(lambda: _ProtocolSelector(make, source), sock, **tls)
        except Malformed as error:
            self._reached.reached("proxy_header", peer, f"begins with no sound PROXY header, and is closed: {error}")
            sock.close()
        except (TimeoutError, OSError) as error:
            # There is no request yet that could be answered.
            log.debug("a connection from %s came to nothing: %s", who, error)
            sock.close()
        except BaseException:
            sock.close()
            raise

    async def _prepare_tls(self, sock: socket.socket) -> dict[str, Any]:
        """Return asyncio's arguments for a handshake; none without a certificate, or where the client begins HTTP."""
        if not self._certificate:
            return {}
        await self._wait_readable(sock)
        first = sock.recv(1, socket.MSG_PEEK)
        if first in (b"\r", b"\n") or TOKEN.match(first):
            return {}  # A request begins with a method or an empty line; TLS with another byte (0x16).
        return {
            "ssl": self._certificate.context,
            "ssl_handshake_timeout": _NEVER,  # Its own timer goes on while the loop does not.
            "ssl_shutdown_timeout": unread_timeout(self._limits),
        }

    async def _read_source(self, sock: socket.socket) -> str:
        """Read a PROXY header, and no byte behind it: that belongs to the TLS handshake, or to HTTP."""
        data = b""
        while True:
            await self._wait_readable(sock)
            peeked = sock.recv(FIXED + REST_MAX, socket.MSG_PEEK)
            if not peeked:
                raise ConnectionAbortedError("it ends before its header")
            header = parse(data + peeked)
            # Bytes of a header are taken as they come, or the socket would be readable all the time.
            data += sock.recv(header.size - len(data) if header else len(peeked))
            if header:
                return header.source

    async def _wait_readable(self, sock: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(sock, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(sock)


def drop_finished(connections: Iterable[Any]) -> None:
    """Drop connections that only wait for the client to end TLS from its side."""
    for connection in list(connections):
        transport = connection.transport
        if transport.is_closing() and not transport.get_write_buffer_size() and _is_acknowledged(transport):
            transport.abort()


def _is_acknowledged(transport: asyncio.Transport) -> bool:
    """Whether the peer's kernel has acknowledged every byte; True where the kernel does not report it (not Linux)."""
    unread = bytearray(4)
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unread)
    except (AttributeError, OSError):
        return True
    return not any(unread)


class _ProtocolSelector(asyncio.Protocol):
    """Stands in until the protocol of a connection is known, and hands over to it."""

    def __init__(self, make: Make, source: str) -> None:
        self._make = make
        self._source = source

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        if tls:
            # By default 512 KiB may wait for a client that does not read, eight times what may without TLS.
            transport.set_write_buffer_limits(high=HIGH_WATER)
        protocol = self._make(tls is not None and tls.selected_alpn_protocol() == HTTP2)
        transport.set_protocol(protocol)
        proxied = cast(asyncio.Transport, _ProxiedTransport(transport, self._source)) if self._source else transport
        protocol.connection_made(proxied)


class _ProxiedTransport:
    """A transport whose peer is the one that a PROXY header names."""

    __slots__ = ("_source", "_transport")

    def __init__(self, transport: asyncio.Transport, source: str) -> None:
        self._transport = transport
        self._source = source

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._source, 0
        # Given a socket, uvicorn reads the peer's address from it.
        return default if name == "socket" else self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TlsConnection(Http1Connection):
    """HTTP/1.1 over TLS, where a client that closes its side has left.

    asyncio has no half-closed TLS connection: once the client has closed its side, nothing reaches it any more.
    """

    __slots__ = ()

    def eof_received(self) -> bool:
        super().eof_received()
        return False

    def on_tls_handshake(self) -> None:
        """Do nothing: the client has found the right port, and has two layers of TLS."""


class PlainConnection(Http1Connection):
    """HTTP without TLS on a port of TLS: requests are refused, in words that the client can read."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.limit_reached("wrong_protocol", "speaks HTTP without TLS to the port of TLS; it gets a 400")

    def add_exchange(self, request: Request, version: str, closes: bool) -> Http1Exchange:
        raise _speaks_tls()

    def reject(self, refusal: Refusal) -> None:
        """Refuse what the client sends, whatever it is; but a connection too many is refused as one."""
        super().reject(refusal if refusal.status == 503 else _speaks_tls())


def _speaks_tls() -> Refusal:
    return malformed("this port speaks TLS: use https://")
