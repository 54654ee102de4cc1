"""The settings: one frozen object, read once from the environment and the command line.

Every setting is the environment variable ``BALANCER_<NAME>`` and the flag ``--<name>``; a flag
wins over the variable. The field table below is the only place of a setting: parsing,
``--help``, ``balancer check`` and the README's table all follow it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from balancer.config.display import PREFIX, as_text, flag, show, variable, without_userinfo
from balancer.config.parsers import (
    ACCESS_LOG,
    ALIAS,
    HASH_KEY,
    HOOKS,
    HOST,
    LISTENER,
    LISTENER_OR_OFF,
    NAMESERVER,
    NETWORKS,
    ON_OFF,
    PATH,
    PEM_FILE,
    POLICY,
    PORT,
    ROUTES,
    SECRET,
    TOKEN,
    TOKEN_FILE,
    URL,
    Kind,
    choice,
    count,
    count_or_auto,
    seconds,
    share,
)
from balancer.types import Address, IPNetwork, UnixSocket


class SettingsError(ValueError):
    """One or more settings cannot be used.

    Attributes:
        problems: A line for each, with the name, the value and what is accepted.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


# Old names of settings, with the new ones. An old name stops the start: ignoring it would change the balancer.
RENAMED = {
    "hold_seconds": "queue_timeout",
    "hold_max": "queue_max",
    "hold_bytes": "queue_max_bytes",
    "idle_timeout": "stream_idle_timeout",
    "head_timeout": "header_timeout",
    "record": "dns_record",
    "admin": "admin_bind",
    "max_head": "max_header_bytes",
    "max_fields": "max_headers",
    "max_target": "max_uri_bytes",
    "max_body": "max_body_bytes",
    "shutdown_seconds": "shutdown_timeout",
    "reload_seconds": "reload_timeout",
}


def setting(default: Any, kind: Kind, meaning: str) -> Any:
    """Return a field of ``Settings``, with its kind and its meaning."""
    return field(default=default, metadata={"kind": kind, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of ``balancer serve``, as one frozen object. Durations are in seconds, sizes in bytes."""

    alias: str = setting("apps", ALIAS, "the name to resolve")
    upstream_port: int = setting(80, PORT, "port of the members that A and AAAA records name (SRV brings its own)")
    routes: str | None = setting(
        None,
        ROUTES,
        "which requests go to which alias, by host and path; SIGHUP reads the file again",
    )
    dns_record: str = setting("a", choice("a", "aaaa", "a+aaaa", "srv"), "which records to ask for")
    resolver: Address | None = setting(None, NAMESERVER, "the DNS server; the system's unless set")
    resolve_interval: float = setting(1.0, seconds(0.1, 3600), "time between resolutions; the records' TTL is ignored")
    bind: Address | UnixSocket = setting(Address("0.0.0.0", 80), LISTENER, "where clients connect")
    admin_bind: Address | None = setting(
        Address("127.0.0.1", 9000), LISTENER_OR_OFF, "where the balancer's own health and status are served"
    )
    admin_token: str | None = setting(
        None, SECRET, "what drain and undrain ask for; without one they are refused unless the admin is on loopback"
    )
    admin_token_file: str | None = setting(
        None, TOKEN_FILE, "file with that token, such as a secret of Docker's; SIGHUP reads it again"
    )
    policy: str = setting("round_robin", POLICY, "who gets the next request")
    hash_key: tuple[str, str] = setting(
        ("client", ""), HASH_KEY, "what the hash policy tells requests apart by; those without it take turns"
    )
    sticky_cookie: str | None = setting(
        None, TOKEN, "name of a cookie that keeps a client at its member, whatever the policy; no cookie unless set"
    )
    slow_start: float = setting(
        0.0, seconds(0, 3600), "time in which the share of a member that came up rises from a tenth to the full"
    )
    max_requests_per_member: int | str = setting(
        0,
        count_or_auto(0, 1_000_000),
        "requests that a member is given at a time; the rest wait their turn (0: no limit; auto: it finds itself)",
    )
    health_path: str | None = setting(
        None, PATH, "readiness path of a member: 2xx is up, 503 is draining; without one, a TCP connect"
    )
    health_host: str | None = setting(None, HOST, "Host of the requests for the readiness path")
    health_interval: float = setting(1.0, seconds(0.1, 3600), "time between two probes of a member")
    health_timeout: float = setting(5.0, seconds(0.1, 3600), "limit for the answer to a request for the readiness path")
    health_fall: int = setting(2, count(1, 100), "probes in a row that fail before a member is down")
    hung_timeout: float = setting(
        0.0,
        seconds(0, 86400),
        "silence of a member after which requests that may be repeated go to another (0: they wait)",
    )
    queue_timeout: float = setting(10.0, seconds(0, 3600), "how long a request may wait for a member")
    queue_max: int = setting(1000, count(0, 1_000_000), "how many requests may wait for a member")
    queue_max_bytes: int = setting(
        64 * 1024 * 1024, count(0, 1 << 40), "how many bytes of bodies the requests that wait may hold in memory"
    )
    max_queue_share: float = setting(
        0.1, share(0.01), "what a client has of the queue and of the members' slots while others wait (1: no shares)"
    )
    connect_timeout: float = setting(1.0, seconds(0.01, 3600), "limit for a connection to a member")
    response_timeout: float = setting(60.0, seconds(0.01, 86400), "limit for a member's first response byte")
    stream_idle_timeout: float = setting(
        60.0, seconds(0.01, 86400), "limit for silence in mid-body, a member's or a client's"
    )
    retries: int = setting(
        2, count(0, 5), "how often a request that may run twice (GET, not POST) is sent again after a member dropped it"
    )
    max_body_bytes: int = setting(0, count(0, 1 << 50), "bytes that the body of a request may have (0: no limit)")
    max_header_bytes: int = setting(32 * 1024, count(1024, 1 << 20), "bytes that the head of a request may have")
    max_headers: int = setting(100, count(10, 10_000), "fields that the head of a request may have")
    max_uri_bytes: int = setting(16 * 1024, count(256, 1 << 20), "bytes that the target of a request may have")
    header_timeout: float = setting(10.0, seconds(0.1, 3600), "limit for the head of a request, from its first byte on")
    keepalive_timeout: float = setting(75.0, seconds(0.1, 86400), "how long a client's connection may be idle")
    min_body_rate: int = setting(
        240,
        count(0, 1 << 30),
        "bytes a second, after the first 20 s, that a client has to send of a body before the response begins, and to"
        " take of what waits for it",
    )
    max_connections: int = setting(0, count(0, 10_000_000), "connections of clients in all (0: no limit)")
    max_connections_per_client: int = setting(0, count(0, 10_000_000), "connections of one client (0: no limit)")
    client_prefix_v6: int = setting(64, count(1, 128), "bits of an IPv6 address that tell one client from another")
    max_handshakes: int = setting(
        1024,
        count(0, 10_000_000),
        "connections in a TLS handshake or a PROXY header at a time, a 16th of them of one client (0: no limit)",
    )
    trusted_proxies: tuple[IPNetwork, ...] = setting(
        (), NETWORKS, "whose X-Forwarded-* and Forwarded are kept and extended; everybody else's are replaced"
    )
    drop_underscore_headers: bool = setting(
        False, ON_OFF, "whether headers of requests are dropped if their name has an underscore, as nginx does"
    )
    proxy_protocol: bool = setting(
        False, ON_OFF, "whether connections from trusted proxies, and on a Unix socket, begin with a PROXY header"
    )
    tls_cert: str | None = setting(
        None, PEM_FILE, "certificate, with its chain, for TLS with clients; no TLS unless set; SIGHUP reads it again"
    )
    tls_key: str | None = setting(None, PEM_FILE, "private key of the certificate")
    http2: bool = setting(False, ON_OFF, "whether TLS clients may speak HTTP/2; needs the extra http2")
    hooks: tuple[str, ...] = setting((), HOOKS, "code of your own that sees requests, responses and members")
    access_log: bool | str = setting(
        True, ACCESS_LOG, "one line a request on standard output: JSON, or words for people (text)"
    )
    response_request_id: bool = setting(
        False, ON_OFF, "whether every response has the X-Request-ID of the log; the balancer's own always have"
    )
    otel_endpoint: str | None = setting(
        None,
        URL,
        "OpenTelemetry collector (OTLP over HTTP) that gets a span for each request; needs the extra otel",
    )
    processes: int | str = setting(
        1, count_or_auto(1, 64), "how many processes serve; auto is one for each core that the balancer may use"
    )
    shutdown_delay: float = setting(
        0.0,
        seconds(0, 3600),
        "how long to go on accepting after SIGTERM, with /readyz at 503 and connections closed by their next response",
    )
    shutdown_timeout: float = setting(
        8.0, seconds(0, 3600), "how long requests may go on after SIGTERM, and after that delay"
    )
    reload_timeout: float = setting(
        60.0, seconds(0, 86400), "how long requests and WebSockets may go on in processes that a reload has replaced"
    )

    @classmethod
    def load(cls, environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
        """Make settings from environment variables and flags, with defaults for the rest.

        Args:
            environ: Variables ``BALANCER_<NAME>``. A blank one counts as unset, as Compose makes one of ``${NAME:-}``.
            flags: Values by the names of fields; a flag wins over the variable.

        Raises:
            SettingsError: Values cannot be used, or an old name is set; with a line for each.
        """
        values: dict[str, Any] = {}
        written: dict[str, str] = {}
        problems = [
            f"{variable(old)} cannot be used: it is {variable(new)} now"
            for old, new in RENAMED.items()
            if environ.get(variable(old))
        ]
        for item in fields(cls):
            name, text = variable(item.name), environ.get(variable(item.name), "")
            if flags and item.name in flags:
                name, text = flag(item.name), flags[item.name]
            kind: Kind = item.metadata["kind"]
            if kind.is_blank(text):
                continue
            written[item.name] = f"{name}=(not shown)" if kind.secret else f"{name}={without_userinfo(text)!r}"
            try:
                values[item.name] = kind.read(text)
            except ValueError as error:
                problems.append(f"{written[item.name]} {error}")
        return cls._whole(values, written, problems, variable)

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """Make settings by the names of their fields, with defaults for the rest; the environment is not read.

        Args:
            **given: Values as the fields hold them, or text as in a variable: ``resolver="127.0.0.11"``.

        Raises:
            SettingsError: Values cannot be used; with a line for each.
            TypeError: A name is not that of a setting.
        """
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        written: dict[str, str] = {}
        problems: list[str] = []
        for name, value in given.items():
            if name not in known:
                close = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"{name!r} is not a setting{hint}")
            item, kind = known[name], known[name].metadata["kind"]
            written[name] = f"{name}=(not shown)" if kind.secret else f"{name}={without_userinfo(repr(value))}"
            if (value == item.default and type(value) is type(item.default)) or (value is None and kind.unset == "off"):
                values[name] = value
                continue
            try:
                values[name] = kind.read(as_text(value, kind))
            except ValueError as error:
                problems.append(f"{written[name]} {error}")
        return cls._whole(values, written, problems, str)

    @classmethod
    def _whole(
        cls, values: dict[str, Any], written: dict[str, str], problems: list[str], call: Callable[[str], str]
    ) -> Settings:
        """Return the settings. Raises SettingsError for problems; ``call`` returns a field's name in their source."""
        if not problems:
            settings = cls(**values)
            problems = [
                f"{written[name]} cannot be used without {' and '.join(map(call, needed))}"
                for name, needed in settings.incomplete()
            ]
        if problems:
            raise SettingsError(problems)
        return settings

    def incomplete(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the settings that have no effect, or cannot be used, without others: each with those that it needs."""
        tls = bool(self.tls_cert and self.tls_key)
        found: list[tuple[str, tuple[str, ...]]] = []
        if self.tls_cert and not tls:
            found.append(("tls_cert", ("tls_key",)))
        if self.tls_key and not tls:
            found.append(("tls_key", ("tls_cert",)))
        if self.http2 and not tls:
            found.append(("http2", ("tls_cert", "tls_key")))
        if self.proxy_protocol and not self.trusted_proxies and not isinstance(self.bind, UnixSocket):
            found.append(("proxy_protocol", ("trusted_proxies",)))
        return found

    def part(self, number: int, processes: int) -> Settings:
        """Return the settings of process ``number`` (from 0): its part of each limit for all of them together.

        Raises SettingsError where a limit cannot be shared out.
        """
        if processes == 1:
            return self
        parts: dict[str, Any] = {"processes": processes}
        problems = []
        for name, least in (
            ("max_requests_per_member", 1),
            ("max_connections", 1),
            ("queue_max", 0),
            ("queue_max_bytes", 0),
        ):
            limit = getattr(self, name)
            if limit == "auto":
                continue
            if 0 < limit < least * processes:
                problems.append(
                    f"{variable(name)}={limit} cannot be used with {processes} processes: it is shared out among them, "
                    f"so it takes 0 or at least {processes}"
                )
            parts[name] = limit // processes + (number < limit % processes)
        if problems:
            raise SettingsError(problems)
        return replace(self, **parts)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (variable, value in effect, meaning) of every setting, for people to read."""
        return [
            (variable(field.name), show(getattr(self, field.name), field.metadata["kind"]), field.metadata["meaning"])
            for field in fields(self)
        ]


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each ``BALANCER_*`` variable that is no setting and looks like one.

    Others are left alone: orchestrators inject names such as ``BALANCER_SERVICE_HOST`` on their own.
    """
    known = [variable(field.name) for field in fields(Settings)]
    lines = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close:
                lines.append(f"{name} is not a setting and is ignored; did you mean {close[0]}?")
    return lines
