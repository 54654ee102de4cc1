"""The request of httpx for a call, checked: what cannot be put into HTTP, or cannot be done, is refused here."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from balancer.errors import Refusal
from balancer.http.headers import Headers
from balancer.http.validation import TOKEN, check_passed

# RFC 9110 sections 5.1 and 5.5, RFC 9112 section 3.2: parts that cannot break out of their place in the head.
_VALUE = re.compile(rb"[^\0\r\n]*")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")

_NO_SWITCH = (
    "a call cannot switch to {protocol}: BalancedTransport has no connection to hand over. Connect with a client of"
    " that protocol to `balancer serve`, or to an application that mounts a LoadBalancer"
)


class RequestParts(NamedTuple):
    """What a member gets. ``length``: of the body in bytes, None where that is not known."""

    method: str
    target: bytes
    fields: Headers
    length: int | None


def request_parts(request: Any, httpx: Any) -> RequestParts:
    """Return the parts of a request of ``httpx``, which is either library.

    Raises its UnsupportedProtocol and LocalProtocolError, as its own transports do.
    """
    if request.url.scheme in ("ws", "wss"):
        raise httpx.UnsupportedProtocol(_NO_SWITCH.format(protocol="websocket"))
    if request.url.scheme != "http":
        raise httpx.UnsupportedProtocol(f"members are spoken to in plain HTTP, which {request.url.scheme!r} is not")
    target: bytes = request.extensions.get("target", request.url.raw_path)
    if request.method == "CONNECT" or not TOKEN.fullmatch(request.method.encode("latin-1", "replace")):
        raise httpx.LocalProtocolError(f"{request.method!r} is not a method for members")
    if not _TARGET.fullmatch(target):
        raise httpx.LocalProtocolError("the request target has a space or a line break, or there is none")
    fields = _fields(request, httpx)
    return RequestParts(request.method, target, fields, _length(fields, httpx))


def _fields(request: Any, httpx: Any) -> Headers:
    fields: Headers = []
    for name, value in request.headers.raw:
        name = name.lower()
        if not (TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
            raise httpx.LocalProtocolError(f"the header field {name!r} has a character that it must not have")
        if name == b"upgrade":
            raise httpx.UnsupportedProtocol(_NO_SWITCH.format(protocol=value.decode("latin-1")))
        fields.append((name, value))
    if not any(name == b"host" for name, _ in fields):
        fields.insert(0, (b"host", request.url.netloc))
    try:
        check_passed(fields)
    except Refusal as refusal:
        raise httpx.LocalProtocolError(refusal.reason) from None
    return fields


def _length(fields: Headers, httpx: Any) -> int | None:
    """Return the length of the body, None where it goes in chunks."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if len(lengths) > 1 or (codings and (lengths or codings != [b"chunked"])):
        raise httpx.LocalProtocolError("a request needs one Content-Length, or chunks")
    if lengths and not lengths[0].isdigit():
        raise httpx.LocalProtocolError("the Content-Length is not a number")
    return None if codings else int(lengths[0]) if lengths else 0
