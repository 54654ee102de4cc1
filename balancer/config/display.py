"""Settings as text for people."""

from __future__ import annotations

import re

from balancer.config.parsers import HASH_KEY, URL, Kind
from balancer.types import Address, UnixSocket

PREFIX = "BALANCER_"

# RFC 3986 section 3.2.1.
_USERINFO = re.compile(r"(?<=://)[^/?#@\s]*@")


def variable(name: str) -> str:
    """Return the environment variable of a field: ``BALANCER_RESOLVE_INTERVAL``."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """Return the command-line flag of a field: ``--resolve-interval``."""
    return "--" + name.replace("_", "-")


def without_userinfo(text: str) -> str:
    """Return a text in which a URL has no user and password."""
    return _USERINFO.sub("(not shown)@", text)


def show(value: object, kind: Kind) -> str:
    """Return a setting's value in the form of a variable."""
    if kind.secret and value is not None:
        return "(set)"
    match value:
        case None:
            return kind.unset
        case Address() | UnixSocket():
            return str(value)
        case ("client", ""):
            return "client"
        case ("header" | "cookie", str()) if kind is HASH_KEY:
            return ":".join(value)
        case frozenset():
            return ",".join(ranges(value)) or kind.unset
        case tuple():
            return ",".join(map(str, value)) or kind.unset
        case str() if kind is URL:
            return without_userinfo(value)
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
    return str(value)


def ranges(numbers: frozenset[int]) -> list[str]:
    """Return numbers in rising order, those that follow each other as a range: ``["200-299", "401"]``."""
    firsts = sorted(number for number in numbers if number - 1 not in numbers)
    lasts = sorted(number for number in numbers if number + 1 not in numbers)
    return [f"{first}-{last}" if first < last else f"{first}" for first, last in zip(firsts, lasts, strict=True)]


def as_text(value: object, kind: Kind) -> str:
    """Return a value in the form of a variable, to the last digit, secrets as well."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | set | tuple) and not isinstance(value, Address | UnixSocket) and kind is not HASH_KEY:
        return ",".join(map(str, value))
    return str(value) if isinstance(value, float) else show(value, kind)
