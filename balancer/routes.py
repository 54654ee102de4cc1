"""Which pool serves a request: several aliases behind one listener, by host and path prefix.

``Table`` is what the setting ROUTES says, whole and checked; ``Table.find`` chooses. No I/O, but that ``read`` reads
the file.

Of all routes that match a request, the one with the most specific host wins: an exact one before ``*.example``,
a longer ``*.`` before a shorter one, and any of them before none. Among those with the same host, the longest path
prefix wins. So a request that no path of its host matches goes to the routes without a host.

A path is matched as the client wrote it, by whole segments, and goes to the member as it was written. That
is safe only where everybody reads it alike, so that nobody gets past a prefix by writing it in another way:

* An escape that stands for itself (``%61`` is ``a``, RFC 3986 section 6.2.2.2) counts as that character.
* A path with a segment ``.`` or ``..`` is refused, also where that is written with escapes, or a parameter follows; and
  one with a parameter (``;``) of an empty segment, or with an escaped slash in it.
* ``//``, a backslash, a parameter, and the escapes of ``/ \\ ; % ? #`` and NUL mean different things to
  different programs. The path is read in two ways: as it stands, and as the laxest would (escapes resolved twice,
  backslashes as slashes, a segment's end at ``;``, ``?``, ``#`` and NUL, empty segments dropped). If these lead to
  different routes, it is refused. Every other reading lies between: it finds each prefix that the first finds,
  and none that the second does not find. So if these two lead to one route, all do.

Where a host has one route, without a path, there is nothing to get past, and paths are not looked at.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from balancer.config.settings import Kind, Settings, SettingsError, show, variable
from balancer.errors import Refusal
from balancer.http.memo import Known
from balancer.http.request import Request
from balancer.http.validation import malformed

# The settings that a route may have of its own. All others are the listener's, or the process's.
PER_POOL = frozenset(
    {
        "alias", "upstream_port", "record", "resolver", "resolve_interval", "policy", "hash_key", "sticky_cookie",
        "slow_start", "max_requests_per_member", "health_path", "health_host", "health_interval", "health_timeout",
        "health_fall", "hung_timeout", "hold_seconds", "hold_max", "hold_bytes", "connect_timeout",
        "response_timeout", "idle_timeout", "max_body",
    }
)  # fmt: skip

# What only a route has.
_OWN = ("host", "path", "strip_prefix")

_KINDS: dict[str, Kind] = {it.name: it.metadata["kind"] for it in fields(Settings)}
_DEFAULTS: dict[str, Any] = {it.name: it.default for it in fields(Settings)}

_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
_ACCEPTED_HOST = "a host such as shop.example or *.shop.example, without a port"
_ACCEPTED_PATH = "a path prefix such as /api, without . and .., //, ; ? # % and \\"

# Paths without any of these are read alike by everybody.
_UNCLEAR = re.compile(rb"[%\\;]|//|/\.")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# Where a segment ends for a program that knows parameters, or that looks for the end of the path in resolved escapes.
_SEGMENT_END = re.compile(rb"[;?#\0]")
# What is not the same once it is resolved, because it would separate.
_KEPT = frozenset(b"/\\;%?#\0")

# Hosts whose routes are remembered: anybody can make up hosts.
_HOSTS_MAX = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """``host``: exact, ``*.example`` or "" for any; ``prefix``: a path prefix without a slash at its end, or "".

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
        """The route with the longest prefix. Costs the same however many there are."""
        segments = path.split(b"/", self.depth + 1)[: self.depth + 1]
        while segments:
            route = self.routes.get(b"/".join(segments))
            if route:
                return route
            segments.pop()
        return None


class Table:
    """``pools``: the settings of each pool by its name; ``routes``: in the order in which they win.

    Routes with the same settings share a pool.
    """

    def __init__(self, routes: Iterable[Route], pools: Mapping[str, Settings]) -> None:
        self.pools = dict(pools)
        self.routes = sorted(routes, key=_rank)
        self._by_host: dict[str, Paths] = {}
        for route in self.routes:
            known = self._by_host.setdefault(route.host, Paths({}, 0))
            known.routes[route.prefix.encode()] = route
            self._by_host[route.host] = known._replace(depth=max(known.depth, route.prefix.count("/")))
        # The most labels behind the asterisk of a route. A host may have thousands, which then need not be joined.
        self._labels = max((host.count(".") for host in self._by_host), default=0)
        # Any host, as it was written, and the routes to look at for it in this order.
        self._chains = Known(self._chain, _HOSTS_MAX)

    def find(self, request: Request) -> Route:
        """The route of a request, whose ``prefix`` and ``stripped`` are set if the route strips it.

        Raises Refusal where there is none, and where it depends on who reads the path.
        """
        chain = self._chains[request.host]
        if len(chain) == 1 and not chain[0].depth:
            return chain[0].routes[b""]
        path = request.target.partition(b"?")[0]
        if not path.startswith(b"/"):
            path = b"/"  # "*", of OPTIONS
        if _UNCLEAR.search(path):
            route = _find(chain, _ESCAPE.sub(_resolve_harmless, path))
            if _find(chain, _laxest(path)) is not route:
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
        """The routes that may be meant by a host; what comes behind one without a path never is."""
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
    """Routes sorted by this come in the order in which they win, those that cannot meet by name."""
    host = route.host
    return not host, host.startswith("*"), -host.count("."), host, -route.prefix.count("/"), route.prefix


def _find(chain: Iterable[Paths], path: bytes) -> Route | None:
    for paths in chain:
        if route := paths.find(path):
            return route
    return None


def _plain_host(host: bytes) -> str:
    """Without port, case and the dot of the root."""
    name = host.decode("latin-1").lower()
    if not name.endswith("]"):
        name, colon, port = name.rpartition(":")
        if not colon:
            name = port
    return name.removesuffix(".")


def _resolve(escape: re.Match[bytes]) -> bytes:
    return bytes((int(escape[1], 16),))


def _resolve_harmless(escape: re.Match[bytes]) -> bytes:
    byte = int(escape[1], 16)
    return escape[0] if byte in _KEPT else bytes((byte,))


def _laxest(path: bytes) -> bytes:
    """A path as one would read it who sees a separator wherever anybody does.

    Raises Refusal where that depends on what one does first: for ``.`` and ``..``, for a parameter of nothing, and for
    one with a separator in it.
    """
    segments = []
    for segment in path.split(b"/"):
        text = _ESCAPE.sub(_resolve, _ESCAPE.sub(_resolve, segment)).replace(b"\\", b"/")
        if end := _SEGMENT_END.search(text):
            if b"/" in text[end.end() :] or text[: end.start()].endswith(b"/") or not end.start():
                raise malformed("the path has a parameter that could be read in two ways")
            text = text[: end.start()]
        segments += text.split(b"/")
    if b"." in segments or b".." in segments:
        raise malformed("the path has a segment . or .., which could be read in two ways")
    return b"/" + b"/".join(filter(None, segments))


def _strip(target: bytes, segments: int) -> bytes:
    """A target without the first segments of its path. Of slashes it begins with one: two would announce a host."""
    path, mark, query = target.partition(b"?")
    rest = path.split(b"/", segments + 1)[segments + 1 :]
    return b"/" + b"".join(rest).lstrip(b"/") + mark + query


# What the setting says.


def inline(setting: str) -> bool:
    """Whether the setting is the table itself, rather than the path of a file."""
    return "=" in setting


def read(settings: Settings) -> Table | None:
    """The table that the settings name, or None without one. Raises SettingsError with a line for all that is wrong."""
    if settings.routes is None:
        return None
    if inline(settings.routes):
        return parse_inline(settings.routes, settings)
    path = Path(settings.routes)
    where = f"{variable('routes')}={settings.routes}"
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError([f"{where} cannot be used: {words}; it takes {_KINDS['routes'].accepts}"]) from error
    return parse_toml(text, settings, where)


def parse_inline(text: str, settings: Settings) -> Table:
    """``shop.example=shop:8080,/api=api;policy=hash,=apps``: routes with commas between.

    Raises SettingsError with a line for all that is wrong.
    """
    draft = _Draft(settings)
    for entry in filter(None, (it.strip() for it in text.split(","))):
        where = f"{variable('routes')}: {entry!r}"
        match, equals, target = entry.partition("=")
        if not equals:
            draft.problems.append(f"{where} cannot be used: a route is written as host/path=alias:port")
            continue
        host, slash, path = match.strip().partition("/")
        place, *options = (it.strip() for it in target.split(";"))
        alias, colon, port = place.partition(":")
        given: dict[str, object] = {"alias": alias.strip()}
        if colon:
            given["upstream_port"] = port.strip() or ":"
        for option in filter(None, options):
            name, equals, value = (it.strip() for it in option.partition("="))
            if not equals or name in given or name in ("host", "path"):
                draft.problems.append(f"{where} cannot be used: {option!r} is not a setting such as policy=hash")
            else:
                given[name] = value
        draft.add(where, [host], [slash + path], given, "", target.strip())
    return draft.table(f"{variable('routes')}={text!r}")


def parse_toml(text: str, settings: Settings, where: str) -> Table:
    """A table for each route, named as its pool is.

    Raises SettingsError with a line, which begins with ``where``, for all that is wrong.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{where} cannot be used: it is not TOML: {error}"]) from error
    draft = _Draft(settings)
    for name, given in tables.items():
        here = f"{where} [{name}]"
        if not isinstance(given, dict):
            draft.problems.append(f"{here} cannot be used: a route is a table such as [shop]")
            continue
        given = dict(given)
        hosts, paths = (draft.texts(here, key, given.pop(key, "")) for key in ("host", "path"))
        draft.add(here, hosts, paths, {"alias": name} | given, name, name)
    return draft.table(where)


class _Draft:
    """A table in the making, and what is wrong with it."""

    def __init__(self, settings: Settings) -> None:
        self.problems: list[str] = []
        self._settings = settings
        # Of each set of settings, the name that it has, or might have.
        self._names: dict[Settings, str] = {}
        self._places: dict[Settings, str] = {}
        self._routes: dict[tuple[str, str], tuple[Settings, bool, str]] = {}

    def texts(self, where: str, key: str, value: object) -> list[str]:
        values = value if isinstance(value, list) else [value]
        texts = [it for it in values if isinstance(it, str)]
        if not texts or len(texts) < len(values):
            self.problems.append(f"{where} {key}={value!r} cannot be used: it takes a string, or a list of some")
        return texts

    def add(
        self, where: str, hosts: list[str], paths: list[str], given: dict[str, object], name: str, place: str
    ) -> None:
        """A route from every host and path. ``place``: what tells its pool from others where ``name`` is not given."""
        before = len(self.problems)
        strip = given.pop("strip_prefix", False)
        if strip not in (True, False, "on", "off"):
            self.problems.append(f"{where} strip_prefix={strip!r} cannot be used: it takes true (on) or false (off)")
        strips = strip in (True, "on")
        hosts = [it for it in (self._host(where, host) for host in hosts) if it is not None]
        paths = [it for it in (self._path(where, path) for path in paths) if it is not None]
        if strips and "" in paths:
            self.problems.append(f"{where} strip_prefix cannot be used without a path")
        values = self._values(where, given)
        if len(self.problems) > before:
            return
        settings = replace(self._settings, **values)
        self._names.setdefault(settings, name)
        self._places.setdefault(settings, place)
        for host in hosts:
            for path in paths:
                if other := self._routes.get((host, path)):
                    self.problems.append(f"{where} cannot be used: {other[2]} has {host}{path or '/'} already")
                    return
                self._routes[host, path] = settings, strips, where

    def _host(self, where: str, text: str) -> str | None:
        host = text.lower().removesuffix(".")
        if not host or (_HOST.fullmatch(host) and ".." not in host):
            return host
        self.problems.append(f"{where} host={text!r} cannot be used: it takes {_ACCEPTED_HOST}")
        return None

    def _path(self, where: str, text: str) -> str | None:
        path = text.rstrip("/")
        segments = path.split("/")[1:]
        clean = not re.search(r"[\x00-\x20\x7f%\\;?#]", path) and not {"", ".", ".."} & set(segments)
        if not path or (path.startswith("/") and clean):
            return path
        self.problems.append(f"{where} path={text!r} cannot be used: it takes {_ACCEPTED_PATH}")
        return None

    def _values(self, where: str, given: Mapping[str, object]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in _KINDS:
                close = difflib.get_close_matches(name, [*PER_POOL, *_OWN], n=1, cutoff=0.8)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.problems.append(f"{where} {name} cannot be used: it is not a setting of a route{hint}")
            elif name not in PER_POOL:
                words = f"it belongs to the listener, not to a route: set {variable(name)}"
                self.problems.append(f"{where} {name} cannot be used: {words}")
            elif value == "":
                values[name] = _DEFAULTS[name]  # as an empty variable is one that is not set
                if name == "alias":
                    self.problems.append(f"{where} cannot be used: an alias is missing")
            else:
                try:
                    values[name] = _KINDS[name].parse(_text(value))
                except (ValueError, KeyError):
                    self.problems.append(f"{where} {name}={value!r} cannot be used: it takes {_KINDS[name].accepts}")
        return values

    def table(self, where: str) -> Table:
        if not self._routes and not self.problems:
            self.problems.append(f"{where} cannot be used: there is no route in it")
        names = self._named()
        routes = [
            Route(host, path, names[settings], strips) for (host, path), (settings, strips, _) in self._routes.items()
        ]
        self._check_cookies(routes, names)
        if self.problems:
            raise SettingsError(self.problems)
        return Table(routes, {name: settings for settings, name in names.items()})

    def _named(self) -> dict[Settings, str]:
        """A name for each pool: the one given, else its alias, or what was written where an alias has several."""
        names: dict[Settings, str] = {}
        for settings, name in self._names.items():
            alone = sum(it.alias == settings.alias for it in self._names) == 1
            names[settings] = name or (settings.alias if alone else self._places[settings])
        return names

    def _check_cookies(self, routes: list[Route], names: Mapping[Settings, str]) -> None:
        """Two pools that set the same cookie for the same client would each undo what the other has set."""
        cookies = {name: settings.sticky_cookie for settings, name in names.items() if settings.sticky_cookie}
        for number, one in enumerate(routes):
            for other in routes[:number]:
                cookie = cookies.get(one.name)
                if cookie and one.name != other.name and cookie == cookies.get(other.name) and _meet(one, other):
                    words = "both have it, and a client of both would lose its place at each turn"
                    self.problems.append(
                        f"{variable('routes')}: sticky_cookie={cookie} cannot be used for {other} and {one}: {words}"
                    )
                    return


def _meet(one: Route, other: Route) -> bool:
    """Whether a host may have both routes."""
    for a, b in ((one.host, other.host), (other.host, one.host)):
        if not a or a == b or (a.startswith("*.") and b.endswith(a[1:])):
            return True
    return False


def _text(value: object) -> str:
    """A value of TOML as it would stand in a variable. Raises ValueError for what could not."""
    match value:
        case str():
            return value
        case bool():
            return "on" if value else "off"
        case int() | float():
            return str(value)
    raise ValueError("neither text nor a number")


def describe(table: Table, settings: Settings) -> list[str]:
    """A line for each route, in the order in which they win: where it leads, and what its pool has of its own."""
    width = max(len(str(it)) for it in table.routes)
    lines = []
    for route in table.routes:
        pool = table.pools[route.name]
        own = [
            f"{it.name}={show(getattr(pool, it.name), it.metadata['kind'])}"
            for it in fields(Settings)
            if it.name in PER_POOL - {"alias", "upstream_port"} and getattr(pool, it.name) != getattr(settings, it.name)
        ]
        if route.strip_prefix:
            own.append("strip_prefix=on")
        place = f"{pool.alias}:{pool.upstream_port}"
        lines.append(" ".join([f"{route!s:{width}} -> {place}", *own]))
    return lines
