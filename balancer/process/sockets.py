"""Opens the listening sockets, before the modules that serve them are imported.

Those imports take half a second. From the moment a socket listens, the kernel queues connections
instead of refusing them, so a client that comes during the start waits a little and is served.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from balancer.types import Address, UnixSocket

BACKLOG = 2048
# What a Unix socket lets alone: clients of the same user and of the same group may connect.
UMASK = 0o117


class CannotListen(Exception):
    """A listener's address is taken, or not ours to take."""


@contextmanager
def listening(
    name: str, address: Address | UnixSocket, count: int = 1, inherited: Sequence[int] = ()
) -> Iterator[list[socket.socket]]:
    """Listening sockets for the setting called ``name``, closed at the end; the file of a Unix socket goes with it.

    ``count``: how many are wanted, among which the kernel shares out what clients connect to; of a Unix socket there
    is only one. ``inherited``: descriptors of those that there are already. Raises CannotListen, which says why not.
    """
    with ExitStack() as stack:
        if inherited:
            sockets = [stack.enter_context(socket.socket(fileno=it)) for it in inherited]
        else:
            sockets = [stack.enter_context(it) for it in listen_all(name, address, count)]
        made = _identity(address)
        try:
            yield sockets
        finally:
            # Another process may have taken the place in the meantime.
            if isinstance(address, UnixSocket) and made and made == _identity(address):
                Path(address.path).unlink(missing_ok=True)


def listen_all(name: str, address: Address | UnixSocket, count: int) -> list[socket.socket]:
    """``count`` listening sockets that share an address, but one if it is a Unix socket's. Raises CannotListen."""
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
        for it in sockets:
            it.close()
        raise _cannot(name, address, error) from error
    return sockets


def listen(name: str, address: Address | UnixSocket) -> socket.socket:
    """A listening socket for the setting called ``name``. Raises CannotListen, which says why not."""
    try:
        return _listen_unix(address.path) if isinstance(address, UnixSocket) else _listen_tcp(address)
    except OSError as error:
        raise _cannot(name, address, error) from error


def _cannot(name: str, address: Address | UnixSocket, error: OSError) -> CannotListen:
    return CannotListen(f"{name}={address} cannot be listened on: {error.strerror}")


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
    """What tells a socket's file from another of the same name."""
    if isinstance(address, UnixSocket):
        try:
            found = os.lstat(address.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino
    return None
