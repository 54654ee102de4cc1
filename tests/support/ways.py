"""All ways of a request through the balancer: each door of clients, and each kind of connection to members."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balancer.dispatch.context import RequestRecord
from balancer.loadbalancer import LoadBalancer
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream
from tests.support.calls import calling
from tests.support.doors import ALL, Ask, Asked, Door, OpenDoor, OpenHttp2Door, Reply
from tests.support.wire import LIMIT, Member, balance


@dataclass(frozen=True)
class OpenWay:
    """A balancer, and a client whose connection stays open. ``records`` has a record for every finished request."""

    ask: Ask
    balancer: LoadBalancer
    records: Sequence[RequestRecord]


@dataclass(frozen=True)
class Way:
    """A way: ``door`` is that of clients, or None for a program's own calls. ``httpx``: members are reached by it."""

    door: Door | None
    httpx: bool = False

    @asynccontextmanager
    async def open(self, folder: Path, *members: Member, **settings: Any) -> AsyncIterator[OpenWay]:
        """A balancer over these members. ``settings``: fields of Settings."""
        if self.httpx:
            settings["upstream"] = HttpxUpstream(Timeouts(connect=LIMIT, response=LIMIT, idle=LIMIT))
        if self.door is None:
            async with calling(*members, **settings) as here:

                async def call(**request: Any) -> Reply:
                    it = Asked(**request)
                    headers = [(name.decode(), value.decode()) for name, value in it.fields]
                    answer = await here.client.request(
                        it.method.decode(), it.target.decode(), headers=headers, content=it.body
                    )
                    token = answer.headers.get("x-balancer-error", "")
                    return Reply(answer.status_code, token, answer.content)

                yield OpenWay(call, here.balancer, here.records)
            return
        if self.door.speaks_http2:
            pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
        settings = self.door.settings(folder) | settings
        async with balance(*members, own_edge=self.door.own, **settings) as running:
            opened = (OpenHttp2Door if self.door.speaks_http2 else OpenDoor)(self.door, running)
            async with opened.asking() as ask:
                yield OpenWay(ask, running.balancer, running.records)


WAYS = {
    "HTTP/1.1": Way(ALL["HTTP/1.1"]),
    "HTTP/2": Way(ALL["HTTP/2"]),
    "ASGI": Way(ALL["ASGI"]),
    "httpx": Way(ALL["HTTP/1.1"], httpx=True),
    "ASGI and httpx": Way(ALL["ASGI"], httpx=True),
    "calls": Way(None),
    "calls and httpx": Way(None, httpx=True),
}
