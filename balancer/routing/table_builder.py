"""A table of routes in the making, and its faults. No I/O."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from balancer.config.display import show, variable
from balancer.config.parsers import Kind
from balancer.config.settings import RENAMED, Settings, SettingsError
from balancer.routing.table import Route, Table

# The settings that a route may have of its own. All others are the listener's, or the process's.
PER_POOL = frozenset(
    {
        "alias", "upstream_port", "dns_record", "resolver", "resolve_interval", "policy", "hash_key",
        "hash_balance_factor", "sticky_cookie", "slow_start", "max_requests_per_member", "health_path", "health_host",
        "health_status", "health_body", "health_interval", "health_timeout", "health_rise", "health_fall", "eject",
        "eject_max_percent", "hung_timeout", "queue_timeout", "queue_max", "queue_max_bytes", "max_queue_share",
        "connect_timeout", "response_timeout", "stream_idle_timeout", "retries", "retry_status", "idempotency_header",
        "max_body_bytes",
    }
)  # fmt: skip
# Keys that only a route has.
_OWN = ("host", "path", "strip_prefix")
KINDS: dict[str, Kind] = {field.name: field.metadata["kind"] for field in fields(Settings)}
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
_ACCEPTED_HOST = "a host such as shop.example or *.shop.example, without a port"
_ACCEPTED_PATH = "a path prefix such as /api, without . and .., //, ; ? # % and \\"


class TableBuilder:
    """A table in the making, and its faults."""

    def __init__(self, settings: Settings) -> None:
        self.problems: list[str] = []
        self._settings = settings
        # The name of each set of settings, or "" where it has none yet.
        self._names: dict[Settings, str] = {}
        self._places: dict[Settings, str] = {}
        self._routes: dict[tuple[str, str], tuple[Settings, bool, str]] = {}

    def texts(self, where: str, key: str, value: object) -> list[str]:
        """Return a string or a list of strings as a list; note a fault for any other value."""
        values = value if isinstance(value, list) else [value]
        texts = [text for text in values if isinstance(text, str)]
        if not texts or len(texts) < len(values):
            self.problems.append(f"{where} {key}={value!r} cannot be used: it takes a string, or a list of some")
        return texts

    def add(
        self, where: str, hosts: list[str], paths: list[str], own: dict[str, object], name: str, place: str
    ) -> None:
        """Add a route from every host and path. ``place``: name of a pool without a name whose alias has several."""
        before = len(self.problems)
        strip = own.pop("strip_prefix", False)
        if strip not in (True, False, "on", "off"):
            self.problems.append(f"{where} strip_prefix={strip!r} cannot be used: it takes true (on) or false (off)")
        strips = strip in (True, "on")
        hosts = [checked for checked in (self._host(where, host) for host in hosts) if checked is not None]
        paths = [checked for checked in (self._path(where, path) for path in paths) if checked is not None]
        if strips and "" in paths:
            self.problems.append(f"{where} strip_prefix cannot be used without a path")
        values = self._values(where, own)
        if len(self.problems) > before:
            return
        settings = replace(self._settings, **values)
        useless = [(key, needed) for key, needed in settings.incomplete_in_pool() if key in own]
        if useless:
            self.problems += [
                f"{where} {key}={own[key]!r} cannot be used without {' and '.join(needed)}" for key, needed in useless
            ]
            return
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

    def _values(self, where: str, own: Mapping[str, object]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in own.items():
            if name not in KINDS:
                known = [*PER_POOL, *_OWN]
                close = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, known, n=1, cutoff=0.8)
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
                    values[name] = KINDS[name].read(_text(value))
                except ValueError as error:
                    self.problems.append(f"{where} {name}={value!r} {error}")
        return values

    def _check_complete(self, pools: Collection[Settings]) -> None:
        """Note settings of the environment that have no effect in any pool."""
        useless = [dict(pool.incomplete_in_pool()) for pool in pools]
        for name, needed in self._settings.incomplete_in_pool():
            if all(name in of_pool for of_pool in useless):
                written = f"{variable(name)}={show(getattr(self._settings, name), KINDS[name])!r}"
                words = " and ".join(f"{variable(key)}, or a {key} of a route" for key in needed)
                self.problems.append(f"{written} cannot be used without {words}")

    def table(self, where: str) -> Table:
        """Return the table. Raises SettingsError with a line for each fault."""
        if not self._routes and not self.problems:
            self.problems.append(f"{where} cannot be used: there is no route in it")
        names = self._pool_names()
        routes = [
            Route(host, path, names[settings], strips) for (host, path), (settings, strips, _) in self._routes.items()
        ]
        self._check_cookies(routes, names)
        if not self.problems:
            self._check_complete(names)
        if self.problems:
            raise SettingsError(self.problems)
        return Table(routes, {name: settings for settings, name in names.items()})

    def _pool_names(self) -> dict[Settings, str]:
        """Return a name for each pool: its own, else its alias, or its place where an alias has several."""
        names: dict[Settings, str] = {}
        for settings, name in self._names.items():
            alone = sum(pool.alias == settings.alias for pool in self._names) == 1
            names[settings] = name or (settings.alias if alone else self._places[settings])
        return names

    def _check_cookies(self, routes: list[Route], names: Mapping[Settings, str]) -> None:
        """Note two pools with the same cookie for the same client: each would undo what the other has set."""
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
    """Return a value of TOML as the text of a variable: empty, which no kind takes, for tables, lists and dates."""
    match value:
        case str():
            return value
        case bool():
            return "on" if value else "off"
        case int() | float():
            return str(value)
    return ""
