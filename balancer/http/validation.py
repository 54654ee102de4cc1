"""Rules for the head of a request, before any of it goes to a member. No I/O.

httptools (llhttp) has parsed it by then: it refuses control characters, folded fields, spaces before a colon, bare LF,
and lengths that are none. What it lets pass and a balancer must not is refused here. Two servers in a row that read the
same bytes differently can be played off against each other (request smuggling).

Rules (RFC 9110, RFC 9112): one Host that is valid; the authority of a target in absolute form names the same host and
port, and takes its place; a body is framed by one Content-Length or by ``chunked`` alone; HTTP/1.0 has no chunks. Not
of an RFC: ``Connection`` has OPTIONS_MAX options at most, in all its fields together; a length has LENGTH_DIGITS at
most, since some read longer ones as other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine
from typing import Any

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.headers import LENGTH_DIGITS, Headers, connection, connection_options, is_too_long
from balancer.http.request import Request
from balancer.http.value_cache import cached

# RFC 9110 section 7.2 and RFC 3986 section 3.2.2: a host, perhaps with a port.
# Runs of characters are taken as one (++), or a long host takes a millisecond.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})++)(?::[0-9]*+)?")
# RFC 9110 section 5.6.2. Any token may be a method (section 9.1), or the name of a header.
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}

# Requests have one or two: each names a field to look for, and costs as much as a field does.
OPTIONS_MAX = 32

_SLASH = ord("/")

# The fields that are checked here.
_NOTED = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"x-request-id"}
)  # fmt: skip

# Protocols that are not tunnelled: they carry HTTP requests, which then would be neither balanced nor checked.
_NOT_TUNNELLED = (b"h2c", b"http/", b"tls/")

_NO_OPTIONS: frozenset[bytes] = frozenset()

_REFUSED_METHODS = frozenset({b"CONNECT", b"TRACE", b"PRI"})


def _method_refused(method: bytes) -> Refusal:
    """Return a new refusal each time: an exception keeps every frame through which it was ever raised."""
    if method == b"CONNECT":
        return Refusal(501, "method_not_allowed", "CONNECT is for proxies of another kind")
    if method == b"PRI":
        return malformed("PRI begins HTTP/2 and is not a method")  # RFC 9113 section 3.4
    return Refusal(405, "method_not_allowed", "TRACE is not passed on")


def malformed(reason: str) -> Refusal:
    """Return the refusal of a request that is malformed or ambiguous."""
    return Refusal(400, "malformed_request", reason)


def check(  # noqa: C901, PLR0915 - one pass over the head of every request, without a call between
    method: bytes, target: bytes, fields: Headers, version: str, size: int, limits: Settings
) -> tuple[Request, bool]:
    """Return the request that a head makes, and whether it is the last of its connection.

    ``size``: bytes that the head has at most. Raises Refusal where no request can, or should, be made of it.
    """
    if version not in ("1.0", "1.1"):
        raise Refusal(505, "version_not_supported", f"HTTP/{version} is not spoken here")
    if len(target) > limits.max_uri_bytes:
        raise Refusal(414, "uri_too_long", f"a request target may have {limits.max_uri_bytes} bytes")
    if len(fields) > limits.max_headers:
        raise Refusal(431, "headers_too_large", f"a request may have {limits.max_headers} fields")
    if size > limits.max_header_bytes and max(len(method), head_size(target, fields)) > limits.max_header_bytes:
        raise headers_too_large(limits)
    if method in _REFUSED_METHODS:
        raise _method_refused(method)
    hosts = 0
    host = length = chunked = options = upgrade = expect = id = b""
    for name, value in fields:
        if name not in _NOTED:
            continue
        if name == b"host":
            hosts += 1
            host = value
        elif name == b"connection":
            options += b"," + value if options else value
        elif name == b"content-length":
            length = value
        elif name == b"transfer-encoding":
            chunked += b"," + value if chunked else value
        elif name == b"upgrade":
            upgrade += b"," + value if upgrade else value
        elif name == b"expect":
            expect = value.lower()
        else:
            id = id or value
    if chunked:
        if chunked.lower() != b"chunked":
            raise malformed("the only Transfer-Encoding that is understood is chunked, once")
        if version == "1.0" or length:
            raise malformed("Transfer-Encoding is not for HTTP/1.0, and not for requests with a Content-Length")
    if hosts != 1:
        if hosts or version == "1.1":
            raise malformed("a request needs one Host")
        # HTTP/1.0 may come without; members get HTTP/1.1 (RFC 9112 section 3.3).
        host = (f"[{limits.alias}]" if ":" in limits.alias else limits.alias).encode("ascii")
        fields.insert(0, (b"host", host))
    elif not is_host(host):
        raise malformed("the Host is not one")
    if b"#" in target:
        raise malformed("a request target has no fragment")
    if target[0] != _SLASH:
        target, host = _absolute(method, target, fields, host, hosts > 0)
    tokens = _within_bound(options) if options else _NO_OPTIONS
    request = Request(method.decode(), target, fields, "", host=host, id=id)
    if chunked or (length and length.strip(b"0")):
        if is_too_long(length):
            raise _length_too_long()
        request.body = PENDING_BODY
        request.chunked = bool(chunked)
    if version == "1.0":
        return request, b"keep-alive" not in tokens
    if expect:
        request.expects = expect == b"100-continue" and request.body is not None
    if upgrade and b"upgrade" in tokens and not _carries_http(upgrade):
        request.upgrade = upgrade
    return request, b"close" in tokens


def check_passed(fields: Headers) -> None:
    """Raise Refusal for a request that a server, or a program, has let pass and that ``check`` would not."""
    if sum(name == b"host" for name, _ in fields) > 1:
        raise malformed("a request needs one Host")
    if any(name == b"content-length" and is_too_long(value) for name, value in fields):
        raise _length_too_long()
    _within_bound(connection(fields))


def _length_too_long() -> Refusal:
    return malformed(f"Content-Length has more than {LENGTH_DIGITS} digits")


def _within_bound(options: bytes) -> frozenset[bytes]:
    """Return the options of ``Connection``. Raises Refusal where there are more than may be."""
    count = options.count(b",") + 1
    if count > OPTIONS_MAX:
        raise malformed(f"Connection has {count} options, and may have {OPTIONS_MAX}")
    return connection_options(options)


def headers_too_large(limits: Settings) -> Refusal:
    """Return the refusal of a head with too many bytes."""
    return Refusal(431, "headers_too_large", f"a request head may have {limits.max_header_bytes} bytes")


def head_size(target: bytes, fields: Headers) -> int:
    """Return the bytes of a head on the wire, without its method and version."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in fields)


def _carries_http(upgrade: bytes) -> bool:
    return any(protocol.strip().lower().startswith(_NOT_TUNNELLED) for protocol in upgrade.split(b","))


@cached(1024)
def is_host(value: bytes) -> bool:
    """Whether a value is that of a Host: a name or an address, perhaps with a port."""
    return _HOST.fullmatch(value) is not None


def _absolute(method: bytes, target: bytes, fields: Headers, host: bytes, has_host: bool) -> tuple[bytes, bytes]:
    """Return path and authority of a target in absolute form; the latter replaces Host (RFC 9112 section 3.2.2).

    ``has_host``: ``host`` is the client's word. It has to name the same host and port as the target: of two servers in
    a row, one may go by the first and one by the second.
    """
    if target == b"*" and method == b"OPTIONS":
        return target, host
    found = _ABSOLUTE.fullmatch(target)
    if not found or not is_host(found[2]):
        raise malformed("the request target is neither a path nor a URL")
    scheme, authority, path = found.groups()
    if has_host and _name_and_port(authority, scheme) != _name_and_port(host, scheme):
        raise malformed("the request target and Host name different hosts")
    fields[:] = [(b"host", authority), *(pair for pair in fields if pair[0] != b"host")]
    # Without a path, OPTIONS means the server itself (section 3.2.4).
    path = path or (b"*" if method == b"OPTIONS" else b"/")
    return (b"/" + path if path.startswith(b"?") else path), authority


def _name_and_port(authority: bytes, scheme: bytes) -> tuple[bytes, bytes]:
    """Return both in a form in which equal ones are the same bytes (RFC 9110 section 4.2.3)."""
    name, colon, port = authority.lower().rpartition(b":")
    if not colon or authority.endswith(b"]"):
        name, port = authority.lower(), b""
    return name, (port and (port.lstrip(b"0") or b"0")) or _DEFAULT_PORTS[scheme.lower()]


class _PendingBody:
    """A placeholder for the body of a request until its exchange begins."""

    ended = False
    trailers: Headers = []  # noqa: RUF012 - it is never changed

    def read(self) -> Coroutine[Any, Any, bytes]:
        raise AssertionError("a body is not read before its exchange begins")


PENDING_BODY = _PendingBody()
