"""The drill's clients: GETs, and POSTs whose ids the workers record, so that a repeat would show."""

from __future__ import annotations

import asyncio
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from balancer.errors import TruncatedResponse, UpstreamError
from balancer.http.headers import NO_FIELDS
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.native import NativeUpstream

CLIENTS = 40
POST_SHARE = 0.3
# Each client's pause between two requests, in seconds: the drill is about loss, not about speed.
PAUSE = 0.1
# Longer than anything may take: a client that gives up earlier would hide a stall.
PATIENCE = 90.0

_WHO = re.compile(rb"I am ([^!\s]+)!")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. ``began`` and ``ended`` are readings of the monotonic clock; ``failure`` says what went wrong."""

    method: str
    began: float
    ended: float
    who: str
    failure: str
    name: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``name``: what its worker records it under. ``who``: the service that has to answer, if not any."""

    method: str
    path: bytes
    name: str = ""
    who: str = ""


def greet_or_record(rng: random.Random, site: str = "") -> Ask:
    """What the example worker is asked. ``site``: the route to it, which is also what it has to call itself."""
    prefix = f"/{site}".encode() if site else b""
    if rng.random() < POST_SHARE:
        return Ask("POST", prefix + b"/record", uuid.uuid4().hex, site)
    return Ask("GET", prefix + b"/", who=site)


class Load:
    """ClientRegistry on connections that stay open; ``outcomes`` grows as they go.

    ``pause``: of each, in seconds. ``mix``: what they ask.
    """

    def __init__(
        self,
        url: str,
        pause: float = PAUSE,
        clients: int = CLIENTS,
        mix: Callable[[random.Random], Ask] = greet_or_record,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._target = Address(parts.hostname, parts.port)
        self._pause = pause
        self._clients = clients
        self._mix = mix
        self._upstream = NativeUpstream(Timeouts(connect=PATIENCE, response=PATIENCE, idle=PATIENCE))
        self._rng = random.Random(1)
        self._stop = False
        self.outcomes: list[Outcome] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends requests for as long as the context lasts; those under way are finished."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(self._clients):
                clients.create_task(self._client())
            try:
                yield
            finally:
                self._stop = True
        await self._upstream.close()

    async def _client(self) -> None:
        await asyncio.sleep(self._rng.random() * self._pause)
        while not self._stop:
            await self.send(self._mix(self._rng))
            await asyncio.sleep(self._pause * (0.5 + self._rng.random()))

    async def send(self, ask: Ask) -> None:
        """Send one request more; its outcome counts as the others do."""
        headers = [(b"host", str(self._target).encode())]
        request = UpstreamRequest(ask.method, ask.path, headers)
        if ask.method != "GET":
            headers.append((b"content-length", str(len(ask.name)).encode()))
            request.body = _Whole(ask.name.encode())
        began = time.monotonic()
        who = failure = ""
        try:
            response = await self._upstream.send(self._target, request)
            body, more = b"", True
            try:
                while more:
                    piece, more = await response.read()
                    body += piece
            finally:
                await response.close()
            if response.status != 200:
                token = next((value for name_, value in response.headers if name_ == b"x-balancer-error"), b"")
                failure = f"{response.status} {token.decode() or body.decode(errors='replace').strip()[-40:]}"
            elif named := _WHO.search(body):
                who = named[1].decode()
                if ask.who and who != ask.who:
                    failure = f"answered by {who} in place of {ask.who}"
            else:
                failure = "an answer that is not a worker's"
        except (UpstreamError, TruncatedResponse) as error:
            failure = f"{type(error).__name__}: {error}"
        self.outcomes.append(Outcome(ask.method, began, time.monotonic(), who, failure, ask.name))


class _Whole:
    """A request body that is all there."""

    trailers = NO_FIELDS

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def ended(self) -> bool:
        return not self._data

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        return data
