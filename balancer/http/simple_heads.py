"""Heads that need no judgement, read by a few expressions: nearly all that browsers, programs and members send. No I/O.

What is read here is a strict part of the grammar of RFC 9112, in which a head has one meaning only:

* Bytes are visible ASCII, spaces and CRLF. Names are letters, digits and "-", and a colon and a space follow.
* A request has a path, HTTP/1.1 and one valid Host. A response has HTTP/1.1, a usual status with its usual phrase, one
  Content-Length, and a body that may follow.
* No header has a say in where the message ends, but for one Content-Length of digits, and none asks for anything of
  this hop, but for ``Connection: keep-alive``.

Whatever else comes is None here and goes to httptools and the checks behind it: this module has no second opinion of
ambiguous bytes, because it has none. So what it returns is nothing, or what they return
(tests/http/test_simple_heads.py, and the fuzzers). Header pairs are made only where a policy or a hook reads them.

Lines of headers are bytes in which a line break stands before each line.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, NamedTuple

from balancer.config.settings import Settings
from balancer.http.headers import X_FORWARDED
from balancer.http.request import Request
from balancer.http.serialize import status_line
from balancer.http.validation import PENDING_BODY, is_host

# Longer heads are rare.
HEAD_MAX: Final = 8 * 1024
# Digits of a Content-Length.
_LENGTH_DIGITS: Final = 15

_METHODS: Final = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
# Of the statuses behind which a body may follow, by their status lines.
_STATUSES: Final = {
    status_line(status): status.value for status in HTTPStatus if status >= 200 and status not in (204, 205, 304)
}

# Bytes that a line cannot have become spaces in a translation with this table.
_PLAIN: Final = bytes(byte if 0x20 <= byte <= 0x7E or byte in b"\r\n" else 0x20 for byte in range(256))
_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) (/[!$-;=?-\[\]_a-z~]*) HTTP/1\.1\r\n")
# Nothing but CR ends a value: it costs a third of a set of characters. That no LF is in it is counted.
_LINES: Final = re.compile(rb"(?:[0-9A-Za-z-]+: [^\r]*\r\n)*\r\n")

# Headers that frame the message or are for this hop, and those that the balancer writes anew. The first letter is
# looked at first: (?i:) costs more.
_HOP: Final = rb"[Cc](?i:onnection|ontent-length)|[KkPpTtUu](?i:eep-alive|roxy-[a-z]+|e|ransfer-encoding|pgrade)"
_NOTED: Final = re.compile(
    rb"(\r\n(?:" + _HOP + rb"|[CcEeFfHhXx](?i:dn-loop|xpect|orwarded|ost|-request-id|-forwarded-[0-9a-z-]*)): [^\r]*)"
)
_HOP_LINES: Final = re.compile(rb"(\r\n(?:" + _HOP + rb"): [^\r]*)")


# Host, Content-Length, X-Request-ID, and the values of ``Forwarded`` and ``X-Forwarded-*`` by name.
_Noted = tuple[bytes, bytes, bytes, dict[bytes, list[bytes]]]


def _is_plain(head: bytes, start: int) -> bool:
    """Whether all lines of a head, from the header lines at ``start`` on, are plain."""
    return (
        head.translate(_PLAIN) == head
        and head.count(b"\r") == head.count(b"\n")
        and _LINES.fullmatch(head, start) is not None
    )


def _read_noted(lines: list[bytes]) -> _Noted | None:
    """Return what the lines of noted headers say, every second one, and empty those that do not go on as they are."""
    host = length = id = b""
    forwarding: dict[bytes, list[bytes]] = {}
    for place in range(1, len(lines), 2):
        name, _, value = lines[place][2:].partition(b": ")
        name = name.lower()
        if name == b"host" and not host and is_host(value):
            host = value
        elif name == b"keep-alive" or (name == b"connection" and value.lower() == b"keep-alive"):
            lines[place] = b""
        elif name == b"content-length" and not length and value.isdigit() and len(value) <= _LENGTH_DIGITS:
            length = value
        elif name == b"x-request-id" and not id and b" " not in value:
            id = value
        elif name == b"forwarded" or name.startswith(X_FORWARDED):
            forwarding.setdefault(name, []).append(value.strip())
            lines[place] = b""
        else:
            return None
    return host, length, id, forwarding


def read_request(head: bytes, client: str, scheme: str, limits: Settings) -> Request | None:
    """Return the request that a head makes, if it is simple and within the limits.

    ``head``: all of it, with the empty line at its end. ``client``, ``scheme``: as those of the request.
    """
    found = _REQUEST_LINE.match(head)
    if found is None or len(head) > limits.max_header_bytes or not _is_plain(head, found.end()):
        return None
    method = _METHODS.get(found[1])
    target = found[2]
    if method is None or len(target) > limits.max_uri_bytes or head.count(b"\n") - 2 > limits.max_headers:
        return None
    block = head[found.end() - 2 : -4]
    lines = _NOTED.split(block)
    noted = _read_noted(lines)
    if noted is None:
        return None
    host, length, id, forwarding = noted
    if not host:
        return None
    request = Request(method, target, None, client, scheme, host=host, id=id)
    request.block = block
    request.lines = b"".join(lines)
    if forwarding:
        request.forwarding = forwarding
    if length and length.strip(b"0"):
        request.length = int(length)
        request.body = PENDING_BODY
    return request


class SimpleResponse(NamedTuple):
    """A response head. ``length``: of the body; ``lines``: the head as a client gets it, without its end."""

    status: int
    length: int
    lines: bytes


def read_response(head: bytes) -> SimpleResponse | None:
    """Return what a response head says, if it is simple. ``head``: all of it, with the empty line at its end."""
    start = head.find(b"\r\n")
    status = _STATUSES.get(head[:start])
    if status is None or not _is_plain(head, start + 2):
        return None
    lines = _HOP_LINES.split(head[:-4])
    noted = _read_noted(lines)
    if noted is None or not noted[1]:
        return None
    return SimpleResponse(status, int(noted[1]), b"".join(lines))
