"""What the kernel knows of a connection: bytes that its peer has acknowledged, and bytes on the way to it."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Any

# The extra info of a transport that hides its socket.
CLIENT_SOCKET = "client_socket"
# Place and size of ``tcpi_bytes_acked`` in Linux's struct tcp_info (4.1 and newer).
_ACKED_AT, _ACKED_SIZE = 120, 8


def acknowledged(transport: asyncio.BaseTransport) -> int | None:
    """Return the bytes that the peer's kernel has acknowledged in all, with those of TLS.

    None where the kernel does not say: of a Unix socket, on other systems than Linux, and in sandboxes that leave
    the figure out.
    """
    try:
        info = _socket(transport).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + _ACKED_SIZE)
    except (AttributeError, OSError):
        return None
    return int.from_bytes(info[_ACKED_AT:], sys.byteorder) or None


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Return the bytes that the kernel holds for the peer; 0 where it does not say (not Linux)."""
    held = bytearray(4)
    try:
        fcntl.ioctl(_socket(transport).fileno(), termios.TIOCOUTQ, held)
    except (AttributeError, OSError):
        return 0
    return int.from_bytes(held, sys.byteorder)


def _socket(transport: asyncio.BaseTransport) -> Any:
    return transport.get_extra_info(CLIENT_SOCKET) or transport.get_extra_info("socket")
