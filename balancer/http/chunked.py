"""Bodies in chunks (RFC 9112 section 7.1): writing them, and a bound for bytes beside the data. No I/O.

httptools reads them, for requests and for responses. It checks that a size is hexadecimal and fits 64 bits, and that a
line break follows the data. It does not bound the rest: sizes, extensions, leading zeros, trailers.
"""

from __future__ import annotations

from balancer.http.headers import Headers

# Bytes of chunk sizes and extensions allowed for each byte of a body; more of them count as a head does.
BODY_WORTH = 16


def chunk(piece: bytes) -> bytes:
    """Return a piece of a body of unknown length; b"" for an empty one, which would mean the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def last_chunk(trailers: Headers) -> bytes:
    """Return the end of a body of unknown length, with the trailers that follow it (section 7.1.2)."""
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % pair for pair in trailers) if trailers else b"0\r\n\r\n"


def overhead(received: int, data: int) -> int:
    """Return the bytes beside a body, of ``received`` so far, once ``data`` of them have turned out to be body."""
    return max(0, received - BODY_WORTH * data)
