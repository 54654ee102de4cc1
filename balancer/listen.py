"""Opens the listening sockets, before the modules that serve them are imported.

Those imports take half a second. From the moment a socket listens, the kernel queues connections
instead of refusing them, so a client that comes during the start waits a little and is served.
"""

from __future__ import annotations

import socket

from balancer.settings import Address

BACKLOG = 2048


class CannotListen(Exception):
    """A listener's address is taken, or not ours to take."""


def listen(name: str, address: Address) -> socket.socket:
    """A listening socket for the setting called ``name``. Raises CannotListen, which says why not."""
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise CannotListen(f"{name}={address} cannot be listened on: {error.strerror}") from error
    return sock
