"""The request in an ASGI scope: its target, its mount, its client."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from balancer.http.headers import plain_address
from balancer.http.request import TARGET_EXTENSION
from balancer.types import Scope

# Characters that a path may have unescaped (RFC 3986 section 3.3), besides letters and digits.
_PATH = "/:@!$&'()*+,;=-._~"
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")


def target(scope: Scope) -> bytes:
    """Return the request target below the mount: as the client wrote it, unless a middleware has changed it.

    ``scope["root_path"]`` is the prefix that does not belong to it. The ASGI specification and Starlette have it at the
    beginning of ``scope["path"]``, too. Where a proxy in front of the server has cut off part of it
    (``app_root_path``), only the rest is there. Some frameworks have taken all of it off.
    """
    if TARGET_EXTENSION in scope.get("extensions", ()):
        whole: bytes = scope["extensions"][TARGET_EXTENSION]
        return whole
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or b""
    root: str = scope.get("root_path", "")
    rest = _below(path, root, scope.get("app_root_path", "")) if root else path
    written = b""
    if raw == path.encode(errors="replace"):  # nothing is escaped
        written = raw[len(raw) - len(rest.encode(errors="replace")) :] or b"/"
    elif raw:
        decoded = unquote(raw.decode("latin-1"))
        if decoded in (path, root + path):
            written = _skip(raw, decoded[: len(decoded) - len(rest)]) or b"/"
    # A path from a middleware replaces the client's.
    written = written or quote(rest, safe=_PATH).encode("ascii") or b"/"
    query: bytes = scope.get("query_string", b"")
    return written + b"?" + query if query else written


def prefix(scope: Scope) -> bytes:
    """Return the path of the mount as clients see it, with what a proxy in front has cut off, or b""."""
    root: str = scope.get("root_path", "")
    return quote(root.rstrip("/"), safe=_PATH).encode("ascii") if root else b""


def _below(path: str, root: str, app_root: str) -> str:
    """Return the part of a decoded path below the mount."""
    for mount in (root.rstrip("/"), root.removeprefix(app_root).rstrip("/")):
        if path.startswith(mount) and path[len(mount) :][:1] in ("", "/"):
            return path[len(mount) :]
    return path


def client(scope: Scope) -> str:
    """Return the peer's IP address, or "" where there is none."""
    return plain_address(scope["client"][0]) if scope.get("client") else ""


def _skip(raw: bytes, start: str) -> bytes:
    """Return a raw path without its beginning, which decodes to ``start``."""
    if not start:
        return raw
    size = len(start.encode())
    if b"%" not in raw[:size]:
        return raw[size:]
    end = 0
    for _ in range(size):
        end += 3 if _ESCAPE.match(raw, end) else 1
    return raw[end:]
