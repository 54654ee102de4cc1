"""Bodies in chunks (RFC 9112 section 7.1): how they are written, and what a sender may put beside the data. No I/O.

httptools reads them, for requests and for responses: it checks that a size is hexadecimal and fits 64 bits, and that a
line break follows the data. What it does not bound is the rest: sizes, extensions, leading zeros, trailers.
"""

from __future__ import annotations

from balancer.http.headers import Headers

# Bytes of chunk sizes and extensions that a byte of a body makes up for; what is beyond counts as if it were a head.
BODY_WORTH = 16


def chunk(piece: bytes) -> bytes:
    """A piece of a body of unknown length; nothing for an empty one, which would mean the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def last_chunk(trailers: Headers) -> bytes:
    """The end of a body of unknown length, with the trailers that follow it (section 7.1.2)."""
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % it for it in trailers) if trailers else b"0\r\n\r\n"


def overhead(received: int, data: int) -> int:
    """Bytes beside the body, of ``received`` bytes so far, once ``data`` of them have turned out to be its own."""
    return max(0, received - BODY_WORTH * data)
