"""The pool of a request: several aliases behind one listener, by host and path prefix.

``Table`` is the setting ROUTES, whole and checked; ``Table.find`` chooses. No I/O.

Of all routes that match a request, the one with the most specific host wins. That is an exact one before ``*.example``,
a longer ``*.`` before a shorter one, and any of them before none. Among those with the same host, the longest path
prefix wins. So a request that no path of its host matches goes to the routes without a host.

A path is matched as the client wrote it, by whole segments, and goes to the member as it was written. That
is safe only where all servers read it alike, or a client gets past a prefix by writing it in another way:

* An escape that stands for itself (``%61`` is ``a``, RFC 3986 section 6.2.2.2) counts as that character.
* A path with a segment ``.`` or ``..`` is refused, also where that is written with escapes, or a parameter follows. So
  is one with a parameter (``;``) of an empty segment, or with an escaped slash in it.
* ``//``, a backslash, a parameter, and the escapes of ``/ \\ ; % ? #`` and NUL mean different things to
  different programs. The path is read in two ways: as it stands, and as the laxest would (escapes resolved twice,
  backslashes as slashes, a segment's end at ``;``, ``?``, ``#`` and NUL, empty segments dropped). If these lead to
  different routes, it is refused. Every other reading lies between: it finds each prefix that the first finds,
  and none that the second does not find. So if these two lead to one route, all do.

Where a host has one route, without a path, there is nothing to get past, and paths are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.http.validation import malformed
from balancer.http.value_cache import ValueCache
from balancer.routing.path_safety import UNCLEAR, most_permissive, resolve_harmless

# Hosts whose routes are cached: a client can make up hosts.
_HOSTS_MAX = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A route. ``host``: exact, ``*.example`` or "" for any; ``prefix``: a path prefix without a final slash, or "".

    ``name``: of the pool that it leads to. ``strip_prefix``: members get the path without the prefix.
    """

    host: str
    prefix: str
    name: str
    strip_prefix: bool = False

    def __str__(self) -> str:
        return f"{self.host}{self.prefix or '/'}"


class Paths(NamedTuple):
    """The routes of one host by their prefix as bytes, and the most segments that a prefix has."""

    routes: dict[bytes, Route]
    depth: int

    def find(self, path: bytes) -> Route | None:
        """Return the route with the longest prefix, at the same cost for any number of routes."""
        segments = path.split(b"/", self.depth + 1)[: self.depth + 1]
        while segments:
            route = self.routes.get(b"/".join(segments))
            if route:
                return route
            segments.pop()
        return None


class Table:
    """All routes. ``pools``: the settings of each pool by its name; ``routes``: in the order in which they win.

    Routes with the same settings share a pool.
    """

    def __init__(self, routes: Iterable[Route], pools: Mapping[str, Settings]) -> None:
        self.pools = dict(pools)
        self.routes = sorted(routes, key=_rank)
        self._by_host: dict[str, Paths] = {}
        for route in self.routes:
            paths = self._by_host.setdefault(route.host, Paths({}, 0))
            paths.routes[route.prefix.encode()] = route
            self._by_host[route.host] = paths._replace(depth=max(paths.depth, route.prefix.count("/")))
        # The most labels behind the asterisk of a route. A host may have thousands, which then need not be joined.
        self._labels = max((host.count(".") for host in self._by_host), default=0)
        # Routes to be searched for any host as it was written, in this order.
        self._chains = ValueCache(self._chain, _HOSTS_MAX)

    def find(self, request: Request) -> Route:
        """Return the route of a request, whose ``prefix`` and ``stripped`` are set if the route strips it.

        Raises Refusal where there is none, and where it depends on the reading of the path.
        """
        chain = self._chains[request.host]
        if len(chain) == 1 and not chain[0].depth:
            return chain[0].routes[b""]
        path = request.target.partition(b"?")[0]
        if not path.startswith(b"/"):
            path = b"/"  # "*", of OPTIONS
        if UNCLEAR.search(path):
            route = _find(chain, resolve_harmless(path))
            if _find(chain, most_permissive(path)) is not route:
                raise malformed("the path could be read in two ways, which lead to different routes")
        else:
            route = _find(chain, path)
        if route is None:
            raise Refusal(404, "no_route", "no route leads from this host and path to a pool")
        if route.strip_prefix:
            request.prefix = quote(route.prefix, safe="/:@!$&'()*+,=~").encode()
            request.stripped = _strip(request.target, route.prefix.count("/"))
        return route

    def _chain(self, written: bytes) -> tuple[Paths, ...]:
        """Return the routes that a host may mean; those behind one without a path never apply."""
        host = _plain_host(written)
        labels = host.split(".")
        first = max(1, len(labels) - self._labels)
        wildcards = ("*." + ".".join(labels[at:]) for at in range(first, len(labels)))
        found = []
        for name in (host, *wildcards, ""):
            if paths := self._by_host.get(name):
                found.append(paths)
                if b"" in paths.routes:
                    break
        return tuple(found)


def _rank(route: Route) -> tuple[bool, bool, int, str, int, str]:
    """Return a key that sorts routes in the order in which they win, and those that cannot meet by name."""
    host = route.host
    return not host, host.startswith("*"), -host.count("."), host, -route.prefix.count("/"), route.prefix


def _find(chain: Iterable[Paths], path: bytes) -> Route | None:
    for paths in chain:
        if route := paths.find(path):
            return route
    return None


def _plain_host(host: bytes) -> str:
    """Return a host without port, case and the dot of the root."""
    name = host.decode("latin-1").lower()
    if not name.endswith("]"):
        name, colon, port = name.rpartition(":")
        if not colon:
            name = port
    return name.removesuffix(".")


def _strip(target: bytes, segments: int) -> bytes:
    """Return a target without the first segments of its path.

    It has one slash in front: two would announce a host, and for browsers a backslash is a slash (WHATWG URL, 4.4).
    """
    path, mark, query = target.partition(b"?")
    rest = path.split(b"/", segments + 1)[segments + 1 :]
    return b"/" + b"".join(rest).lstrip(b"/\\") + mark + query
