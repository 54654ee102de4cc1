"""The admin application, as an ASGI server calls it: independent of the listener in front of it.

A case is a digit, which chooses the settings, and requests with 0xFF between them:

    0POST /api/members/10.2.0.1:80/drain\\nhost: localhost\\ncontent-type: application/json\\n\\n{}

In a body, 0xFE ends a piece, and 0xFD is the client's leaving.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from balancer.admin.app import Supervised, admin_app
from balancer.admin.auth import access, is_loopback
from balancer.admin.pool_view import Usage
from balancer.admin.responses import SECURITY
from balancer.admin.status_feed import StatusFeed
from balancer.config.settings import Settings
from balancer.discovery.container_names import ContainerNames
from balancer.http.headers import Headers
from balancer.telemetry.stats import Stats
from balancer.types import Address, Message
from tests.fuzz.play import Play, bounded
from tests.support.pipes import PipeLoop
from tests.support.world import World

SIZE_MAX = 8192
REQUESTS_MAX = 8
# Longer than an action waits for DNS.
PATIENCE = 3.0

TOKEN = "open-sesame-open-sesame"
PASSWORD = "not-to-be-seen"
LOOPBACK, ANY = Address("127.0.0.1", 9000), Address("0.0.0.0", 9000)
SETTINGS = [
    {"admin_bind": bind, "admin_token": token, "otel_endpoint": f"http://user:{PASSWORD}@collector/"}
    for bind in (LOOPBACK, ANY)
    for token in (None, TOKEN)
]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_METHOD = re.compile(rb"[A-Za-z-]+")
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_VALUE = re.compile(rb"[^\0-\x08\x0a-\x1f\x7f]*")
_HOST = re.compile(rb"(\[.*\]|[^:]*)(:.*)?", re.DOTALL)
# Answered in words, not in JSON.
_IN_WORDS = ("/healthz", "/readyz")


class _Loop(PipeLoop):
    """Runs what is for threads at once: a virtual clock would not wait for them."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class _Answer:
    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    trouble: list[str] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.status:
                self.trouble.append("a second response")
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            if not self.status or self.ended:
                self.trouble.append("a body without a head, or after the end")
            self.body += message.get("body", b"")
            self.ended = not message.get("more_body", False)

    def header(self, name: bytes) -> bytes:
        return dict(self.headers).get(name, b"")


@dataclass
class _Request:
    method: bytes
    target: bytes
    headers: Headers
    body: Sequence[bytes]
    leaves: bool

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.headers if known == name]

    @property
    def path(self) -> str:
        return unquote(self.target.partition(b"?")[0].decode("ascii"))

    def scope(self) -> dict[str, Any]:
        path, _, query = self.target.partition(b"?")
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": self.method.decode(), "scheme": "http", "path": self.path, "raw_path": path,
            "query_string": query, "root_path": "", "headers": self.headers, "client": ("192.0.2.1", 1024),
            "server": ("127.0.0.1", 9000), "state": {}, "extensions": {},
        }  # fmt: skip


def _parse(text: bytes) -> _Request | None:
    """The request; None if no server would make one of it."""
    head, _, body = text.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    if not (_METHOD.fullmatch(method) and _TARGET.fullmatch(target)):
        return None
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        if _NAME.fullmatch(name.lower()) and _VALUE.fullmatch(value.strip(b" \t")):
            headers.append((name.lower(), value.strip(b" \t")))
    whole, leaves, _ = body.partition(b"\xfd")
    return _Request(method, target, headers, whole.split(b"\xfe"), bool(leaves))


class _Admin:
    """The application with one of the settings, over a pool that has two members."""

    def __init__(self, loop: _Loop, number: int) -> None:
        self.loop = loop
        self.settings = Settings(**SETTINGS[number])  # type: ignore[arg-type]
        self.world = World(loop, stats=Stats())
        balancer = self.world.balancer
        # Set once the client has left.
        self._gone: asyncio.Future[None] = loop.create_future()
        self.feed = StatusFeed(
            lambda: [balancer], ContainerNames([]), loop.time, loop.time, access=access(self.settings)
        )
        supervised = Supervised(1, 0)
        usage = Usage.own()
        self.app = admin_app(
            lambda: [balancer], lambda: self.settings, self.feed, processes=lambda: [usage], supervised=supervised
        )

    def drained(self) -> list[str]:
        return [str(it.address) for it in self.world.balancer.membership.members.values() if it.drained]

    def ask(self, request: _Request) -> list[str]:
        before, answer = self.drained(), _Answer()
        self._gone = self.loop.create_future()
        # Not by the world's factory: it keeps all tasks to its end, and this world lives for millions of cases.
        task = asyncio.Task(self._serve(request, answer), loop=self.loop)
        self.loop.settle()
        if not task.done():
            self.loop.wait(PATIENCE)
        stays = not task.done()
        self._gone.set_result(None)
        self.loop.settle()
        found = list(answer.trouble)
        if not task.done():
            task.cancel()  # The front end does so once a client has left.
            self.loop.settle()
        if not task.done():
            found.append(f"a request never ends; {request}")
        elif task.cancelled():
            pass
        elif error := task.exception():
            found.append(f"raised: {type(error).__name__}: {error}; {request}")
        elif not (stays or answer.ended or request.leaves):
            found.append(f"no whole answer; {request}")
        return found + _faults(request, answer) + self._effects(request, answer, before)

    async def _serve(self, request: _Request, answer: _Answer) -> None:
        pieces = list(request.body)

        async def receive() -> Message:
            if pieces:
                piece = pieces.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(pieces) or request.leaves}
            if not request.leaves:
                await asyncio.shield(self._gone)
            return {"type": "http.disconnect"}

        await self.app(request.scope(), receive, answer.send)

    def _effects(self, request: _Request, answer: _Answer, before: list[str]) -> list[str]:
        """What is wrong with who could change something."""
        now = self.drained()
        acts = request.method == b"POST" and request.path.endswith(("/drain", "/undrain"))
        if not (acts and answer.status == 200):
            return [f"a request that gets {answer.status} changes members; {request}"] if now != before else []
        why = ""
        if self.settings.admin_token:
            if not any(TOKEN.encode() in value for value in request.values(b"authorization")):
                why = "without a token"
        elif self.settings.admin_bind == ANY:
            why = "from another machine"
        if self.settings.admin_bind == LOOPBACK and any(map(_is_foreign, request.values(b"host"))):
            why = "under a foreign host"
        sites = request.values(b"sec-fetch-site")
        if sites and not {b"same-origin", b"none"} & {*sites}:
            why = "from another site"
        return [f"an action {why}; {request}"] if why else []


def _is_foreign(host: bytes) -> bool:
    found = _HOST.fullmatch(host)
    return found is None or not is_loopback(found[1].decode("latin-1").lower())


def _faults(request: _Request, answer: _Answer) -> list[str]:
    """What is wrong with a response, whatever was asked."""
    status, found = answer.status, []
    if not status:
        return []
    if status >= 500 and status != 503:
        found.append(f"an answer of {status}; {request}")
    missing = [name for name, value in SECURITY.items() if answer.header(name.encode()) != value.encode()]
    if missing:
        found.append(f"a response without {missing[0]}; {request}")
    length = answer.header(b"content-length")
    if answer.ended and length and status != 304 and request.method != b"HEAD" and int(length) != len(answer.body):
        found.append(f"another length than announced; {request}")
    if any(not _VALUE.fullmatch(value) for _, value in answer.headers):
        found.append(f"a header that is none; {request} {answer.headers}")
    sent = repr(request).encode()
    if PASSWORD.encode() in answer.body or (TOKEN.encode() in answer.body and TOKEN.encode() not in sent):
        found.append(f"a secret is told; {request}")
    return found + _form_faults(request, answer)


def _form_faults(request: _Request, answer: _Answer) -> list[str]:
    is_json = answer.header(b"content-type") == b"application/json"
    problem = answer.status >= 400 and not request.path.startswith(_IN_WORDS)
    if request.method == b"HEAD" or not answer.ended:
        return []
    if problem and not is_json:
        return [f"a problem that is not JSON ({answer.status}); {request}"]
    if is_json:
        try:
            told = json.loads(answer.body)
        except ValueError:
            return [f"what is not JSON; {request} {answer.body!r}"]
        if problem and not (isinstance(told.get("error"), str) and isinstance(told.get("reason"), str)):
            return [f"a problem without words; {request} {answer.body!r}"]
    return []


class _Player:
    """Plays cases, one after the other on the same applications."""

    def __init__(self) -> None:
        self._made: dict[int, _Admin] = {}

    def __call__(self, data: bytes) -> list[str]:
        data = data[:SIZE_MAX]
        number = (data[0] if data else 0) % len(SETTINGS)
        admin = self._made.get(number)
        if not admin:
            admin = self._made[number] = _Admin(_Loop(), number)
            admin.world.open()
        found: list[str] = []
        with bounded(found, data.__len__):
            for text in data[1:].split(b"\xff")[:REQUESTS_MAX]:
                if request := _parse(text):
                    found += admin.ask(request)
        for member in admin.world.balancer.membership.members.values():
            admin.world.balancer.drain(member, False)
        if admin.feed.subscribers:
            found.append("a page is still open whose client has left")
        found += admin.world.trouble
        admin.world.trouble.clear()
        if found:
            self._made.clear()
        return found


def player() -> Play:
    return _Player()


_JSON = "content-type: application/json\n"
_PATHS = [
    "/", "/healthz", "/readyz", "/readyz?up=2&pool=apps", "/readyz?up=x", "/members", "/metrics", "/api/status",
    "/api/events", "/api/settings", "/api/stream", "/openapi.json", "/static/page.js", "/members/", "/no",
    "/api/members/10.2.0.1:80/drain", f"/api/status?challenge={'0123456789abcdef' * 4}",
]  # fmt: skip
_FIELDS = [
    "host: localhost:9000\n", "host: evil.example\n", "host: [::1]\n", "", f"authorization: Bearer {TOKEN}\n",
    "accept: application/openmetrics-text; version=1.0.0; charset=utf-8, */*;q=0.5\n", "if-none-match: *\n",
    "sec-fetch-site: cross-site\n", "origin: http://evil.example\n", "accept-encoding: gzip\n",
]  # fmt: skip
_BODIES = [
    "",
    "{}",
    '{"pool": "apps"}',
    '{"pool": "x"}',
    '{"name": "shop-worker-1"}',
    "[1]",
    '{"pool": 1}',
    "{",
    "[" * 3000,
    r'{"name": "\ud800"}',
]


def seeds() -> Iterator[bytes]:
    for number in range(len(SETTINGS)):
        for path in _PATHS:
            yield f"{number}GET {path}\nhost: 127.0.0.1\n\n".encode()
        for extra in _FIELDS:
            yield f"{number}GET /metrics\n{extra}\n\n".encode()
            for what in ("drain", "undrain"):
                yield f"{number}POST /api/members/10.2.0.1:80/{what}\n{_JSON}{extra}\n\n".encode()
        token = f"authorization: Bearer {TOKEN}\nhost: localhost\n"
        for body in _BODIES:
            act = f"{number}POST /api/members/10.2.0.2%3A80/drain\n{_JSON}{token}\n{body}".encode()
            yield act
            yield act + b"\xfe}\xfd"
            yield act + b"\xff" + f"GET /api/events\n{token}\n".encode() + b"\xff" + act[1:]
