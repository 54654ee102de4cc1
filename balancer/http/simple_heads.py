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

Most programs send the same header lines again and again, with other targets, and many members the same head. So each
connection remembers the last block of them, and the same bytes are not read again. That is safe, because what is read
is a function of these bytes alone: a block that came before ends where it ended then, and says what it said. The
request line, and limits that it has a part in, are looked at each time. Blocks that differ cost one comparison.

Lines of headers are bytes in which a line break stands before each line.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from balancer.config.settings import Settings
from balancer.http.headers import X_FORWARDED
from balancer.http.request import END_OF_HEAD, HeaderBlock, Request
from balancer.http.serialize import status_line
from balancer.http.validation import PENDING_BODY, is_host

# Longer heads, and heads with more headers, are rare.
HEAD_MAX: Final = 8 * 1024
_HEADERS_MAX: Final = 100
# Bytes of the longest block that a connection remembers: so it keeps 2 KiB at most, for the lines that go on as well.
KNOWN_MAX: Final = 1024
# Digits of a Content-Length.
_LENGTH_DIGITS: Final = 15

_METHODS: Final = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
# Of the statuses behind which a body may follow, by their status lines.
_STATUSES: Final = {
    status_line(status): status.value for status in HTTPStatus if status >= 200 and status not in (204, 205, 304)
}

_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) (/[!$-;=?-\[\]_a-z~]*) HTTP/1\.1(?=\r\n)")
_LINES: Final = re.compile(rb"(?:\r\n[0-9A-Za-z-]+: [ -~]*){0,%d}\r\n\r\n" % _HEADERS_MAX)

# Headers that frame the message or are for this hop, and those that the balancer writes anew. The first letter is
# looked at first: (?i:) costs more.
_HOP: Final = rb"[Cc](?i:onnection|ontent-length)|[KkPpTtUu](?i:eep-alive|roxy-[a-z]+|e|ransfer-encoding|pgrade)"
_NOTED: Final = re.compile(
    rb"(\r\n(?:" + _HOP + rb"|[CcEeFfHhXx](?i:dn-loop|xpect|orwarded|ost|-request-id|-forwarded-[0-9a-z-]*)): [^\r]*)"
)
_HOP_LINES: Final = re.compile(rb"(\r\n(?:" + _HOP + rb"): [^\r]*)")


# Host, X-Request-ID, Content-Length or -1, and the values of ``Forwarded`` and ``X-Forwarded-*`` by name.
_Noted = tuple[bytes, bytes, int, dict[bytes, list[bytes]]]


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
    return host, id, int(length) if length else -1, forwarding


def _read_block(text: bytes) -> HeaderBlock | None:
    """Return what header lines say, if they are those of a simple request. ``text``: as ``HeaderBlock.lines``."""
    if _LINES.fullmatch(text) is None:
        return None
    lines = _NOTED.split(text[:-4])
    noted = _read_noted(lines)
    if noted is None or not noted[0]:
        return None
    host, id, length, forwarding = noted
    return HeaderBlock(text, b"".join(lines), host, id, max(0, length), forwarding)


def read_request(data: bytes, known: HeaderBlock | None, client: str, scheme: str, limits: Settings) -> Request | None:
    """Return the request whose head is at the beginning of ``data``, if it is simple, whole and within the limits.

    ``known``: the block of a request before. ``client``, ``scheme``: as those of the request.
    """
    found = _REQUEST_LINE.match(data)
    if found is None:
        return None
    start = found.end()
    if known is not None and data.startswith(known.lines, start):
        block: HeaderBlock | None = known
    else:
        end = data.find(END_OF_HEAD, start, HEAD_MAX) + len(END_OF_HEAD)
        block = _read_block(data[start:end]) if end > start else None
    if block is None or start + len(block.lines) > limits.max_header_bytes:
        return None
    method = _METHODS.get(found[1])
    target = found[2]
    if method is None or len(target) > limits.max_uri_bytes:
        return None
    if limits.max_headers < _HEADERS_MAX and block.lines.count(b"\n") - 2 > limits.max_headers:
        return None
    request = Request(method, target, None, client, scheme, host=block.host, id=block.id)
    request.lines = block.lines
    request.block = block
    request.head_bytes = start + len(block.lines)
    if block.length:
        request.body = PENDING_BODY
    return request


class SimpleResponse:
    """A response head. ``length``: of the body; ``lines``: the head as a client gets it, without its end."""

    __slots__ = ("head", "length", "lines", "status")

    def __init__(self, head: bytes, status: int, length: int, lines: bytes) -> None:
        self.head = head
        self.status = status
        self.length = length
        self.lines = lines


def read_response(head: bytes) -> SimpleResponse | None:
    """Return what a response head says, if it is simple. ``head``: all of it, with the empty line at its end."""
    start = head.find(b"\r\n")
    status = _STATUSES.get(head[:start])
    if status is None or _LINES.fullmatch(head, start) is None:
        return None
    lines = _HOP_LINES.split(head[:-4])
    noted = _read_noted(lines)
    if noted is None or noted[2] < 0:
        return None
    return SimpleResponse(head, status, noted[2], b"".join(lines))
