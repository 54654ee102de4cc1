"""Bodies of unknown length on the wire: the chunked transfer coding (RFC 9112 section 7.1). No I/O."""

from __future__ import annotations

from balancer.headers import Headers


def chunk(piece: bytes) -> bytes:
    """A piece of a body; nothing for an empty one, which would mean the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def last_chunk(trailers: Headers) -> bytes:
    """The end of a body, with the fields that follow it."""
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % it for it in trailers) if trailers else b"0\r\n\r\n"
