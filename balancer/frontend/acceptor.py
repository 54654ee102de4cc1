"""Accepts connections at every door, and takes in what comes before HTTP: a PROXY header, a TLS handshake, or both.

Each is handed to the protocol that its client speaks. A client that speaks HTTP where TLS is due is refused in HTTP.

Rules:
* A connection is counted from accept on; ``balancer.frontend.places`` has the limits.
* PROXY header, handshake and the first head together may take HEADER_TIMEOUT.
* A turn of the event loop begins few handshakes, since each takes as long as many requests. What waits for its turn
  does so in the kernel.

asyncio's listener has no PROXY headers, no time limit for TLS and no word for the log when descriptors run out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from balancer.errors import LOCAL_RESOURCE_ERRNOS
from balancer.frontend.client_connection import Phase, timeout, unread_timeout
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.kernel_figures import CLIENT_SOCKET
from balancer.frontend.places import Place
from balancer.frontend.tls import HTTP2, Certificate
from balancer.frontend.tunnel import HIGH_WATER
from balancer.http.headers import plain_address
from balancer.http.proxy_protocol import FIXED, REST_MAX, Malformed, parse
from balancer.http.validation import TOKEN
from balancer.loop_time import Limit, loop_time

log = logging.getLogger(__name__)

# Seconds of a timer that is not wanted.
_NEVER = 1e6
# Seconds without accepting after the process has run out of files.
PAUSE_SECONDS = 1.0
# Sockets accepted in one turn of the event loop, and TLS handshakes begun in one: a full one takes about 1 ms.
ACCEPTS_PER_TURN = 100
HANDSHAKES_PER_TURN = 4

# Makes a protocol for a new connection; its arguments: whether the client speaks HTTP/2, and its place.
Make = Callable[[bool, Place], asyncio.Protocol]


class Acceptor:
    """Accepts on ``sock`` until it is closed.

    ``registry``: counts the connections, and has the settings. Once the last byte has been sent, a client of TLS has
    ``stream_idle_timeout`` to take it and to end TLS from its side. ``certificate``: TLS is spoken.
    ``is_proxy``: called with a peer's IP address ("" on a Unix socket); returns whether clients without number come
    from there. Where PROXY headers are on, its connections must begin with one. Those of other peers must not, and are
    served as their own. ``make_plain``: makes a protocol for a client that speaks HTTP where TLS is due.
    """

    def __init__(
        self,
        sock: socket.socket,
        registry: ClientRegistry,
        make: Make,
        certificate: Certificate | None = None,
        *,
        is_proxy: Callable[[str], bool],
        make_plain: Callable[[Place], asyncio.Protocol],
    ) -> None:
        self._sock = sock
        self._make = make
        self._settings = registry.settings
        self._places = registry.places
        self._reached = registry.limits.reached
        self._certificate = certificate
        self._is_proxy = is_proxy
        self._make_plain = make_plain
        self._loop = asyncio.get_running_loop()
        self._clock = loop_time()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        # Sockets to accept in the next turn: twice as many as in the last, unless that found no more.
        self._batch = 1
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)

    async def close(self) -> None:
        """Stop accepting, and drop connections that have not come to a protocol."""
        if self._resume:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._places.drop_handshakes()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        handshakes = 0
        for _ in range(self._batch):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                self._batch = 1
                return
            except OSError as error:
                if error.errno not in LOCAL_RESOURCE_ERRNOS:
                    raise
                log.error("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._sock)
                self._resume = self._loop.call_later(PAUSE_SECONDS, self._loop.add_reader, self._sock, self._accept)
                return
            if self._begin(sock, peer[0] if isinstance(peer, tuple) else "") and self._certificate:
                handshakes += 1
                if handshakes == HANDSHAKES_PER_TURN:
                    return
        self._batch = min(2 * self._batch, ACCEPTS_PER_TURN)

    def _begin(self, sock: socket.socket, peer: str) -> bool:
        """Take a connection in. Returns False if it is closed, because there are too many."""
        client = plain_address(peer)
        is_proxied = self._settings.proxy_protocol and self._is_proxy(peer)
        is_handshake = is_proxied or self._certificate is not None
        now = self._clock.time()
        place = self._places.take(client, now, is_handshake)
        if place and not is_proxied:
            for_many = is_handshake and self._is_proxy(peer)
            place = place if self._places.name(place, client, now, for_many) else None
        if place is None:
            sock.close()
            return False
        if not is_handshake:
            self._connect_plain(sock, place)
            return True
        sock.setblocking(False)
        task = self._loop.create_task(self._arrive(sock, client, place, is_proxied))
        place.drop = task.cancel
        self._tasks.add(task)
        # A task that is cancelled before it has begun does nothing, and closes nothing.
        task.add_done_callback(partial(self._settle, sock, place))
        return True

    def _settle(self, sock: socket.socket, place: Place, task: asyncio.Task[None]) -> None:
        """Close a connection that has not come to its protocol."""
        self._tasks.discard(task)
        if place.is_arriving:
            place.free()
            sock.close()

    def _connect_plain(self, sock: socket.socket, place: Place) -> None:
        """Hand a connection over to its protocol without a task, which would cost as much as all else here."""
        made: Any = self._loop.connect_accepted_socket(partial(self._make, False, place), sock)
        try:
            made.send(None).add_done_callback(partial(_finish, made))
        except OSError as error:
            log.debug("a connection came to nothing: %s", error)
            place.free()
            sock.close()

    async def _connect(self, sock: socket.socket, place: Place, make: Make, source: str = "", **tls: Any) -> None:
        await self._loop.connect_accepted_socket(lambda: _ProtocolSelector(make, place, source), sock, **tls)

    async def _arrive(self, sock: socket.socket, peer: str, place: Place, is_proxied: bool) -> None:
        step, source, within = "PROXY header", "", timeout(Phase.HANDSHAKE, self._settings)
        try:
            async with Limit(within):
                if is_proxied:
                    source = await self._read_source(sock)
                    # Without a source, as in a health check, the proxy speaks for itself.
                    if not self._places.name(place, source or peer, self._clock.time(), not source):
                        return
                step = "TLS handshake"
                tls = await self._prepare_tls(sock)
                is_misdirected = self._certificate is not None and not tls
                make: Make = (lambda http2, place: self._make_plain(place)) if is_misdirected else self._make
                await self._connect(sock, place, make, source, **tls)
        except Malformed as error:
            self._reached("proxy_header", peer, f"begins with no sound PROXY header, and is closed: {error}")
        except TimeoutError:
            words = f"has not ended its {step} after {within:g} s; its connection is closed"
            self._reached("handshake_timeout", source or peer, words)
        except ssl.SSLError as error:
            words = f"fails in its TLS handshake, and is closed: {error.reason or error}"
            self._reached("handshake_failed", source or peer, words)
        except OSError as error:
            # There is no request yet that could be answered.
            log.debug("a connection from %s came to nothing: %s", source or peer or "a Unix socket", error)

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
            "ssl_shutdown_timeout": unread_timeout(self._settings),
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


def _finish(made: Any, waiter: asyncio.Future[None]) -> None:
    """Let a coroutine end that waited for this alone."""
    with suppress(StopIteration, OSError):
        made.send(None)


class _ProtocolSelector(asyncio.Protocol):
    """Stands in until the protocol of a connection is known, and hands over to it."""

    def __init__(self, make: Make, place: Place, source: str) -> None:
        self._make = make
        self._place = place
        self._source = source

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        if tls:
            # By default 512 KiB may wait for a client that does not read, eight times what may without TLS.
            transport.set_write_buffer_limits(high=HIGH_WATER)
        protocol = self._make(tls is not None and tls.selected_alpn_protocol() == HTTP2, self._place)
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
        if name == "socket":
            return default  # uvicorn would read the peer's address from it.
        return self._transport.get_extra_info("socket" if name == CLIENT_SOCKET else name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
