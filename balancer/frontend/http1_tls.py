"""HTTP/1.1 at a port of TLS: for clients that speak TLS, and for those that do not."""

from __future__ import annotations

import asyncio

from balancer.errors import Refusal
from balancer.frontend.http1_connection import Http1Connection
from balancer.frontend.http1_exchange import Http1Exchange
from balancer.http.request import Request
from balancer.http.validation import malformed


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
