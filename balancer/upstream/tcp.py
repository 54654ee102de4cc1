"""Options and state of a TCP connection to a member in the kernel.

``acknowledged`` separates a request that met a closing connection from one that a member may
have carried out. A member that closes an idle connection just as a request is written to it
answers with its kernel alone: the bytes are never acknowledged. Had the member read the request
first, the end of the connection (FIN) would have acknowledged it. A reset proves nothing: it may
come from a member that has read the request and whose kernel had not acknowledged it yet.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Final

_LINUX = sys.platform == "linux"

# Offsets in Linux's struct tcp_info: retransmissions and probes in a row without an answer, milliseconds since the last
# acknowledgement, bytes acknowledged (since Linux 4.1), bytes sent, and those of them sent again (since Linux 4.19).
_RETRANSMITS, _PROBES, _LAST_ACK_RECEIVED, _BYTES_ACKED, _BYTES_SENT = 2, 3, 56, 120, 200

# Segments in a row that a peer has to leave unanswered before its silence means something.
UNANSWERED = 2
# Seconds of silence after which a network is gone: in general, and where there is a reason to doubt it.
SILENCE, DOUBTED_SILENCE = 6.0, 1.5

# Bytes that fit into one segment on any path: the member reads them as a whole or not at all.
ONE_SEGMENT: Final = 1200


def watch_silence(sock: Any, idle: int = 3, probes: int = 3) -> None:
    """Have the kernel find out when the network to the peer is gone.

    A peer whose network is gone cannot close its connections. The kernel sends a keep-alive probe after ``idle``
    seconds of silence, then each second, ``probes`` times. The kernel of a peer that is only slow, or paused, answers.
    While bytes wait to be acknowledged, there are no such probes: see ``is_silent``.
    """
    for level, option, value in keep_alive_options(idle, probes):
        sock.setsockopt(level, option, value)


def keep_alive_options(idle: int = 3, probes: int = 3) -> list[tuple[int, int, int]]:
    """Return the options that ``watch_silence`` sets: level, option and value of each."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if _LINUX:
        options += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes),
        ]
    return options


def is_silent(sock: Any, seconds: float) -> bool:
    """Whether the peer's kernel has acknowledged nothing for ``seconds``, although bytes were sent over and over.

    TCP_USER_TIMEOUT looks like the option for that. But it also ends a connection whose peer acknowledges everything
    and has no room for more. A busy worker has none while a large body waits for it (seen after 7 s, Linux 6.18).
    """
    info = _tcp_info(sock, _LAST_ACK_RECEIVED + 4)
    if info is None:
        return False
    unanswered = max(info[_RETRANSMITS], info[_PROBES])
    milliseconds = struct.unpack_from("=I", info, _LAST_ACK_RECEIVED)[0]
    return unanswered >= UNANSWERED and bool(milliseconds >= seconds * 1000)


def acknowledged(sock: Any) -> int | None:
    """Return the bytes that the peer's kernel has acknowledged so far; None where the kernel does not report them."""
    info = _tcp_info(sock, _BYTES_ACKED + 8)
    return None if info is None else int(struct.unpack_from("=Q", info, _BYTES_ACKED)[0])


def took_nothing(sock: Any, before: int | None) -> bool:
    """Whether the peer's kernel has left the last segment unacknowledged, on a connection that the peer has ended.

    ``before``: what ``acknowledged`` returned before that segment, or None if it was not called. Then the count of
    bytes sent shows it, where the kernel has one.
    """
    if before is not None:
        return acknowledged(sock) == before
    info = _tcp_info(sock, _BYTES_SENT + 16)
    if info is None:
        return False
    sent, again = struct.unpack_from("=QQ", info, _BYTES_SENT)
    # The count of acknowledged bytes has one for the beginning of the connection (SYN).
    return bool(sent - again + 1 > struct.unpack_from("=Q", info, _BYTES_ACKED)[0])


def _tcp_info(sock: Any, size: int) -> bytes | None:
    """Return the first bytes of Linux's struct tcp_info; None where there is none."""
    if not _LINUX:
        return None
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    except OSError:
        return None
    return info if len(info) == size else None
