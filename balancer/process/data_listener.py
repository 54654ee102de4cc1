"""The data listener: one listening socket, its connections, and their end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import uvicorn

from balancer.config.settings import Settings
from balancer.frontend.acceptor import Acceptor
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.http1_connection import Http1Connection
from balancer.frontend.http1_tls import PlainConnection, TlsConnection
from balancer.frontend.kernel_figures import drop_finished
from balancer.frontend.places import Place
from balancer.frontend.tls import Certificate
from balancer.http.request_headers import RequestHeaders
from balancer.loop_time import Limit
from balancer.types import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Seconds between two checks, at the end, for TLS clients that have got everything.
FINISHED_SECONDS = 0.2


class DataListener:
    """Accepts clients on ``sock``.

    ``app``: the ASGI application that requests over HTTP/2 go to; those over HTTP/1.1 go to the dispatcher.
    ``certificate``: for TLS.
    """

    def __init__(
        self,
        settings: Settings,
        sock: socket.socket,
        registry: ClientRegistry,
        app: App,
        certificate: Certificate | None = None,
    ) -> None:
        self._settings = settings
        self._sock = sock
        self._registry = registry
        self._app = app
        self._certificate = certificate
        self._acceptor: Acceptor | None = None
        self._trusts = RequestHeaders(settings.trusted_proxies).trusts

    async def start(self) -> None:
        """Begin to accept."""
        self._acceptor = Acceptor(
            self._sock,
            self._registry,
            self._protocols(),
            self._certificate,
            is_proxy=self._is_proxy,
            make_plain=partial(PlainConnection, self._registry),
        )

    def _protocols(self) -> Callable[[bool, Place], asyncio.Protocol]:
        """Return a function that makes a connection; its arguments: whether ALPN has found HTTP/2, and its place."""
        http1 = partial(TlsConnection if self._certificate else Http1Connection, self._registry)
        if not self._settings.http2:
            return lambda http2, place: http1(place)
        from balancer.frontend.http2_connection import Http2Connection

        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            ws="none",
        )
        config.load()
        http2 = partial(Http2Connection, self._registry, config)
        return lambda is_http2, place: http2(place) if is_http2 else http1(place)

    def _is_proxy(self, peer: str) -> bool:
        """Whether a peer is trusted to speak for clients. A Unix socket has its file mode for that."""
        return not peer or self._trusts(peer)

    async def close(self) -> None:
        """Accept no more clients, and have every connection finish its requests."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor:
            await acceptor.close()
        self._registry.shut_down_connections()

    async def wait_closed(self, within: float) -> None:
        """Wait until the last connection has ended; abort those that have not after ``within`` seconds."""
        try:
            async with Limit(within):
                if self._certificate:
                    await self._wait_for_tls()
                await wait_empty(self._registry)
        except TimeoutError:
            for connection in list(self._registry.connections):
                connection.abort()

    async def _wait_for_tls(self) -> None:
        """Wait as ``wait_empty`` does, and drop clients that have got everything and do not end TLS."""
        while self._registry.connections:
            drop_finished(self._registry.connections)
            await asyncio.sleep(FINISHED_SECONDS)


async def wait_empty(registry: ClientRegistry) -> None:
    """Wait until the last connection of a registry has ended."""
    while registry.connections:
        registry.emptied.clear()
        await registry.emptied.wait()
