"""What HTTP requests and WebSockets of an ASGI server have in common: somebody waits, and may stop waiting."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any
from urllib.parse import quote, unquote

from balancer.dispatch.context import Course
from balancer.errors import SHUTTING_DOWN as SHUTTING_DOWN
from balancer.errors import Refusal
from balancer.http.headers import Headers, plain_address
from balancer.types import Receive, Scope, Send

# After these bytes a stream of server-sent events may end (HTML, section 9.2.5).
END_OF_EVENT = (b"\n\n", b"\r\n\r\n", b"\r\r")

# What a path may have in it unescaped (RFC 3986 section 3.3), besides letters and digits.
_PATH = "/:@!$&'()*+,;=-._~"
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")


class Visit:
    """One request of one client, by whatever way it came.

    ``task`` serves it, until there is nothing left to cancel; ``started``: the response has begun;
    ``cancelled``: ``end`` has ended it. ``course``: what the dispatcher makes of it, while the visit is under way.
    """

    course: Course
    task: asyncio.Task[Any] | None = None
    started = False
    cancelled = False
    refusal: Refusal | None = None
    # Of the response: its fields, and the last piece of its body that has been sent whole.
    _headers: Headers = []  # noqa: RUF012 - replaced, never changed
    _sent = b""
    _leaving = False

    def end(self, refusal: Refusal | None = None) -> None:
        """Cancel the request; ``refusal`` is what the client is told if its response has not begun."""
        if not self.cancelled and self.task:
            self.cancelled, self.refusal = True, refusal
            self.cancel()

    def cancel(self) -> None:
        if self.task:
            self.task.cancel(self.refusal.token if self.refusal else "client_gone")

    async def go_away(self) -> None:
        """The balancer is about to exit: end here what would not end by itself."""
        fields = dict(self._headers)
        self._leaving = fields.get(b"content-type", b"").startswith(b"text/event-stream") and not (
            fields.keys() & {b"content-length", b"content-encoding"}
        )
        if self._leaving:
            await self._end_between_events()

    async def _end_between_events(self) -> None:
        """End a stream of server-sent events as if the member had, so that the client connects again."""
        if self.task and self._sent.endswith(END_OF_EVENT):
            await self._complete()
            self.end(SHUTTING_DOWN)

    async def _complete(self) -> None:
        """Send the end of the response."""
        raise NotImplementedError

    def watch(self, began_before: float) -> None:
        """See to it that a client that leaves is noticed, if the visit has lasted since then."""

    def unwatch(self) -> None:
        """Nobody needs to be told any more of a client that leaves."""


class AsgiVisit(Visit):
    """A request that an ASGI server brought."""

    def __init__(self, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        self.task = task
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self.began = time.monotonic()

    @property
    def watchable(self) -> bool:
        """Whether nobody else is reading from the client just now."""
        raise NotImplementedError

    def inform(self, status: int, headers: Headers) -> None:
        """ASGI has no message for interim responses."""

    async def _await_disconnect(self) -> None:
        raise NotImplementedError

    def watch(self, began_before: float) -> None:
        """See to it that a client that leaves is noticed, if the visit has lasted since then."""
        if self._watcher is None and self.task and self.watchable and self.began <= began_before:
            self._watcher = asyncio.get_running_loop().create_task(self._await_disconnect())

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


def target(scope: Scope) -> bytes:
    """The request target below the mount: as the client wrote it, where the server tells and nobody has changed it.

    ``scope["root_path"]`` is the prefix that does not belong to it. The ASGI specification and Starlette have it at the
    beginning of ``scope["path"]``, too; where a proxy in front of the server has cut off part of it
    (``app_root_path``), only the rest is there; and some frameworks have taken all of it off.
    """
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
    # Where a middleware has given the request another path, what the client wrote counts no more.
    written = written or quote(rest, safe=_PATH).encode("ascii") or b"/"
    query: bytes = scope.get("query_string", b"")
    return written + b"?" + query if query else written


def prefix(scope: Scope) -> bytes:
    """The path of the mount as clients know it, with what a proxy in front has cut off; b"" where there is none."""
    root: str = scope.get("root_path", "")
    return quote(root.rstrip("/"), safe=_PATH).encode("ascii") if root else b""


def _below(path: str, root: str, app_root: str) -> str:
    """What of a decoded path is below the mount."""
    for it in (root.rstrip("/"), root.removeprefix(app_root).rstrip("/")):
        if path.startswith(it) and path[len(it) :][:1] in ("", "/"):
            return path[len(it) :]
    return path


def _skip(raw: bytes, start: str) -> bytes:
    """A raw path without its beginning, which reads ``start`` once it is decoded."""
    if not start:
        return raw
    size = len(start.encode())
    if b"%" not in raw[:size]:
        return raw[size:]
    end = 0
    for _ in range(size):
        end += 3 if _ESCAPE.match(raw, end) else 1
    return raw[end:]


def client(scope: Scope) -> str:
    """The peer's IP address, or "" where there is none."""
    return plain_address(scope["client"][0]) if scope.get("client") else ""
