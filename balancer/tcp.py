"""What the kernel can be told about a connection to a member, and what it knows.

``acknowledged`` is how a request that met a closing connection is told from one that a member may
have carried out. A member that closes an idle connection just as a request is written to it
answers with its kernel alone: the bytes are never acknowledged. Had the member read the request
first, the end of the connection (FIN) would have acknowledged it. A reset proves nothing: it may
come from a member that has read the request and whose kernel had not acknowledged it yet.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

_LINUX = sys.platform == "linux"

# Offset of tcpi_bytes_acked in Linux's struct tcp_info (since Linux 4.1).
_BYTES_ACKED = 120

# What fits into one segment on any path: it is read by the member as a whole or not at all.
ONE_SEGMENT = 1200


def watch_silence(sock: Any) -> None:
    """Have the kernel find out when the network to the peer is gone.

    A peer that the network was taken from cannot close its connections. The kernel asks for it after
    3 s of silence, then each second, three times. A peer that is only slow, or paused, has its
    kernel answer.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _LINUX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 6000)


def acknowledged(sock: Any) -> int | None:
    """How many bytes the peer's kernel has acknowledged so far; None where the kernel does not tell."""
    if not _LINUX:
        return None
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
    except OSError:
        return None
    return int(struct.unpack_from("=Q", info, _BYTES_ACKED)[0]) if len(info) == _BYTES_ACKED + 8 else None
