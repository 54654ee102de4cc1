"""Messages between the processes of one balancer, over a pair of sockets that outlives either of them.

The sockets keep packets apart (SOCK_SEQPACKET, unix(7)), and a message is one packet or several. A process that dies
in the midst of a message leaves a beginning without an end: the first packet of the next message shows it. Messages are
pickled, which is safe among processes that were forked from one another and that no other process can write to.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

# Bytes of a packet: by default a socket's buffer holds several.
PACKET = 32 * 1024

_FIRST, _LAST = 1, 2


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends, for a ``Channel`` each. Raises OSError where the system has no such sockets (not Linux)."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """An end of the pair. ``on_message``: called with each message that arrives, within the running event loop."""

    def __init__(self, sock: socket.socket, on_message: Callable[[Any], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[bytes] = deque()
        self._incoming: bytearray | None = None
        self._loop.add_reader(sock, self._read)

    @property
    def is_busy(self) -> bool:
        """Whether the last message is still on its way, because the other end does not read."""
        return bool(self._outgoing)

    def send(self, message: object) -> None:
        """Begin to send; the rest follows when the other end has room for it."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        waiting = self.is_busy
        for start in range(0, len(data), PACKET):
            flags = _FIRST * (start == 0) | _LAST * (start + PACKET >= len(data))
            self._outgoing.append(bytes([flags]) + data[start : start + PACKET])
        if not waiting:
            self._write()

    def close(self) -> None:
        """Read and write no more; the socket stays as it is."""
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)

    def _write(self) -> None:
        while self._outgoing:
            try:
                self._sock.send(self._outgoing[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._write)
                return
            self._outgoing.popleft()
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        try:
            packet = self._sock.recv(PACKET + 1)
        except BlockingIOError:
            return
        if not packet:
            self._loop.remove_reader(self._sock)  # The supervisor is gone, and with it the other end.
            return
        if packet[0] & _FIRST:
            self._incoming = bytearray()
        if self._incoming is None:
            return  # The rest of a message whose beginning another process has read.
        self._incoming += packet[1:]
        if packet[0] & _LAST:
            message, self._incoming = pickle.loads(self._incoming), None
            self._on_message(message)
