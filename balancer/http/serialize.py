"""HTTP/1.1 messages as they go over the wire (RFC 9112). No I/O."""

from __future__ import annotations

import re
from http import HTTPStatus

# Statuses whose responses have no body, whatever their fields say (RFC 9112 section 6.3), besides 1xx.
NO_BODY = frozenset({204, 304})

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_STATUS_LINES = {status: b"HTTP/1.1 %d %b" % (status, reason) for status, reason in _REASONS.items()}
# RFC 9112 section 4.
_REASON = re.compile(rb"[\t\x20-\x7e\x80-\xff]+")


def own_reason(status: int, reason: bytes) -> bytes:
    """Return the reason phrase of a response where it is not the usual one of its status, else b"".

    So is one that is empty, or has characters that it must not have (RFC 9112 section 4).
    """
    return reason if reason != _REASONS.get(status) and _REASON.fullmatch(reason) else b""


def status_line(status: int, reason: bytes = b"") -> bytes:
    """Return the first line of a response. ``reason``: the reason phrase, or b"" for the usual one of the status."""
    line = None if reason else _STATUS_LINES.get(status)
    return line or b"HTTP/1.1 %d %b" % (status, reason)


def request_head(method: str, target: bytes, lines: bytes) -> bytes:
    """Return the head of a request. ``lines``: of headers, with a line break before each."""
    return b"%b %b HTTP/1.1%b\r\n\r\n" % (method.encode(), target, lines)


def response_head(status: int, lines: bytes, reason: bytes = b"") -> bytes:
    """Return the head of a response. ``lines``: of headers, with a line break before each. For ``reason`` see above."""
    return b"%b%b\r\n\r\n" % (status_line(status, reason), lines)
