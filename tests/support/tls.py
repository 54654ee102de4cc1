"""Certificates of an authority that exists for a test run, and what a client needs to trust it."""

from __future__ import annotations

import ssl
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import trustme


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def issue(folder: Path, *names: str, ca: trustme.CA | None = None, ends: datetime | None = None) -> dict[str, Any]:
    """A new certificate and its key as files in ``folder``: the settings that name them."""
    issued = (ca or authority()).issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=ends)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(it.bytes() for it in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return {"tls_cert": str(certificate), "tls_key": str(key)}


def trusting(*protocols: str) -> ssl.SSLContext:
    """A client's context that trusts the authority and offers these protocols."""
    # Without the authorities of this machine, whose reading takes 20 ms.
    context = ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context
