"""Header fields that cross the balancer, and those that it writes itself.

Header fields are raw pairs ``list[tuple[bytes, bytes]]`` with lower-case names, in the order in which they came. Fields
that are not named here pass untouched, duplicates included.

Rules: RFC 9110 section 7.6.1 (hop-by-hop fields, and those that ``Connection`` names), RFC 7239
(``Forwarded``), and the de-facto ``X-Forwarded-*``. A gateway of CGI or WSGI makes one variable of ``X-Forwarded-For``
and ``X_Forwarded_For`` (RFC 3875 section 4.1.18). So a name that becomes one of the balancer's does not pass.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Set

from balancer.http.memo import ValueCache, cached
from balancer.types import IPNetwork

Headers = list[tuple[bytes, bytes]]

# Never added to.
NO_FIELDS: Headers = []

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

_LISTS = frozenset({b"x-forwarded-for", b"forwarded"})
_X_FORWARDED = b"x-forwarded-"
PREFIX_FIELD = b"x-forwarded-prefix"


# Fields of a trace (W3C Trace Context). A proxy that takes part in it writes the first anew.
TRACE_FIELDS = frozenset({b"traceparent"})


# What a gateway makes "_" of; most do so with "-" alone, some with every mark (lighttpd).
_MARKS = re.compile(rb"[^a-z0-9]")
# Fields that the balancer writes or relies on. Another name for one of them does not pass.
_SINGLE_NAMED = HOP_BY_HOP | {b"content-length", b"x-request-id"}
_SINGLE_NAMED_PREFIXES = (_X_FORWARDED, b"x-balancer-")

# Digits of a body's length: no body is longer, and every integer of 64 bits can hold it.
LENGTH_DIGITS = 18

_TOKEN_LIKE = re.compile(rb"[A-Za-z0-9.:_\[\]-]+")


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


def trailers(fields: Headers) -> Headers:
    """Return the fields after a body that go on."""
    return [pair for pair in fields if _may_trail(pair[0])]


def _may_trail(name: bytes) -> bool:
    name = folded(name)
    return name not in NO_TRAILERS and not name.startswith((_X_FORWARDED, b"if-"))


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


class RequestHeaders:
    """Turns a client's request fields into those for a member.

    ``trusted``: networks whose ``X-Forwarded-*`` and ``Forwarded`` are kept and extended. From
    other peers they are replaced, so that a member can rely on them. ``own``: fields that the caller writes.
    ``drop_underscores``: no field passes whose name has an underscore.
    """

    def __init__(
        self, trusted: tuple[IPNetwork, ...] = (), own: Set[bytes] = frozenset(), drop_underscores: bool = False
    ) -> None:
        self._trusted = trusted
        self._own = own
        self._drop_underscores = drop_underscores
        self._dropped = ValueCache(self._drops, 1024)
        self.trusts = cached(1024)(self._trusts)

    def _drops(self, name: bytes) -> bool:
        """Whether a field of a request does not go on as it is. (Each name is looked at once.)"""
        if (plain := folded(name)) != name and (
            (self._drop_underscores and b"_" in name)
            or plain in _SINGLE_NAMED
            or plain in self._own
            or plain.startswith(_SINGLE_NAMED_PREFIXES)
        ):
            return True
        return name in HOP_BY_HOP or name in self._own or name == b"forwarded" or name.startswith(_X_FORWARDED)

    def _trusts(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any(address in network or (mapped and mapped in network) for network in self._trusted)

    def __call__(
        self, headers: Headers, client: str, scheme: str, host: bytes, chunked: bool = False, upgrade: bytes = b""
    ) -> Headers:
        """Return the fields for the member, without hop-by-hop ones and with the forwarding ones.

        ``client``: the peer's IP address, or "" where there is none (a Unix socket). ``host``: the value of Host.
        ``chunked``: the body's length is unknown, so it goes on in chunks. ``upgrade``: the protocol to ask for.
        """
        dropped = self._dropped
        passed = [pair for pair in headers if not dropped[pair[0]]]
        te = options = b""
        if len(passed) == len(headers):
            passed += _first_hop((client, scheme, host))
        else:
            forwarding: dict[bytes, list[bytes]] = {}
            for name, value in headers:
                if not dropped[name]:
                    continue
                if name == b"connection":
                    options += b"," + value if options else value
                elif name == b"forwarded" or name.startswith(_X_FORWARDED):
                    forwarding.setdefault(name, []).append(value)
                elif name == b"te" and b"trailers" in value.lower():
                    te = b"trailers"
            if options and (gone := nominated(options)):
                passed = [pair for pair in passed if pair[0] not in gone]
            if forwarding and self.trusts(client):
                passed += _forwarding(forwarding, client, scheme, host)
            else:
                passed += _first_hop((client, scheme, host))
        if chunked:
            passed.append((b"transfer-encoding", b"chunked"))
        if upgrade:
            passed += [(b"connection", b"upgrade"), (b"upgrade", upgrade)]
        elif te:
            # Trailers pass, so a client may announce that it takes them (RFC 9110 section 10.1.4).
            passed += [(b"connection", b"te"), (b"te", te)]
        return passed

    def origin(self, headers: Headers, client: str) -> str:
        """Return the address that the request came from: beyond the trusted proxies, as far as they name it."""
        if not self.trusts(client):
            return client
        hops = [hop.strip() for name, value in headers if name == b"x-forwarded-for" for hop in value.split(b",")]
        while hops and self.trusts(client):
            client = hops.pop().decode("latin-1")
        return client


def local_call_headers(headers: Headers, chunked: bool) -> Headers:
    """Return the fields for the member of a call of this program: as they are, but for those of this hop.

    ``chunked``: the body's length is unknown, so it goes on in chunks.
    """
    passed = response_headers(headers)
    return [*passed, (b"transfer-encoding", b"chunked")] if chunked else passed


def with_prefix(headers: Headers, prefix: bytes) -> Headers:
    """Return the fields for a member with the path ``prefix``, which its target has lost here.

    ``X-Forwarded-Prefix`` is de facto: one path, to be put in front of the paths of links. A prefix that a trusted
    proxy in front has cut off comes first, unless ``prefix`` has it already.
    """
    before = b"".join(
        piece.strip().rstrip(b"/") for name, value in headers if name == PREFIX_FIELD for piece in value.split(b",")
    )
    whole = prefix if prefix.startswith(before) else before + prefix
    return [*(pair for pair in headers if pair[0] != PREFIX_FIELD), (PREFIX_FIELD, whole)]


@cached(1024, size=lambda hop: sum(map(len, hop)))
def _first_hop(hop: tuple[str, str, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the forwarding fields where no trusted proxy was before; a client's requests nearly always share them.

    ``hop``: the client's address, the scheme and the value of Host.
    """
    return tuple(_forwarding({}, *hop))


def _forwarding(known: dict[bytes, list[bytes]], client_address: str, scheme_name: str, host: bytes) -> Headers:
    """Return the forwarding fields: those of a trusted proxy (``known``), extended by this hop.

    A proxy that named the client in one of the two ways is not extended in the other. A list that begins with the proxy
    itself would name the wrong client.
    """
    client, scheme = client_address.encode("ascii", "replace"), scheme_name.encode("ascii")
    out: Headers = [(name, value) for name, values in known.items() if name not in _LISTS for value in values]
    for name, hop in (
        (b"x-forwarded-for", client or b"unknown"),
        (b"forwarded", _forwarded_element(client, scheme, host)),
    ):
        if name in known or not known.keys() & _LISTS:
            out.append((name, b", ".join([*known.get(name, ()), hop])))
    if b"x-forwarded-proto" not in known:
        out.append((b"x-forwarded-proto", scheme))
    if host and b"x-forwarded-host" not in known:
        out.append((b"x-forwarded-host", host))
    return out


def _forwarded_element(client: bytes, scheme: bytes, host: bytes) -> bytes:
    """Return one element of ``Forwarded`` (RFC 7239 section 4); an odd Host is left out, not quoted into it."""
    node = b'"[%s]"' % client if b":" in client else client or b"unknown"
    named = b';host="%s"' % host if _TOKEN_LIKE.fullmatch(host) else b""
    return b"for=%s%s;proto=%s" % (node, named, scheme)
