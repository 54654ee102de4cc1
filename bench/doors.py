"""How the clients of a load come in: plain, over TLS, by HTTP/2, through a proxy of their own."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.processes import ROOT, BenchError

CACHE = ROOT / "bench" / ".cache" / "tls"
TRUSTED = "127.0.0.1"


@dataclass(frozen=True)
class Door:
    """``http2`` implies ``tls``. ``trusted``: clients are a proxy at ``TRUSTED``, and candidates heed what it says."""

    tls: bool = False
    http2: bool = False
    trusted: bool = False


PLAIN = Door()


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    chain: Path
    key: Path

    @property
    def both(self) -> str:
        return self.chain.read_text() + self.key.read_text()


@cache
def certificate() -> Certificate:
    """One for 127.0.0.1 that signs itself, made on first use."""
    made = Certificate(CACHE / "certificate.pem", CACHE / "key.pem")
    if not made.chain.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650"]
        whose = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        where = ["-keyout", str(made.key), "-out", str(made.chain)]
        done = subprocess.run(["openssl", "req", "-x509", *kind, *whose, *where], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"openssl made no certificate: {done.stderr[-500:]}")
    return made
