"""Each bound that a client can reach, at every door: what is refused or ended, by which token, and what is counted."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from balancer.frontend import client_registry
from balancer.frontend.http1_connection import PIPELINE_MAX
from tests.support.doors import ALL, HTTP1, OWN, Door, Reply, at_once
from tests.support.wire import Connection, Member, eventually

MEBI = 1 << 20
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MEBI) + bytes(MEBI)


async def member(connection: Connection) -> None:
    """Answer each request at once; an answer to /large is large."""
    while True:
        head = await connection.head()
        if b"content-length: 9" in head:
            await connection.exactly(9)
        if b" /large " not in head:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            continue
        await connection.send(LARGE)
        for _ in range(63):
            await connection.send(bytes(MEBI))


# Bounds of a request: it is refused, and its line in the log has the token.


class Refused(NamedTuple):
    """A request beyond a bound, and its answer. ``doors``: those at which the balancer has that bound.

    Limits of heads are the business of a server beneath ASGI (docs/guides/library.md).
    """

    ask: dict[str, Any]
    reply: Reply
    settings: dict[str, Any]
    doors: dict[str, Door] = ALL


BEYOND = {
    "MAX_HEADER_BYTES": Refused(
        {"fields": [(b"X-Long", b"x" * 5000)]}, Reply(431, "headers_too_large"), {"max_header_bytes": 4096}, OWN
    ),
    "MAX_HEADERS": Refused(
        {"fields": [(b"X-%d" % number, b"x") for number in range(30)]},
        Reply(431, "headers_too_large"),
        {"max_headers": 20},
        OWN,
    ),
    "MAX_URI_BYTES": Refused({"target": b"/" + b"x" * 300}, Reply(414, "uri_too_long"), {"max_uri_bytes": 256}, OWN),
    "MAX_BODY_BYTES, as announced": Refused(
        {"method": b"POST", "length": 70000},
        Reply(413, "body_too_large"),
        {"max_body_bytes": 65536},
    ),
    "MAX_BODY_BYTES, as it comes": Refused(
        {"method": b"POST", "body": b"x" * 70000}, Reply(413, "body_too_large"), {"max_body_bytes": 65536}
    ),
    "options of Connection": Refused(
        {"fields": [(b"Connection", b", ".join(b"x-%d" % number for number in range(33)))]},
        Reply(400, "malformed_request"),
        {},
        {name: door for name, door in ALL.items() if name != "HTTP/2"},
    ),
}


@pytest.mark.parametrize(("bound", "door"), [(bound, door) for bound, case in BEYOND.items() for door in case.doors])
async def test_request_beyond_a_bound_is_refused_at_every_door(bound: str, door: str, tmp_path: Path) -> None:
    case = BEYOND[bound]
    async with Member(member) as it, case.doors[door].open(it, tmp_path, **case.settings) as here:
        assert await here.ask(**case.ask) == case.reply
        assert await here.ask() == Reply(200)
        await here.running.idle()
        assert [record.error for record in here.running.records] == [case.reply.token, ""]
        if "as it comes" not in bound:
            assert len(it.received) == 1


# Bounds of time: what does not go on has an end.


class Ended(NamedTuple):
    """A client that does not go on. ``act``: a method of OpenDoor.

    ``reply``: what it gets; ``counted``: as which bound; both over HTTP/2, too.
    """

    act: str
    reply: Reply
    http2: Reply
    counted: str = ""
    http2_counted: str = ""


SLOW = {
    "says nothing": Ended("say_nothing", Reply(0), Reply(0), "header_timeout", "header_timeout"),
    "half a head": Ended("send_half_a_head", Reply(408, "request_timeout"), Reply(0), http2_counted="header_timeout"),
    "half a body": Ended("send_half_a_body", Reply(408, "request_timeout"), Reply(408, "request_timeout")),
    "idle": Ended("stay_idle", Reply(0), Reply(0)),
}


@pytest.mark.usefixtures("impatient")
@at_once(OWN)
@pytest.mark.parametrize("case", SLOW)
async def test_client_that_does_not_go_on_is_ended_at_every_door(case: str, door: Door, tmp_path: Path) -> None:
    slow = SLOW[case]
    async with Member(member) as it, door.open(it, tmp_path) as here:
        reply, counted = (slow.http2, slow.http2_counted) if door.speaks_http2 else (slow.reply, slow.counted)
        assert await getattr(here, slow.act)() == reply
        await here.running.idle()
        await eventually(lambda: not here.clients.connections)
        assert here.reached == ({counted: 1} if counted else {})
        assert [record.error for record in here.running.records if record.error] == [reply.token] * bool(reply.token)


@pytest.mark.usefixtures("impatient")
@at_once(OWN)
async def test_client_that_reads_nothing_is_cut_off_at_every_door(door: Door, tmp_path: Path) -> None:
    async with Member(member) as it, door.open(it, tmp_path) as here:
        await here.read_nothing()
        await here.running.idle()
        assert here.reached == {"unread": 1}
        assert [record.error for record in here.running.records] == ["client_gone"]


# Bounds of connections.


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_client"])
@at_once(OWN)
async def test_connection_beyond_a_bound_is_refused_at_every_door(
    door: Door, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    async with Member(member) as it, door.open(it, tmp_path, **{limit: 2}) as here:
        async with AsyncExitStack() as open_ones:
            for _ in range(2):
                await open_ones.enter_async_context(here.client())
            await eventually(lambda: len(here.clients.connections) == 2)
            refused = Reply(0) if door.speaks_http2 else Reply(503, "too_many_connections")
            assert await here.say_nothing() == refused
            assert here.reached == {limit.removeprefix("max_"): 1}
        await eventually(lambda: not here.clients.connections)
        assert await here.ask() == Reply(200)


# Bounds of HTTP/1.1 alone.


@at_once(HTTP1)
async def test_requests_ahead_of_their_answers_are_bounded_at_every_door(door: Door, tmp_path: Path) -> None:
    async with Member(member) as it, door.open(it, tmp_path) as here, here.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 300)
        answers = (await client.to_end()).count(b"HTTP/1.1 200 OK")
        assert PIPELINE_MAX <= answers < 300
