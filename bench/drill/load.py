"""The drill's clients: GETs, and POSTs whose ids the workers record, so that a repeat would show."""

from __future__ import annotations

import asyncio
import random
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from balancer.errors import Fault, TruncatedResponse
from balancer.headers import NO_FIELDS
from balancer.native_upstream import NativeUpstream
from balancer.settings import Address
from balancer.upstream import Timeouts, UpstreamRequest

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


class Load:
    """Forty clients on connections that stay open; ``outcomes`` grows as they go. ``pause``: of each, in seconds."""

    def __init__(self, url: str, pause: float = PAUSE) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._target = Address(parts.hostname, parts.port)
        self._pause = pause
        self._upstream = NativeUpstream(Timeouts(connect=PATIENCE, response=PATIENCE, idle=PATIENCE))
        self._rng = random.Random(1)
        self._stop = False
        self.outcomes: list[Outcome] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends requests for as long as the context lasts; those under way are finished."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client())
            try:
                yield
            finally:
                self._stop = True
        await self._upstream.close()

    async def _client(self) -> None:
        await asyncio.sleep(self._rng.random() * self._pause)
        while not self._stop:
            self.outcomes.append(await self._request())
            await asyncio.sleep(self._pause * (0.5 + self._rng.random()))

    async def _request(self) -> Outcome:
        host = (b"host", str(self._target).encode())
        name = ""
        request = UpstreamRequest("GET", b"/", [host])
        if self._rng.random() < POST_SHARE:
            name = uuid.uuid4().hex
            headers = [host, (b"content-length", str(len(name)).encode())]
            request = UpstreamRequest("POST", b"/record", headers, _Whole(name.encode()))
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
            else:
                failure = "an answer that is not a worker's"
        except (Fault, TruncatedResponse) as error:
            failure = f"{type(error).__name__}: {error}"
        return Outcome(request.method, began, time.monotonic(), who, failure, name)


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
