"""Opens the listening sockets, before the modules that serve them are imported.

Those imports take half a second. From the moment a socket listens, the kernel queues connections
instead of refusing them. So a client that comes during the start waits a little and is served.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from balancer.config.own_address import own_address
from balancer.types import Address, UnixSocket

BACKLOG = 2048
# Clients of the same user and of the same group may connect to a Unix socket.
UMASK = 0o117


class CannotListen(Exception):
    """A listener's address is taken, or not the balancer's to take; the text has the reason."""


@contextmanager
def listening(
    name: str, address: Address | UnixSocket, count: int = 1, inherited: Sequence[int] = ()
) -> Iterator[list[socket.socket]]:
    """Open listening sockets for the setting ``name``, and close them at the end, with the file of a Unix socket.

    ``count``: number of sockets, among which the kernel spreads clients; there is one Unix socket at most.
    ``inherited``: descriptors of sockets to be used instead. Raises CannotListen with the reason.
    """
    with ExitStack() as stack:
        if inherited:
            sockets = [stack.enter_context(socket.socket(fileno=descriptor)) for descriptor in inherited]
        else:
            sockets = [stack.enter_context(sock) for sock in listen_all(name, address, count)]
        made = _identity(address)
        try:
            yield sockets
        finally:
            # Another process may have taken the place in the meantime.
            if isinstance(address, UnixSocket) and made and made == _identity(address):
                Path(address.path).unlink(missing_ok=True)


def listen_all(name: str, address: Address | UnixSocket, count: int) -> list[socket.socket]:
    """Return ``count`` listening sockets that share an address, or one Unix socket. Raises CannotListen."""
    sock = listen(name, address)
    if count == 1 or isinstance(address, UnixSocket):
        return [sock]
    # SO_REUSEPORT hides EADDRINUSE, so the first socket binds exclusively.
    sock.close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(_listen_tcp(address, shared=True))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise _cannot(name, address, error) from error
    return sockets


def listen(name: str, address: Address | UnixSocket) -> socket.socket:
    """Return a listening socket for the setting ``name``. Raises CannotListen with the reason."""
    try:
        return _listen_unix(address.path) if isinstance(address, UnixSocket) else _listen_tcp(own_address(address))
    except OSError as error:
        raise _cannot(name, address, error) from error


def _cannot(name: str, address: Address | UnixSocket, error: OSError) -> CannotListen:
    reason = error.strerror
    if isinstance(error, PermissionError):
        needed = "a port below 1024 takes CAP_NET_BIND_SERVICE, and one above it does not"
        if isinstance(address, UnixSocket):
            needed = f"it has to write to the folder {Path(address.path).parent}"
        reason = f"{reason} as uid {os.geteuid()}: {needed}"
    return CannotListen(f"{name}={address} cannot be listened on: {reason}")


def _listen_tcp(address: Address, shared: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(UMASK)
    try:
        if _abandoned(path):
            Path(path).unlink()
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _abandoned(path: str) -> bool:
    """Whether the file is a socket whose process was killed."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # A full backlog belongs to a process, too.
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def _identity(address: Address | UnixSocket) -> tuple[int, int] | None:
    """Return device and inode of a socket's file, which no other file of that name has."""
    if isinstance(address, UnixSocket):
        try:
            found = os.lstat(address.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino
    return None
