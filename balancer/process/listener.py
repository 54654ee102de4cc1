"""One listening socket and the server behind it."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import cast

import uvicorn

from balancer.asgi.websocket import MAX_MESSAGE
from balancer.config.settings import Settings
from balancer.frontend.acceptor import Acceptor, TlsConnection
from balancer.frontend.registry import ClientRegistry
from balancer.frontend.tls import Certificate
from balancer.http.headers import RequestHeaders
from balancer.types import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Listener(uvicorn.Server):
    """A uvicorn server among others in this process: signals are not its business. ``accepting``: it has begun to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()
        self._stopped = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def main_loop(self) -> None:
        """Does not look ten times a second whether it is to stop, as uvicorn's does, but is told."""
        await self.on_tick(0)
        await self._stopped.wait()

    def stop(self) -> None:
        """Accept no connection any more, and end when those that are open have."""
        self.should_exit = True
        self._stopped.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_listener(app: App, keepalive: float, drain_limit: int, clients: ClientRegistry | None = None) -> Listener:
    """A server for one socket; ``keepalive`` and ``drain_limit`` (for its shutdown) are in seconds.

    ``clients``: our own front end in place of uvicorn's. What is not plain HTTP goes to ``app`` all the same.
    """
    return Listener(
        uvicorn.Config(
            app,
            interface="asgi3",
            # uvicorn calls it as it would call a class.
            http=cast("type[asyncio.Protocol]", clients) if clients else "httptools",
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE,
            # What members send is not compressed either: messages cross as they are.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(keepalive),
            timeout_graceful_shutdown=drain_limit,
        )
    )


def accept(
    settings: Settings, sock: socket.socket, listener: Listener, certificate: Certificate | None
) -> Acceptor | None:
    """What accepts in place of uvicorn, if a connection of ``listener`` begins with anything before HTTP."""
    if not certificate and not settings.proxy_protocol:
        return None
    config, state = listener.config, listener.server_state
    config.load()
    clients = cast(ClientRegistry, config.http)
    over_tls: Callable[..., asyncio.Protocol] = TlsConnection
    if settings.http2:
        from balancer.frontend.http2_connection import Http2Connection

        over_http2: Callable[..., asyncio.Protocol] = Http2Connection

    def make(http2: bool) -> asyncio.Protocol:
        if http2:
            return over_http2(clients, config, state, {})
        return over_tls(clients, state) if certificate else clients(config, state, {})

    trusts = RequestHeaders(settings.trusted_proxies).trusts

    def announced(peer: str) -> bool:
        # The file's mode decides which clients reach a Unix socket.
        return settings.proxy_protocol and (not peer or trusts(peer))

    return Acceptor(sock, make, settings, certificate, announced)
