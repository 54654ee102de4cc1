"""Types that many packages share: addresses, the clock, ASGI's callables. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

# Returns the time in seconds, from any moment on; tests have one that stands still.
Clock = Callable[[], float]

# ASGI (version 3).
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Address(NamedTuple):
    """An address to connect to, or to listen on.

    Attributes:
        host: An IP address or a host name.
        port: The port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixSocket(NamedTuple):
    """A path in the file system, to listen on for clients of this machine only."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"
