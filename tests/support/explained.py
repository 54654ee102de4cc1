"""Every failure that the balancer has a word for, made to happen: for the tests of what log and metrics say of it.

``docs/reference/errors.md`` has a row for each, and the tests hold the row against what happens here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from balancer.hooks import HookRequest, Hooks
from balancer.http.loops import mark_of
from tests.support.messages import LAST_GET as GET
from tests.support.wire import OK, Connection, Running, Script, eventually, keep_answering

POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"


class Broken(Hooks):
    """A guard that meets a request it was not made for."""

    fail_closed = True

    def on_request(self, request: HookRequest) -> None:
        raise LookupError("no such tenant")


# What a client does; the last that it got from the balancer.
Act = Callable[[Running], Awaitable[bytes]]


def send(request: bytes) -> Act:
    async def act(running: Running) -> bytes:
        return await running.exchange(request)

    return act


async def reset(connection: Connection) -> None:
    """A member that dies with the request in hand."""
    await connection.head()
    connection.reset()


async def talk_nonsense(connection: Connection) -> None:
    await connection.head()
    await connection.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    await connection.to_end()


async def say_nothing(connection: Connection) -> None:
    await connection.to_end()


async def answer_half(connection: Connection) -> None:
    await connection.head()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


async def be_slow(connection: Connection) -> None:
    await connection.head()
    await asyncio.sleep(0.6)
    await connection.send(OK)


async def wait_for_the_end(running: Running) -> bytes:
    """The balancer is stopped while a request waits for a member."""
    answer = asyncio.create_task(running.exchange(GET))
    await eventually(lambda: len(running.balancer.dispatcher.queue) == 1)
    running.balancer.proxy.abort_all()
    return await answer


async def come_second(running: Running) -> bytes:
    """Ask while another request has the only member's only slot."""
    async with running.client() as first:
        await first.send(GET)
        await eventually(lambda: running.balancer.proxy.active == 1)
        answer = await running.exchange(GET)
        await first.until(b"ok")  # A client that left would count as another error.
        return answer


async def connect_twice(running: Running) -> bytes:
    async with running.client() as first:
        await first.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await first.until(b"ok")
        async with running.client() as second:
            return await second.to_end()


async def leave(running: Running) -> bytes:
    async with running.client() as client:
        await client.send(GET)
        await eventually(lambda: running.balancer.proxy.active == 1)
    await eventually(lambda: bool(running.records))
    return b""


async def come_back(running: Running) -> bytes:
    """Ask with the mark of the pool itself, as a request that a member has passed on to the balancer again."""
    running.balancer.dispatcher.mark_requests("known")
    settings = running.balancer.settings
    mark = mark_of("known", f"{settings.alias}:{settings.upstream_port}")
    return await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nCDN-Loop: %b\r\n\r\n" % mark))


@dataclass(frozen=True)
class Case:
    """How to make a failure happen, and what is to be known of it afterwards.

    ``script``: what the member does, or None where nobody is. ``status``: what the log says, and the client is told
    where it can be. ``attempts``: the reasons with which a member failed it. ``member``: whether the log names one.
    ``queued``: whether it waited.
    """

    act: Act
    status: int
    script: Script | None = keep_answering
    attempts: tuple[str, ...] = ()
    member: bool = False
    queued: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "malformed_request": Case(send(GET.replace(b"Host: a", b"Host: a\r\nHost: b")), 400),
    "method_not_allowed": Case(send(GET.replace(b"GET", b"TRACE")), 405),
    "request_timeout": Case(send(b"GET / HT"), 408, settings={"header_timeout": 0.3}),
    "body_too_large": Case(send(POST), 413, settings={"max_body_bytes": 3}),
    "uri_too_long": Case(send(GET.replace(b" / ", b" /" + 300 * b"a" + b" ")), 414, settings={"max_uri_bytes": 256}),
    "headers_too_large": Case(
        send(GET.replace(b"Host: a", b"Host: a" + 20 * b"\r\nA: b")), 431, settings={"max_headers": 10}
    ),
    "version_not_supported": Case(send(GET.replace(b"HTTP/1.1", b"HTTP/2.0")), 505),
    "member_failed": Case(send(POST), 502, reset, ("died",), member=True),
    "bad_response": Case(send(POST), 502, talk_nonsense, ("not_http",), member=True),
    "hook_failed": Case(send(GET), 503, settings={"hooks": [Broken()]}),
    "no_member": Case(send(GET), 503, None, queued=True, settings={"queue_timeout": 0.2}),
    "queue_full": Case(send(GET), 503, None, settings={"queue_max": 0}),
    "overloaded": Case(
        come_second, 503, be_slow, queued=True, settings={"max_requests_per_member": 1, "queue_timeout": 0.2}
    ),
    "shutting_down": Case(wait_for_the_end, 503, None, queued=True),
    "too_many_connections": Case(connect_twice, 503, settings={"max_connections": 1}),
    "response_timeout": Case(
        send(GET), 504, say_nothing, ("timeout",), member=True, settings={"response_timeout": 0.2}
    ),
    "loop_detected": Case(come_back, 508),
    "client_gone": Case(leave, 499, say_nothing, member=True),
    "truncated": Case(send(GET), 200, answer_half, ("truncated",), member=True),
}
