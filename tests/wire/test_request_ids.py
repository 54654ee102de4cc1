"""Every request has an id that client, balancer and member know it by."""

from __future__ import annotations

import re

import pytest

from tests.support.messages import GET
from tests.support.wire import Connection, Member, balance

pytestmark = pytest.mark.usefixtures("each_way")

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"


def ids(received: bytes) -> list[bytes]:
    return re.findall(rb"(?i)\r\nx-request-id: (.*)\r\n", received)


async def ask(client: Connection, request: bytes, times: int = 1) -> None:
    for _ in range(times):
        await client.send(request)
        await client.head()
        await client.exactly(2)


@pytest.mark.parametrize("request_bytes", [GET, POST], ids=["GET", "POST"])
async def test_request_without_an_id_gets_one_of_its_own(request_bytes: bytes) -> None:
    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            if head.startswith(b"POST"):
                await connection.exactly(2)
            await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await ask(client, request_bytes, times=5)
        found = ids(b"".join(member.received))
        assert len(set(found)) == 5
        await running.idle()
        assert [it.id for it in running.records] == found


async def test_clients_id_is_passed_on_as_it_is() -> None:
    request = GET.replace(b"Host: a", b"Host: a\r\nX-Request-ID: it's \xe9 mine")
    async with Member() as member, balance(member) as running, running.client() as client:
        await ask(client, request, times=4)
        await ask(client, GET)
        found = ids(b"".join(member.received))
        assert found[:4] == [b"it's \xe9 mine"] * 4
        assert len(found) == 5 and found[4] != found[0]
        await running.idle()
        assert [it.id for it in running.records] == found


async def test_repeat_goes_by_the_same_id() -> None:
    async def hang_up(connection: Connection) -> None:
        await connection.head()

    async with (
        Member(hang_up) as bad,
        Member() as good,
        balance(bad, good) as running,
        running.client() as client,
    ):
        await ask(client, GET, times=2)
        failed = ids(b"".join(bad.received))
        assert failed and set(failed) <= set(ids(b"".join(good.received)))


async def test_context_of_a_trace_is_passed_on() -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = GET.replace(b"Host: a", b"Host: a\r\nTraceparent: %b\r\nTracestate: x=y" % trace)
    async with Member() as member, balance(member) as running, running.client() as client:
        await ask(client, request)
        assert b"\r\ntraceparent: %b\r\n" % trace in member.received[0].lower()
        assert b"\r\ntracestate: x=y\r\n" in member.received[0].lower()
