"""Settings from keywords of a program. No I/O."""

from __future__ import annotations

from typing import Any

from balancer.config.settings import Settings, SettingsError

# Keywords without effect: a mounted LoadBalancer has the listeners of its server.
SERVE_ONLY = frozenset(
    {
        "bind", "admin_bind", "max_header_bytes", "max_headers", "max_uri_bytes", "header_timeout", "keepalive_timeout",
        "max_connections", "max_connections_per_client", "max_handshakes", "proxy_protocol", "tls_cert", "tls_key",
        "http2", "access_log", "otel_endpoint", "processes", "shutdown_delay", "shutdown_timeout", "reload_timeout",
        "admin_token", "admin_token_file", "routes",
    }
)  # fmt: skip


def settings_of(alias: str | Settings, values: dict[str, Any]) -> Settings:
    """Return the settings of an alias and of keywords. Raises SettingsError, and TypeError for a name that is none."""
    if isinstance(alias, Settings):
        if values:
            raise TypeError(f"settings are one object, or keywords, and not both: {', '.join(values)}")
        return alias
    useless = [
        f"{name}={value!r} cannot be used: it is for balancer serve, which listens by itself"
        for name, value in values.items()
        if name in SERVE_ONLY
    ]
    if useless:
        raise SettingsError(useless)
    return Settings.of(alias=alias, **values)
