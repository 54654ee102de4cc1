"""The doors of the front end, by name, and how far a client gets at each before it speaks HTTP."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.types import UnixSocket
from tests.support.proxy_header import LOOPBACK, V1
from tests.support.tls import issue, trusting
from tests.support.wire import Connection, Member, Running, balance

# The beginning of a TLS handshake, which never goes on.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)


@dataclass(frozen=True)
class Door:
    """A door. ``stalls``: what a client has sent when it stays where HTTP has not begun."""

    name: str
    stalls: tuple[bytes, ...] = ()
    tls: str = ""
    first: bytes = b""
    unix: bool = False

    def settings(self, folder: Path) -> dict[str, Any]:
        """The settings that open it."""
        found: dict[str, Any] = issue(folder) if self.tls else {}
        if self.tls == "h2":
            found["http2"] = True
        if self.first:
            found |= {"proxy_protocol": True, "trusted_proxies": LOOPBACK}
        if self.unix:
            found["unix"] = UnixSocket(str(folder / "balancer.sock"))
        return found

    @asynccontextmanager
    async def open(self, folder: Path, member: Member, **settings: Any) -> AsyncIterator[Running]:
        """A balancer with this door."""
        async with balance(member, **self.settings(folder) | settings) as running:
            yield running

    def client(self, running: Running) -> Any:
        """A client that has come to HTTP."""
        context: ssl.SSLContext | None = trusting(self.tls) if self.tls else None
        return running.client(context, self.first)

    @asynccontextmanager
    async def stalled(self, running: Running, sent: bytes = b"") -> AsyncIterator[Connection]:
        """A client that has connected, and sent no more than these bytes."""
        async with running.client() as client:
            await client.send(sent)
            yield client


DOORS = {
    it.name: it
    for it in (
        Door("plain"),
        Door("Unix socket", unix=True),
        Door("PROXY", (b"", V1[:9]), first=V1),
        Door("PROXY on a Unix socket", (b"", V1[:9]), first=V1, unix=True),
        Door("TLS", (b"", HELLO), "http/1.1"),
        Door("HTTP/2", (b"", HELLO), "h2"),
        Door("PROXY and TLS", (b"", V1, V1 + HELLO), "http/1.1", V1),
    )
}
STALLS = [(door, sent) for door in DOORS.values() for sent in door.stalls]
