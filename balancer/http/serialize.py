"""HTTP/1.1 messages as they go over the wire (RFC 9112). No I/O."""

from __future__ import annotations

from http import HTTPStatus

from balancer.http.headers import Headers

# Statuses whose responses have no body, whatever their fields say (RFC 9112 section 6.3), besides 1xx.
NO_BODY = frozenset({204, 304})

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus}


def request_head(method: str, target: bytes, headers: Headers) -> bytes:
    """Return the head of a request without its end, so that fields can follow."""
    return b"\r\n".join([b" ".join((method.encode(), target, b"HTTP/1.1")), *map(b": ".join, headers), b""])


def response_lines(status: int, headers: Headers) -> bytes:
    """Return the head of a response without its end, so that fields can follow."""
    return b"\r\n".join([_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, *map(b": ".join, headers)])


def response_head(status: int, headers: Headers, *more: bytes) -> bytes:
    """Return the head of a response; ``more`` are field lines."""
    return b"\r\n".join([response_lines(status, headers), *more, b"\r\n"])
