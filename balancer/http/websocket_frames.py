"""The frames of a WebSocket, as far as to put a frame of the balancer's own between two. No I/O.

Rules: RFC 6455 section 5.2 (frames), 5.5.1 (a close is the last frame of a side), 5.4 (control frames may
stand between the fragments of a message).
"""

from __future__ import annotations

import os

# Close codes (RFC 6455 section 7.4.1 and its registry) that the balancer sends in its own name.
GOING_AWAY, BAD_GATEWAY = 1001, 1014

_CLOSE = 0x8

# Frames that are read in one turn of the event loop: 1 ms. A read may have 40,000 empty ones.
FRAMES_PER_TURN = 2000


def close_frame(code: int, reason: str, masked: bool) -> bytes:
    """Return a close frame; a client's (``masked``) has its payload masked (section 5.3)."""
    payload = code.to_bytes(2) + reason.encode()
    if not masked:
        return bytes((0x80 | _CLOSE, len(payload))) + payload
    mask = os.urandom(4)
    covered = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((0x80 | _CLOSE, 0x80 | len(payload))) + mask + covered


class Frames:
    """Follows the frames of one direction. ``closed``: a close frame has begun; nothing may follow it."""

    def __init__(self) -> None:
        self.closed = False
        self._head = b""
        # Bytes still to come of the frame under way.
        self._left = 0

    @property
    def is_between(self) -> bool:
        """Whether a frame may be put in here."""
        return not (self._head or self._left or self.closed)

    def feed(self, data: bytes) -> int:
        """Take the next bytes of the direction. Returns how many: all, or those of FRAMES_PER_TURN frames."""
        if self._left >= len(data):  # most of a large message
            self._left -= len(data)
            return len(data)
        at, frames = self._left, 0
        while (at < len(data) or self._head) and frames < FRAMES_PER_TURN:
            frames += 1
            head = self._head + data[at : at + 14 - len(self._head)]
            size, payload = _head_size(head)
            if len(head) < size:
                self._head, self._left = head, 0
                return len(data)
            if head[0] & 0x0F == _CLOSE:
                self.closed = True
            at += size - len(self._head) + payload
            self._head = b""
        self._left = max(0, at - len(data))
        return min(at, len(data))


def _head_size(head: bytes) -> tuple[int, int]:
    """Return the length of a frame's head, as far as that is known, and of the payload behind it."""
    if len(head) < 2:
        return 2, 0
    length = head[1] & 0x7F
    extended = {126: 2, 127: 8}.get(length, 0)
    size = 2 + extended + (4 if head[1] & 0x80 else 0)
    if extended and len(head) >= 2 + extended:
        length = int.from_bytes(head[2 : 2 + extended])
    return size, length
