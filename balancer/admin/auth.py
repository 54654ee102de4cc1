"""Rules for requests to the admin port. No I/O.

* A listener on loopback answers nothing under the name of another host. Else a name that an attacker points at
  127.0.0.1 (DNS rebinding) would make his page one of the balancer's, and it could read and act.
* A page of another site must not act through a browser that reaches the balancer. Requests from another site are
  refused by ``Sec-Fetch-Site`` (W3C Fetch Metadata) and ``Origin`` (RFC 6454). So are those that a form could send,
  because the content type has to be JSON.
* With a token set, its holders may act.
* Without one, only clients of this machine may: the listener has to be on loopback.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping
from functools import cache
from hashlib import pbkdf2_hmac
from typing import NamedTuple

from balancer.config.display import variable
from balancer.config.settings import Settings

TOKEN = variable("admin_token")

# A host without its port. (``urlsplit`` would cache it, however long a client has made it.)
_HOST = re.compile(r"(\[[^]]*\]|[^][:@]*)(?::[0-9]*)?")


class Denial(NamedTuple):
    """A refusal: a status, one word for programs and a sentence for people."""

    status: int
    error: str
    reason: str


TOKEN_NEEDED = Denial(401, "token_needed", f"this takes Authorization: Bearer and the value of {TOKEN}")


def is_loopback(host: str) -> bool:
    """Whether a host, as in a URL or an address, is this machine by itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def deny_host(settings: Settings, host: str | None) -> Denial | None:
    """Return the refusal of a request by its ``Host``, or None. (Each browser sends one.)"""
    parts = None if host is None else _HOST.fullmatch(host)
    known = host is None or (parts is not None and is_loopback(parts[1].lower()))
    if known or not _is_on_loopback(settings):
        return None
    words = f"{settings.admin_bind} is on loopback, so the Host has to be localhost or a loopback address"
    return Denial(403, "foreign_host", words)


def _is_on_loopback(settings: Settings) -> bool:
    return settings.admin_bind is not None and is_loopback(settings.admin_bind.host)


def access(settings: Settings) -> str:
    """Return the condition for actions: ``token``, none (``open``), or ``refused`` where there are none."""
    if settings.admin_token:
        return "token"
    return "open" if _is_on_loopback(settings) else "refused"


def deny(settings: Settings, headers: Mapping[str, str]) -> Denial | None:
    """Return the refusal of a request that changes something, or None. ``headers``: by name in lower case."""
    site, origin, host = headers.get("sec-fetch-site"), headers.get("origin"), headers.get("host", "")
    # An opaque origin, "null", has no host and so is not the balancer's.
    own = origin is None or origin.partition("://")[2] == host
    if site not in (None, "same-origin", "none") or not own:
        return Denial(403, "cross_site", "this may be asked for by the balancer's own pages and by programs only")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Denial(415, "not_json", "this takes Content-Type: application/json, and an empty body or a JSON object")
    match access(settings):
        case "token":
            if not has_token(settings, headers):
                return TOKEN_NEEDED
        case "refused":
            words = f"{settings.admin_bind} is not on loopback, so this needs {TOKEN}, and it is not set"
            return Denial(403, "no_token_set", words)
    return None


def has_token(settings: Settings, headers: Mapping[str, str]) -> bool:
    """Whether a request comes with the token that is set. ``headers``: by name in lower case."""
    scheme, _, presented = headers.get("authorization", "").partition(" ")
    expected = (settings.admin_token or "").encode()
    right = hmac.compare_digest(presented.strip().encode(), expected)
    return bool(expected) and scheme.lower() == "bearer" and right


# The text to be proved, new each time: 32 random bytes.
CHALLENGE = re.compile("[0-9a-f]{64}")
# 0.1 s, once a process: a reader of the status could try tokens against a proof.
_ROUNDS = 200_000


def prove(token: str, challenge: str, supervisor: int, generation: int) -> str:
    """Return the proof that belongs to an answer with this supervisor and generation."""
    message = f"{challenge} {supervisor} {generation}"
    return hmac.new(_key(token), message.encode(), "sha256").hexdigest()


@cache
def _key(token: str) -> bytes:
    return pbkdf2_hmac("sha256", token.encode(), b"balancer proof", _ROUNDS)
