"""Parsers of settings, and words for the values that they take. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from balancer.types import Address, IPNetwork, UnixSocket

# The policies that need no plug-in.
POLICIES = ("round_robin", "least_requests", "least_latency", "random", "hash")
# Characters of a text that reasons and logs quote.
LINE_MAX = 200


class Hint(ValueError):
    """A value cannot be used; the text says which part of it, or what may be meant."""


class Kind(NamedTuple):
    """A kind of setting. ``parse`` raises ValueError unless the text is what ``accepts`` describes."""

    parse: Callable[[str], Any]
    accepts: str
    unset: str = "(none)"  # how a value of None reads
    secret: bool = False  # a value that is never shown

    def is_blank(self, text: str) -> bool:
        """Whether a text counts as unset."""
        return not self._bare(text)

    def read(self, text: str) -> Any:
        """Return the value of a text. Raises ValueError with the words for it."""
        try:
            return self.parse(self._bare(text))
        except (ValueError, KeyError) as error:
            hint = f"; {error}" if isinstance(error, Hint) else ""
            raise ValueError(f"cannot be used: it takes {self.accepts}{hint}") from error

    def _bare(self, text: str) -> str:
        # A block of YAML ends with a newline. In a secret, white space is a fault.
        return text if self.secret else text.strip()


def entries(text: str) -> list[str]:
    """Return the entries of a list, with commas or newlines between: a block of YAML has each on a line of its own."""
    return re.split(r"\s*,?\s*[\r\n]\s*,?\s*|\s*,\s*", text.strip())


def _parse_address(
    text: str, default_port: int | None = None, check: Callable[[str], object] = ipaddress.ip_address
) -> Address:
    bracketed = re.fullmatch(r"\[(?P<host>[^\]]+)\](?::(?P<port>\d+))?", text)
    plain = bracketed or re.fullmatch(r"(?P<host>[^:\[\]]+)(?::(?P<port>\d+))?", text)
    host, port = (plain["host"], plain["port"]) if plain else (text, None)
    check(host)
    if port is None:
        if default_port is None:
            raise ValueError("a port is missing")
        return Address(host, default_port)
    return Address(host, _port(port))


def _port(text: str) -> int:
    return _number(text, 1, 65535)


def _listening_address(text: str, check: Callable[[str], object] = ipaddress.ip_address) -> Address:
    # A port alone means every address of IPv4, as in nginx, HAProxy and Go.
    if alone := re.fullmatch(r"(?:\*?:)?(?P<port>[0-9]+)", text):
        return Address("0.0.0.0", _port(alone["port"]))
    return _parse_address(text, check=check)


def _own_host(host: str) -> None:
    """Refuse a host that is neither an IP address, nor a network in which this machine has one, nor a DNS name."""
    if "/" in host:
        _network(host)
    elif not is_address(host):
        _dns_name(host)
        if re.fullmatch(r"(.*\.)?[0-9]+\.?", host):
            raise ValueError("not an address, and no domain is a number")


def _listener(text: str) -> Address | UnixSocket:
    scheme, _, path = text.partition("unix:")
    if scheme or not path:
        return _listening_address(text)
    # The kernel takes 108 bytes with a final NUL (unix(7)).
    if not path.startswith("/") or "\0" in path or len(path.encode(errors="surrogateescape")) > 107:
        raise ValueError("not a path for a socket")
    return UnixSocket(path)


def _listener_or_off(text: str) -> Address | None:
    return None if text == "off" else _listening_address(text, _own_host)


def _nameserver(text: str) -> Address:
    return _parse_address(text, default_port=53)


def _dns_name(text: str) -> str:
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(
        re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", label) for label in labels
    ):
        raise ValueError("not a DNS name")
    return text


def is_address(alias: str) -> bool:
    """Whether an alias is an IP address, and no name."""
    try:
        ipaddress.ip_address(alias)
    except ValueError:
        return False
    return True


def _alias(text: str) -> str:
    """Parse a DNS name, or an IP address in its usual form, which may have the brackets that it has before a port."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]", text)
    inner = bracketed[1] if bracketed else text
    if bracketed or is_address(inner):
        address = ipaddress.ip_address(inner)
        if "%" in inner or (bracketed and address.version == 4):
            raise ValueError("an address with a zone, or brackets around IPv4")
        return str(address)
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text):
        raise ValueError("not an address, and no domain is a number")
    return _dns_name(text)


def _path(text: str) -> str:
    if not re.fullmatch(r"/[\x21-\x7e]*", text):
        raise ValueError("not a path")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", text):
        raise ValueError("not a host")
    return text


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(_network(part) for part in re.findall(r"[^\s,]+", text))


def _network(text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Hint(f"{text!r} is none") from None
    raise Hint(f"in {text} host bits are set: {meant}?")


def _file(text: str) -> str:
    if "\0" in text:
        raise ValueError("not a path")
    return text


def _on_off(text: str) -> bool:
    return {"on": True, "off": False}[text.lower()]


def _access_log(text: str) -> bool | str:
    return "text" if text == "text" else _on_off(text)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("not a URL")
    return text


def _statuses(text: str, low: int, high: int) -> frozenset[int]:
    # Blanks for a route in one line, where a comma ends the route.
    found = frozenset(status for entry in re.findall(r"[^\s,]+", text) for status in _status_range(entry, low, high))
    if not found:
        raise ValueError("no status")
    return found


def _status_range(text: str, low: int, high: int) -> range:
    bounds = re.fullmatch(r"(?P<first>[0-9]{3})(?:-(?P<last>[0-9]{3}))?", text)
    if not bounds:
        raise Hint(f"{text!r} is neither a status nor a range")
    first, last = int(bounds["first"]), int(bounds["last"] or bounds["first"])
    if not low <= first <= high or not low <= last <= high:
        raise Hint(f"{text!r} is not within {low} to {high}")
    if first > last:
        raise Hint(f"{text!r} ends before it begins")
    return range(first, last + 1)


def _line(text: str) -> str:
    if len(text) > LINE_MAX or not text.isprintable():
        raise ValueError("not one line")
    return text


def _between(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = float(text)
        if not low <= number <= high:  # also refuses nan
            raise ValueError("out of range")
        return number

    return parse


def seconds(low: float, high: float) -> Kind:
    """Return the kind of a duration in seconds."""
    return Kind(_between(low, high), f"seconds from {low:g} to {high:g}")


def share(low: float) -> Kind:
    """Return the kind of a share of something, 1 for all of it."""
    return Kind(_between(low, 1), f"a number from {low:g} to 1")


def count(low: int, high: int) -> Kind:
    """Return the kind of a whole number."""
    return Kind(lambda text: _number(text, low, high), f"a whole number from {low} to {high}")


def statuses(low: int, high: int, example: str) -> Kind:
    """Return the kind of a set of statuses, with ranges as shorthand."""
    words = f"statuses from {low} to {high} with commas or blanks between, such as {example}"
    return Kind(lambda text: _statuses(text, low, high), words)


def count_or_auto(low: int, high: int) -> Kind:
    """Return the kind of a whole number, or auto."""
    accepts = f"a whole number from {low} to {high}, or auto"
    return Kind(lambda text: text if text == "auto" else _number(text, low, high), accepts)


def _number(text: str, low: int, high: int) -> int:
    number = int(text)
    if not low <= number <= high:
        raise ValueError("out of range")
    return number


def choice(*accepted: str) -> Kind:
    """Return the kind of one word out of several."""

    def parse(text: str) -> str:
        if text not in accepted:
            raise ValueError("not one of them")
        return text

    return Kind(parse, "one of " + ", ".join(accepted))


def _token(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text):
        raise ValueError("not a token")
    return text


# A plug-in by its place, which is that of any object of a module, or as the name of an entry point.
PLACE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_ENTRY_POINT = re.compile(r"[\w.-]+")


def _plug_in(text: str) -> str:
    if not (PLACE.fullmatch(text) or _ENTRY_POINT.fullmatch(text)):
        raise ValueError("neither a place nor a name")
    return text


def _plug_ins(text: str) -> tuple[str, ...]:
    return tuple(map(_plug_in, entries(text)))


def _secret(text: str) -> str:
    # Characters of a Bearer token (RFC 6750 section 2.1), so that it needs no quoting in a header.
    if not re.fullmatch(r"(?=.{8,256}$)[A-Za-z0-9._~+/-]+=*", text):
        raise ValueError("not a bearer token")
    return text


def _hash_key(text: str) -> tuple[str, str]:
    source, _, name = text.partition(":")
    if source not in ("header", "cookie") and text != "client":
        raise ValueError("not a source")
    return (source, _token(name)) if name or source != "client" else (source, "")


def _balance_factor(text: str) -> int:
    return 0 if text == "0" else _number(text, 101, 10_000)


ALIAS = Kind(_alias, "a DNS name such as apps or _http._tcp.apps, or an IP address")
PORT = Kind(_port, "a port from 1 to 65535")
LISTENER = Kind(_listener, "ip:port, such as 0.0.0.0:80 or [::]:80, a port alone (0.0.0.0), or unix:/path")
LISTENER_OR_OFF = Kind(
    _listener_or_off,
    "ip:port, such as 127.0.0.1:9000, a port alone (0.0.0.0), a name or a network of which it takes this machine's own"
    " address, such as balancer-admin:9000 or 10.0.0.0/24:9000, or off",
    unset="off",
)
NAMESERVER = Kind(_nameserver, "ip[:port] of a DNS server, such as 127.0.0.11", unset="(the system's)")
PATH = Kind(_path, "a path such as /healthz")
HOST = Kind(_host, "a host such as shop.example or shop.example:8080", unset="(the alias)")
NETWORKS = Kind(
    _networks, "networks in CIDR notation with commas or newlines between, such as 10.0.0.0/8,192.168.0.1/32"
)
PEM_FILE = Kind(_file, "the path of a PEM file")
TOKEN_FILE = Kind(_file, "the path of a file with nothing but the token, white space around it apart")
TOKEN = Kind(_token, "a cookie name such as member")
FAILURES = statuses(400, 599, "502,503,504")
HEADER = Kind(_token, "a header name such as Idempotency-Key")
SECRET = Kind(_secret, "8 to 256 letters, digits and -._~+/, with = at the end only", secret=True)
HASH_KEY = Kind(_hash_key, "client, header:<name> or cookie:<name>")
STATUSES = statuses(200, 599, "200-399,401")
LINE = Kind(_line, f"a text of one line, of at most {LINE_MAX} characters")
BALANCE_FACTOR = Kind(_balance_factor, "0, or a whole number from 101 to 10000")
URL = Kind(_url, "a URL such as http://collector:4318")
# ``balancer.plugins.loader`` checks whether there is such a plug-in.
POLICY = Kind(
    _plug_in, f"{', '.join(POLICIES)}, the name of an entry point in the group balancer.policies, or module:class"
)
HOOKS = Kind(
    _plug_ins, "module:class or names of entry points in the group balancer.hooks, with commas or newlines between"
)
ON_OFF = Kind(_on_off, "on or off")
ACCESS_LOG = Kind(_access_log, "on, off or text")
ROUTES = Kind(_file, "routes such as shop.example=shop:8080,/api=api,=apps, or the path of a TOML file")
