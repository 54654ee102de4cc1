"""What the kernel knows of a connection: bytes that its peer has acknowledged or sent, and bytes on the way to it.

The transports of asyncio and uvloop count what waits in the process alone. Over TLS, both read on after ``close`` until
the client ends TLS from its side, and drop what comes.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

# The extra info of a transport that hides its socket.
CLIENT_SOCKET = "client_socket"
# Places of tcpi_bytes_acked and tcpi_bytes_received in Linux's struct tcp_info (4.1 and newer).
_ACKED, _RECEIVED = slice(120, 128), slice(128, 136)
# The kernel takes twice the least that it allows, which is 2 KiB on Linux.
_LEAST = 1


def acknowledged(transport: asyncio.BaseTransport) -> int | None:
    """Return the bytes that the peer's kernel has acknowledged in all, with those of TLS.

    None where the kernel does not say: of a Unix socket, on other systems than Linux, and in sandboxes that leave
    the figure out.
    """
    return _figure(transport, _ACKED) or None


def received(transport: asyncio.BaseTransport) -> int:
    """Return the bytes that have come over TCP, read or not; 0 where the kernel does not say."""
    return _figure(transport, _RECEIVED)


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Return the bytes that the kernel holds for the peer; 0 where it does not say (not Linux)."""
    held = bytearray(4)
    with suppress(AttributeError, OSError):
        fcntl.ioctl(_socket(transport).fileno(), termios.TIOCOUTQ, held)
    return int.from_bytes(held, sys.byteorder)


def untaken(transport: asyncio.WriteTransport) -> int:
    """Return the bytes that were written and that the client's kernel has not acknowledged."""
    return transport.get_write_buffer_size() + unacknowledged(transport)


def read_little(transport: asyncio.BaseTransport) -> None:
    """Let the client send hardly more: its kernel finds the window shut once it has used up what it was granted.

    Measured over loopback, 1 GB/s become 2 MB in the first second, and 15 KB/s from then on.
    """
    with suppress(AttributeError, OSError):
        _socket(transport).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LEAST)


def drop_finished(connections: Iterable[Any]) -> None:
    """Drop connections that only wait for the client to end TLS from its side."""
    for connection in list(connections):
        transport = connection.transport
        if transport.is_closing() and not untaken(transport):
            transport.abort()


def _figure(transport: asyncio.BaseTransport, place: slice) -> int:
    try:
        info = _socket(transport).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, place.stop)
    except (AttributeError, OSError):
        return 0
    return int.from_bytes(info[place], sys.byteorder)


def _socket(transport: asyncio.BaseTransport) -> Any:
    return transport.get_extra_info(CLIENT_SOCKET) or transport.get_extra_info("socket")
