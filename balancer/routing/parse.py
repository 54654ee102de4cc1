"""Parsers of routes: in one line, or in a TOML file."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from balancer.config.display import show, variable
from balancer.config.files import why_unreadable
from balancer.config.parsers import entries
from balancer.config.settings import Settings, SettingsError
from balancer.routing.table import Table
from balancer.routing.table_builder import KINDS, PER_POOL, TableBuilder
from balancer.types import Address


def inline(setting: str) -> bool:
    """Whether the setting is the table itself, not the path of a file."""
    return "=" in setting


def read(settings: Settings) -> Table | None:
    """Return the table of the settings, or None without one. Raises SettingsError with a line for each fault."""
    if settings.routes is None:
        return None
    if inline(settings.routes):
        return parse_inline(settings.routes, settings)
    path = Path(settings.routes)
    where = f"{variable('routes')}={settings.routes}"
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Editors on Windows begin a file with a byte order mark.
    except (OSError, ValueError) as error:
        words = why_unreadable(settings.routes, error) if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError([f"{where} cannot be used: {words}; it takes {KINDS['routes'].accepts}"]) from error
    return parse_toml(text, settings, where)


def parse_inline(text: str, settings: Settings) -> Table:
    """Parse ``shop.example=shop:8080,/api=api;policy=hash,=apps``: routes with commas or newlines between.

    Raises SettingsError with a line for each fault.
    """
    builder = TableBuilder(settings)
    # What follows a semicolon belongs to the same route, on another line too.
    for entry in filter(None, entries(re.sub(r"\s*;\s*", ";", text))):
        where = f"{variable('routes')}: {entry!r}"
        match, equals, target = entry.partition("=")
        if not equals:
            builder.problems.append(f"{where} cannot be used: a route is written as host/path=alias:port")
            continue
        host, slash, path = match.strip().partition("/")
        place, *options = (part.strip() for part in target.split(";"))
        alias, colon, port = _split(place)
        values: dict[str, object] = {"alias": alias.strip()}
        if colon:
            values["upstream_port"] = port.strip() or ":"
        for option in filter(None, options):
            name, equals, value = (part.strip() for part in option.partition("="))
            if not equals or name in values or name in ("host", "path"):
                builder.problems.append(f"{where} cannot be used: {option!r} is not a setting such as policy=hash")
            else:
                values[name] = value
        builder.add(where, [host], [slash + path], values, "", target.strip())
    return builder.table(f"{variable('routes')}={text!r}")


def _split(place: str) -> tuple[str, str, str]:
    """Split ``alias:port``; an alias that is an IPv6 address is in brackets."""
    address, bracket, rest = place.partition("]") if place.startswith("[") else ("", "", place)
    name, colon, port = rest.partition(":")
    return address + bracket + name, colon, port


def parse_toml(text: str, settings: Settings, where: str) -> Table:
    """Parse a TOML table for each route, named as its pool is.

    Raises SettingsError with a line, which begins with ``where``, for each fault.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{where} cannot be used: it is not TOML: {error}"]) from error
    builder = TableBuilder(settings)
    for name, values in tables.items():
        here = f"{where} [{name}]"
        if not isinstance(values, dict):
            builder.problems.append(f"{here} cannot be used: a route is a table such as [shop]")
            continue
        values = dict(values)
        hosts, paths = (builder.texts(here, key, values.pop(key, "")) for key in ("host", "path"))
        builder.add(here, hosts, paths, {"alias": name} | values, name, name)
    return builder.table(where)


def describe(table: Table, settings: Settings) -> list[str]:
    """Return a line for each route, in the order in which they win: its pool, and what that pool has of its own."""
    width = max(len(str(route)) for route in table.routes)
    lines = []
    for route in table.routes:
        pool = table.pools[route.name]
        own = [
            f"{field.name}={show(getattr(pool, field.name), field.metadata['kind'])}"
            for field in fields(Settings)
            if field.name in PER_POOL - {"alias", "upstream_port"}
            and getattr(pool, field.name) != getattr(settings, field.name)
        ]
        if route.strip_prefix:
            own.append("strip_prefix=on")
        place = Address(pool.alias, pool.upstream_port)
        lines.append(" ".join([f"{route!s:{width}} -> {place}", *own]))
    return lines
