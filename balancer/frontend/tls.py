"""The balancer's certificate: read at the start and again on request, used by every new connection."""

from __future__ import annotations

import logging
import re
import ssl
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from balancer.config.display import variable
from balancer.config.files import why_unreadable
from balancer.config.settings import Settings, SettingsError
from balancer.frontend.certificate_summary import summarize

log = logging.getLogger(__name__)

_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

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
        # What the files held when they were read last.
        self._content: list[bytes] = []
        self.context = self._load()

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """Return the certificate of the settings, or None without TLS. Raises SettingsError."""
        if settings.tls_cert and settings.tls_key:
            return cls(settings.tls_cert, settings.tls_key, settings.http2)
        return None

    def reload(self) -> None:
        """Read the files again, and log what came of it. If they cannot be used, keep the certificate."""
        before = self._content
        try:
            self.context = self._load()
        except SettingsError as error:
            log.error("the certificate stays as it was: %s", error)
            return
        if self._content == before:
            self._log("the certificate in %s is unchanged: %s")
        else:
            self._log("new connections get the certificate that is in %s now: %s")

    def log_start(self) -> None:
        """Log which certificate the first connections get."""
        self._log("the certificate is that in %s: %s")

    def describe(self) -> tuple[str, str]:
        """Return the certificate in words, and why clients refuse it, or ""."""
        found = _FIRST.search(self._content[0])
        try:
            summary = summarize(ssl.PEM_cert_to_DER_cert(found[0].decode("ascii") if found else ""))
        except ValueError as error:
            return f"its fields cannot be read ({error})", ""
        return str(summary), summary.fault(datetime.now(UTC))

    def _log(self, line: str) -> None:
        words, fault = self.describe()
        level = logging.WARNING if fault else logging.INFO
        log.log(level, line, self._files[0], f"{words}; {fault}" if fault else words)

    def _load(self) -> ssl.SSLContext:
        content = []
        for name, path, mark in zip(
            ("tls_cert", "tls_key"), self._files, (b"-----BEGIN CERTIFICATE-----", b" PRIVATE KEY-----"), strict=True
        ):
            try:
                content.append(Path(path).read_bytes())
                if mark not in content[-1]:
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
        self._content = content
        return context


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _unusable(name: str, path: str, why: str) -> SettingsError:
    return SettingsError([f"{variable(name)}={path} cannot be used: {why}"])
