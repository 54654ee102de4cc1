"""Header fields that cross the balancer, and those that it writes itself.

Header fields are raw pairs ``list[tuple[bytes, bytes]]`` with lower-case names, in the order in which they came. Fields
that are not named here pass untouched, duplicates included.

Rules: RFC 9110 section 7.6.1 (hop-by-hop fields, and those that ``Connection`` names).
"""

from __future__ import annotations

import re
from typing import Final

from mypy_extensions import mypyc_attr

from balancer.http.value_cache import cached

Headers = list[tuple[bytes, bytes]]

# Never added to.
NO_FIELDS: Final[Headers] = []

# Names as their sender has written them, by the same in lower case, where they differ. HTTP/1.1 passes them on so: what
# is old or naive at the other end may know one spelling alone, although none means anything (RFC 9110 section 5.1).
Spelling = dict[bytes, bytes]
AS_THEY_ARE: Final[Spelling] = {}

# An id that may be sent back although its request is not valid, and that the log holds whole.
_SOUND_ID = re.compile(rb"[\x21-\x7e]{1,128}")

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)

# ``Connection`` must not take these away: without them the message means something else.
_NEVER_NOMINATED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"keep-alive",
    b"close",
    b"",
}

# Fields that a trailer must not have (RFC 9110 section 6.5.1): framing, routing and authorization of the message, and
# the nature of its content. A server that merges trailers into the head would take over what no proxy has checked.
NO_TRAILERS = HOP_BY_HOP | {
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"max-forwards",
    b"range",
    b"set-cookie",
    b"trailer",
}

X_FORWARDED = b"x-forwarded-"

# Fields of a trace (W3C Trace Context). A proxy that takes part in it writes the first anew.
TRACE_FIELDS = frozenset({b"traceparent"})


# What a gateway makes "_" of; most do so with "-" alone, some with every mark (lighttpd).
_MARKS = re.compile(rb"[^a-z0-9]")

# Digits of a body's length: no body is longer, and every integer of 64 bits can hold it.
LENGTH_DIGITS = 18


@mypyc_attr(allow_interpreted_subclasses=True)
class MessageHeaders:
    """The headers of a message: lines, and pairs once something reads them.

    ``lines``: those of a simple head (``balancer.http.simple_heads``) that is as it came, else b"". ``spelling``: of
    the names in ``headers``, once they are pairs.
    """

    lines: bytes = b""
    spelling: Spelling = AS_THEY_ARE
    _headers: Headers | None = None

    @property
    def headers(self) -> Headers:
        """The headers as pairs with names in lower case; they may be replaced."""
        headers = self._headers
        if headers is None:
            headers, self.spelling = read_lines(self.lines)
            self._headers = headers
        return headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers
        self.lines = b""


def read_lines(lines: bytes) -> tuple[Headers, Spelling]:
    """Return the pairs of header lines with a line break before each, in which a space follows the colon.

    What is before the first line break, and the end of the head, are left out.
    """
    found: Headers = []
    spelling: Spelling = {}
    for line in lines.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        lowered = name.lower()
        if lowered != name:
            spelling[lowered] = name
        found.append((lowered, value.strip()))
    return found, spelling


def as_lines(headers: Headers, spelling: Spelling = AS_THEY_ARE) -> bytes:
    """Return header lines with a line break before each."""
    if spelling:
        return b"".join([b"\r\n%b: %b" % (spelling.get(name, name), value) for name, value in headers])
    return b"".join([b"\r\n%b: %b" % pair for pair in headers])


def connection(headers: Headers) -> bytes:
    """Return all values of ``Connection`` as one list (RFC 9110 section 5.3), or b"". Names are in lower case."""
    return b",".join([value for name, value in headers if name == b"connection"])


@cached(256)
def connection_options(connection: bytes) -> frozenset[bytes]:
    """Return the options in a list of ``Connection``, in lower case (RFC 9110 section 7.6.1)."""
    return frozenset(map(bytes.strip, connection.lower().split(b",")))


@cached(256)
def nominated(connection: bytes) -> frozenset[bytes]:
    """Return the fields that only ``Connection`` declares to be for this hop, in lower case."""
    return connection_options(connection) - _NEVER_NOMINATED


def response_headers(headers: Headers) -> Headers:
    """Return the fields of a member's response that go on to the client."""
    passed = [pair for pair in headers if pair[0] not in HOP_BY_HOP]
    if len(passed) != len(headers) and (gone := nominated(connection(headers))):
        passed = [pair for pair in passed if pair[0] not in gone]
    return passed


def without_length(headers: Headers) -> Headers:
    """Return the headers of a response without a length, which 1xx and 204 must not have (RFC 9110 section 8.6)."""
    return [pair for pair in headers if pair[0] != b"content-length"]


def trailers(fields: Headers) -> Headers:
    """Return the fields after a body that go on."""
    return [pair for pair in fields if _may_trail(pair[0])]


def _may_trail(name: bytes) -> bool:
    name = folded(name)
    return name not in NO_TRAILERS and not name.startswith((X_FORWARDED, b"if-"))


def folded(name: bytes) -> bytes:
    """Return the name in lower case that a gateway of CGI or WSGI does not distinguish from this one."""
    return _MARKS.sub(b"-", name)


def without_underscores(fields: Headers) -> Headers:
    """Return the fields whose names have no underscore."""
    return [pair for pair in fields if b"_" not in pair[0]]


def announces_close(headers: Headers) -> bool:
    """Whether the sender announces that it closes the connection after this message."""
    return b"close" in connection_options(connection(headers))


def has_body(headers: Headers) -> bool:
    """Whether a request with these fields has a body (RFC 9112 section 6.3)."""
    for name, value in headers:  # noqa: SIM110 - any() with its generator takes three times as long
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False


def host(headers: Headers) -> bytes:
    """Return the value of Host, or b""."""
    for name, value in headers:
        if name == b"host":
            return value
    return b""


def request_id(headers: Headers) -> bytes:
    """Return the value of X-Request-ID, or b""."""
    for name, value in headers:
        if name == b"x-request-id":
            return value
    return b""


def sound_request_id(headers: Headers) -> bytes:
    """Return the X-Request-ID of a request that has been refused, or b"" where that may not be sent back."""
    id = request_id(headers)
    return id if _SOUND_ID.fullmatch(id) else b""


def with_request_id(headers: Headers, id: bytes) -> Headers:
    """Return the headers of a response with this X-Request-ID, in place of any that the member has sent."""
    return [*(pair for pair in headers if pair[0] != b"x-request-id"), (b"x-request-id", id)]


def content_length(headers: Headers) -> int:
    """Return the announced length of a body; 0 where there is none."""
    for name, value in headers:
        if name == b"content-length":
            return int(value.lstrip(b"0") or b"0")  # int() takes 4300 digits at most, zeros or not.
    return 0


def is_too_long(length: bytes) -> bool:
    """Whether a Content-Length has more digits than any body needs, leading zeros aside."""
    return len(length.lstrip(b"0")) > LENGTH_DIGITS


def plain_address(address: str) -> str:
    """Return the plain IPv4 address of an IPv4 client of an IPv6 socket (RFC 4291 section 2.5.5.2)."""
    return address.removeprefix("::ffff:") if "." in address else address
