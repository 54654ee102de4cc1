"""A request's header fields, as a member gets them.

Rules: RFC 9110 section 7.6.1 (hop-by-hop fields, and those that ``Connection`` names), RFC 7239
(``Forwarded``), and the de-facto ``X-Forwarded-*``. A gateway of CGI or WSGI makes one variable of ``X-Forwarded-For``
and ``X_Forwarded_For`` (RFC 3875 section 4.1.18). So a name that becomes one of the balancer's does not pass.
``balancer.http.loops`` has the rules of ``CDN-Loop``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Set

from balancer.http import loops
from balancer.http.headers import HOP_BY_HOP, X_FORWARDED, Headers, as_lines, folded, nominated, response_headers
from balancer.http.request import Request
from balancer.http.value_cache import ValueCache, cached
from balancer.types import IPNetwork

_LISTS = frozenset({b"x-forwarded-for", b"forwarded"})
PREFIX_FIELD = b"x-forwarded-prefix"

# Fields that the balancer writes or relies on. Another name for one of them does not pass.
_SINGLE_NAMED = HOP_BY_HOP | {b"content-length", b"x-request-id", loops.FIELD}
_SINGLE_NAMED_PREFIXES = (X_FORWARDED, b"x-balancer-")

_TOKEN_LIKE = re.compile(rb"[A-Za-z0-9.:_\[\]-]+")


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
        self._mark: tuple[tuple[bytes, bytes], ...] = ()
        self._mark_line = b""
        self._dropped = ValueCache(self._drops, 1024)
        self.trusts = cached(1024)(self._trusts)

    def mark(self, mark: bytes) -> None:
        """Mark each request, from now on, as one that has passed here; those that have the mark are refused."""
        self._mark = ((loops.FIELD, mark),)
        self._mark_line = as_lines([*self._mark])
        self._dropped.clear()

    def _drops(self, name: bytes) -> bool:
        """Whether a field of a request does not go on as it is. (Each name is looked at once.)"""
        if (plain := folded(name)) != name and (
            (self._drop_underscores and b"_" in name)
            or plain in _SINGLE_NAMED
            or plain in self._own
            or plain.startswith(_SINGLE_NAMED_PREFIXES)
        ):
            return True
        written = name in self._own or (name == loops.FIELD and self._mark != ())
        return written or name in HOP_BY_HOP or name == b"forwarded" or name.startswith(X_FORWARDED)

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
        Raises Refusal for a request that has come back.
        """
        dropped = self._dropped
        passed = [pair for pair in headers if not dropped[pair[0]]]
        te = b""
        if len(passed) == len(headers):
            passed += _first_hop((client, scheme, host))
            passed += self._mark
        else:
            passed, te = self._after_dropping(passed, headers, client, scheme, host)
        if chunked:
            passed.append((b"transfer-encoding", b"chunked"))
        if upgrade:
            passed += [(b"connection", b"upgrade"), (b"upgrade", upgrade)]
        elif te:
            # Trailers pass, so a client may announce that it takes them (RFC 9110 section 10.1.4).
            passed += [(b"connection", b"te"), (b"te", te)]
        return passed

    def pairs(self, request: Request) -> Headers:
        """Return the headers for the member. Raises Refusal for a request that has come back."""
        headers = self(request.headers, request.client, request.scheme, request.host, request.chunked, request.upgrade)
        return with_prefix(headers, request.prefix) if request.prefix else headers

    def lines(self, request: Request) -> bytes:
        """Return the header lines for the member, with a line break before each.

        Raises Refusal for a request that has come back.
        """
        client, scheme, host = request.client, request.scheme, request.host
        block = request.block
        if block is None or not request.lines or request.prefix or self._own:
            return as_lines(self.pairs(request), request.spelling)
        if block.forwarding and self.trusts(client):
            hop = as_lines(_forwarding(block.forwarding, client, scheme, host))
        else:
            hop = _first_hop_lines((client, scheme, host))
        return block.passed + hop + self._mark_line

    def _after_dropping(
        self, passed: Headers, headers: Headers, client: str, scheme: str, host: bytes
    ) -> tuple[Headers, bytes]:
        """Return the fields for the member, of a request some of whose fields do not go on, and what it has in ``TE``.

        ``passed``: those that do. Raises Refusal for a request that has come back.
        """
        te = options = b""
        forwarding: dict[bytes, list[bytes]] = {}
        passed_through: list[bytes] = []
        for name, value in headers:
            if not self._dropped[name]:
                continue
            if name == b"connection":
                options += b"," + value if options else value
            elif name == b"forwarded" or name.startswith(X_FORWARDED):
                forwarding.setdefault(name, []).append(value)
            elif name == loops.FIELD:
                passed_through.append(value)
            elif name == b"te" and b"trailers" in value.lower():
                te = b"trailers"
        if options and (gone := nominated(options)):
            passed = [pair for pair in passed if pair[0] not in gone]
        if forwarding and self.trusts(client):
            passed += _forwarding(forwarding, client, scheme, host)
        else:
            passed += _first_hop((client, scheme, host))
        return passed + self._marks_after(passed_through), te

    def _marks_after(self, values: list[bytes]) -> Headers:
        """Return the field with this mark behind those in ``values``. Raises Refusal if it is there already."""
        return [(name, loops.marked(values, mark)) for name, mark in self._mark]

    def of_local_call(self, headers: Headers, chunked: bool) -> Headers:
        """Return the fields for the member of a call of this program: as they are, but for those of this hop.

        ``chunked``: the body's length is unknown, so it goes on in chunks. Raises Refusal for a call that passes on the
        fields of a request that has been through this pool.
        """
        passed = response_headers(headers)
        passed_through = [value for name, value in passed if name == loops.FIELD]
        if passed_through and self._mark:
            passed = [pair for pair in passed if pair[0] != loops.FIELD]
        passed += self._marks_after(passed_through)
        return [*passed, (b"transfer-encoding", b"chunked")] if chunked else passed

    def origin(self, headers: Headers, client: str) -> str:
        """Return the address that the request came from: beyond the trusted proxies, as far as they name it."""
        if not self.trusts(client):
            return client
        hops = [hop.strip() for name, value in headers if name == b"x-forwarded-for" for hop in value.split(b",")]
        while hops and self.trusts(client):
            client = hops.pop().decode("latin-1")
        return client


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


@cached(1024, size=lambda hop: sum(map(len, hop)))
def _first_hop_lines(hop: tuple[str, str, bytes]) -> bytes:
    """Return the same as header lines."""
    return as_lines([*_first_hop(hop)])


def _forwarding(known: dict[bytes, list[bytes]], client_address: str, scheme_name: str, host: bytes) -> Headers:
    """Return the forwarding fields: those of a trusted proxy (``known``), extended by this hop.

    A proxy that named the client in one of the two ways is not extended in the other. A list that begins with the proxy
    itself would name the wrong client.
    """
    client, scheme = client_address.encode("ascii", "replace"), scheme_name.encode("ascii")
    out: Headers = [(name, value) for name, values in known.items() if name not in _LISTS for value in values]
    is_first = known.keys().isdisjoint(_LISTS)
    if is_first or b"x-forwarded-for" in known:
        hops = [*known.get(b"x-forwarded-for", ()), client or b"unknown"]
        out.append((b"x-forwarded-for", b", ".join(hops)))
    if is_first or b"forwarded" in known:
        hops = [*known.get(b"forwarded", ()), _forwarded_element(client, scheme, host)]
        out.append((b"forwarded", b", ".join(hops)))
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
