"""The balancer's certificate: read at the start and again on request, used by every new connection."""

from __future__ import annotations

import logging
import ssl
from importlib.util import find_spec
from pathlib import Path

from balancer.config.display import variable
from balancer.config.files import why_unreadable
from balancer.config.settings import Settings, SettingsError

log = logging.getLogger(__name__)

# Protocols that a client may choose by ALPN (RFC 7301), in the order of preference.
HTTP1, HTTP2 = "http/1.1", "h2"


class Certificate:
    """A certificate and its key. ``context``: for new connections; open ones keep the one that they began with."""

    def __init__(self, certificate: str, key: str, http2: bool) -> None:
        """Read the files. Raises SettingsError with a line for what cannot be used."""
        if http2 and not find_spec("zttp"):
            raise SettingsError(
                [f"{variable('http2')}=on cannot be used: the package zttp is missing; install balancer[http2]"]
            )
        self._files = certificate, key
        self._protocols = [HTTP2, HTTP1] if http2 else [HTTP1]
        self.context = self._load()

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """Return the certificate of the settings, or None without TLS. Raises SettingsError."""
        if settings.tls_cert and settings.tls_key:
            return cls(settings.tls_cert, settings.tls_key, settings.http2)
        return None

    def reload(self) -> None:
        """Read the files again. If they cannot be used, keep the certificate, and log the reason."""
        try:
            self.context = self._load()
        except SettingsError as error:
            log.error("the certificate stays as it was: %s", error)
        else:
            log.info("new connections get the certificate that is in %s now", self._files[0])

    def _load(self) -> ssl.SSLContext:
        for name, path, mark in zip(
            ("tls_cert", "tls_key"), self._files, (b"-----BEGIN CERTIFICATE-----", b" PRIVATE KEY-----"), strict=True
        ):
            try:
                if mark not in Path(path).read_bytes():
                    raise _unusable(name, path, "it is not a PEM file of its kind")
            except OSError as error:
                raise _unusable(name, path, why_unreadable(path, error)) from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(self._protocols)
        certificate, key = self._files
        try:
            context.load_cert_chain(certificate, key, _no_password)
        except (ssl.SSLError, OSError) as error:
            mismatch = "MISMATCH" in (getattr(error, "reason", None) or "")
            why = f"it is not the key of {certificate}" if mismatch else f"OpenSSL cannot read it: {error}"
            raise _unusable("tls_key", key, why) from error
        except _Encrypted as error:
            raise _unusable("tls_key", key, "it is encrypted, and a server cannot ask for its password") from error
        return context


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _unusable(name: str, path: str, why: str) -> SettingsError:
    return SettingsError([f"{variable(name)}={path} cannot be used: {why}"])
