"""The data listener: one listening socket, its connections, and their end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import uvicorn

from balancer.config.settings import Settings
from balancer.frontend.acceptor import Acceptor, PlainConnection, TlsConnection, drop_finished
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.http1_connection import Http1Connection
from balancer.frontend.tls import Certificate
from balancer.http.request_headers import RequestHeaders
from balancer.loop_time import Limit
from balancer.types import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Connections that the kernel queues until they are accepted.
BACKLOG = 2048
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
        self._server: asyncio.Server | None = None
        self._acceptor: Acceptor | None = None
        self._trusts = RequestHeaders(settings.trusted_proxies).trusts

    async def start(self) -> None:
        """Begin to accept."""
        if self._certificate or self._settings.proxy_protocol:
            self._acceptor = Acceptor(
                self._sock,
                self._protocols(),
                self._settings,
                self._certificate,
                self._has_proxy_header,
                make_plain=partial(PlainConnection, self._registry),
                reached=self._registry.limits,
            )
        else:
            loop = asyncio.get_running_loop()
            make = partial(Http1Connection, self._registry)
            self._server = await loop.create_server(make, sock=self._sock, backlog=BACKLOG)

    def _protocols(self) -> Callable[[bool], asyncio.Protocol]:
        """Return a function that makes a connection; its argument: whether ALPN has found HTTP/2."""
        http1 = partial(TlsConnection if self._certificate else Http1Connection, self._registry)
        if not self._settings.http2:
            return lambda http2: http1()
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
        return lambda is_http2: http2() if is_http2 else http1()

    def _has_proxy_header(self, peer: str) -> bool:
        """Whether a peer's connections begin with a PROXY header. A Unix socket has its file mode for that."""
        return self._settings.proxy_protocol and (not peer or self._trusts(peer))

    async def close(self) -> None:
        """Accept no more clients, and have every connection finish its requests."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor:
            await acceptor.close()
        if self._server:
            self._server.close()
        self._registry.shut_down_connections()

    async def wait_closed(self, within: float) -> None:
        """Wait until the last connection has ended; abort those that have not after ``within`` seconds."""
        try:
            async with Limit(within):
                if self._certificate:
                    await self._wait_for_tls()
                await self._registry.wait_empty()
        except TimeoutError:
            for connection in list(self._registry.connections):
                connection.abort()

    async def _wait_for_tls(self) -> None:
        """Wait as ``wait_empty`` does, and drop clients that have got everything and do not end TLS."""
        while self._registry.connections:
            drop_finished(self._registry.connections)
            await asyncio.sleep(FINISHED_SECONDS)
