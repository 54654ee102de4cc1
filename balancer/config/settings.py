"""The settings: one frozen object, read once from the environment and the command line.

Every setting is the environment variable ``BALANCER_<NAME>`` and the flag ``--<name>``; a flag
wins over the variable. The field table below is the only place of a setting: parsing,
``--help``, ``balancer check`` and the README's table all follow it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from balancer.config.display import as_text, flag, show, variable, without_userinfo
from balancer.config.parsers import (
    ACCESS_LOG,
    ALIAS,
    BALANCE_FACTOR,
    FAILURES,
    HASH_KEY,
    HEADER,
    HOOKS,
    HOST,
    LINE,
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
    STATUSES,
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


# Statuses of a member that is well (RFC 9110 section 15.3).
HEALTHY = frozenset(range(200, 300))


def setting(default: Any, kind: Kind, meaning: str) -> Any:
    """Return a field of ``Settings``, with its kind and its meaning."""
    return field(default=default, metadata={"kind": kind, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of ``balancer serve``, as one frozen object. Durations are in seconds, sizes in bytes."""

    alias: str = setting("apps", ALIAS, "the name to resolve")
    upstream_port: int = setting(80, PORT, "port of the members that A and AAAA records name (SRV brings its own)")
    routes: str | None = setting(
        None, ROUTES, "which requests go to which alias, by host and path; SIGHUP reads the file again"
    )
    dns_record: str = setting("a", choice("a", "aaaa", "a+aaaa", "srv"), "which records to ask for")
    resolver: Address | None = setting(None, NAMESERVER, "the DNS server; the system's unless set")
    resolve_interval: float = setting(1.0, seconds(0.1, 3600), "time between resolutions; the records' TTL is ignored")
    bind: Address | UnixSocket = setting(Address("0.0.0.0", 80), LISTENER, "where clients connect")
    admin_bind: Address | None = setting(
        Address("127.0.0.1", 9000), LISTENER_OR_OFF, "where the balancer's own health and status are served"
    )
    admin_token: str | None = setting(
        None,
        SECRET,
        "what drain, eject and their like ask for; without one they are refused unless the admin is on loopback",
    )
    admin_token_file: str | None = setting(
        None, TOKEN_FILE, "file with that token, such as a secret of Docker's; SIGHUP reads it again"
    )
    policy: str = setting("round_robin", POLICY, "who gets the next request")
    hash_key: tuple[str, str] = setting(
        ("client", ""), HASH_KEY, "what the hash policy tells requests apart by; those without it take turns"
    )
    hash_balance_factor: int = setting(
        0, BALANCE_FACTOR, "percent of its fair part of the requests in flight that hash gives a member (0: any number)"
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
    health_path: str | None = setting(None, PATH, "readiness path of a member; without one, a probe is a TCP connect")
    health_host: str | None = setting(None, HOST, "Host of the requests for the readiness path")
    health_status: frozenset[int] = setting(
        HEALTHY, STATUSES, "statuses of a member that is well; 503 means that it is draining, unless it is one of these"
    )
    health_body: str | None = setting(
        None, LINE, "text that the first 64 KiB of the answer's body have to contain; any body will do unless set"
    )
    health_interval: float = setting(1.0, seconds(0.1, 3600), "time between two probes of a member")
    health_timeout: float = setting(5.0, seconds(0.1, 3600), "limit for the answer to a request for the readiness path")
    health_rise: int = setting(
        1, count(1, 100), "probes in a row that succeed before a member that was up before is up again"
    )
    health_fall: int = setting(2, count(1, 100), "probes in a row that fail before a member is down")
    eject: bool = setting(
        True, ON_OFF, "whether a member that fails or is slow while the others are not is taken out for a while"
    )
    eject_max_percent: int = setting(
        50, count(0, 100), "how many of the members that are up may be ejected; one stays in any case"
    )
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
    retry_status: frozenset[int] = setting(
        frozenset(), FAILURES, "statuses for which a request that may run twice, or has a key, is sent again elsewhere"
    )
    idempotency_header: str = setting(
        "Idempotency-Key", HEADER, "header by which a client says that its POST may be sent again for a status"
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
        None, URL, "OpenTelemetry collector (OTLP over HTTP) that gets a span for each request; needs the extra otel"
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
        trusts = self.trusted_proxies or isinstance(self.bind, UnixSocket)
        needs: list[tuple[object, str, tuple[str, ...]]] = [
            (self.tls_cert and not tls, "tls_cert", ("tls_key",)),
            (self.tls_key and not tls, "tls_key", ("tls_cert",)),
            (self.http2 and not tls, "http2", ("tls_cert", "tls_key")),
            (self.proxy_protocol and not trusts, "proxy_protocol", ("trusted_proxies",)),
        ]
        found = [(name, needed) for lacks, name, needed in needs if lacks]
        return found if self.routes else found + self.incomplete_in_pool()

    def incomplete_in_pool(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return those of them that a route may have of its own."""
        needs: list[tuple[object, str, tuple[str, ...]]] = [
            (self.hash_balance_factor and self.policy != "hash", "hash_balance_factor", ("policy=hash",)),
        ]
        for name, default in (("health_host", None), ("health_status", HEALTHY), ("health_body", None)):
            needs.append((not self.health_path and getattr(self, name) != default, name, ("health_path",)))
        return [(name, needed) for lacks, name, needed in needs if lacks]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (variable, value in effect, meaning) of every setting, for people to read."""
        return [
            (variable(field.name), show(getattr(self, field.name), field.metadata["kind"]), field.metadata["meaning"])
            for field in fields(self)
        ]
