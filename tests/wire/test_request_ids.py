"""Every request has an id that client, balancer and member know it by."""

from __future__ import annotations

import re

import pytest
from websockets.asyncio.client import connect

from tests.support.messages import GET, LAST_GET
from tests.support.websocket import member as member_of_websockets
from tests.support.wire import Connection, Member, Script, balance, keep_answering

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


TWO_HOSTS = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n%b\r\n"


@pytest.mark.parametrize("request_bytes", [LAST_GET, TWO_HOSTS % b""], ids=["no member", "two hosts"])
async def test_answer_of_the_balancers_own_has_the_id_of_its_line_in_the_log(request_bytes: bytes) -> None:
    async with balance(queue_timeout=0.0) as running:
        answer = await running.exchange(request_bytes)
        await running.idle()
        (record,) = running.records
        assert record.id
        assert ids(answer) == [record.id]
        assert answer.endswith(b"\nrequest id: %b\n" % record.id)


@pytest.mark.parametrize("request_bytes", [LAST_GET, TWO_HOSTS % b""], ids=["no member", "two hosts"])
async def test_answer_of_the_balancers_own_has_the_clients_id(request_bytes: bytes) -> None:
    async with balance(queue_timeout=0.0) as running:
        answer = await running.exchange(request_bytes.replace(b"Host: a", b"Host: a\r\nX-Request-ID: mine-1"))
        assert (ids(answer), [it.id for it in running.records]) == ([b"mine-1"], [b"mine-1"])


async def test_id_that_may_not_be_sent_back_is_not() -> None:
    async with balance(queue_timeout=0.0) as running:
        answer = await running.exchange(TWO_HOSTS % b"X-Request-ID: \xff \xfe\r\n")
        assert ids(answer) == [it.id for it in running.records] != [b"\xff \xfe"]


async def test_long_id_is_in_the_text_as_the_log_has_it() -> None:
    long = b"a" * 500
    async with balance(queue_timeout=0.0) as running:
        answer = await running.exchange(LAST_GET.replace(b"Host: a", b"Host: a\r\nX-Request-ID: " + long))
        assert ids(answer) == [long]
        assert answer.endswith(b"\nrequest id: %b\n" % long[:128])


async def answer_with_an_id(connection: Connection) -> None:
    """A member that sends an id of its own."""
    while True:
        head = await connection.head()
        if head.startswith(b"POST"):
            await connection.exactly(2)
        await connection.send(b"HTTP/1.1 200 OK\r\nX-Request-ID: theirs\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize("script", [keep_answering, answer_with_an_id], ids=["without", "with an id"])
async def test_response_has_the_id_of_the_log_where_the_setting_says_so(script: Script) -> None:
    async with Member(script) as member, balance(member, response_request_id=True) as running:
        async with running.client() as client:
            found = []
            for request in [GET] * 4 + [GET.replace(b"Host: a", b"Host: a\r\nX-Request-ID: mine")] * 3:
                await client.send(request)
                found += ids(await client.head())
                await client.exactly(2)
        await running.idle()
        assert found == [it.id for it in running.records]
        assert len(set(found)) == 5


async def test_response_is_the_members_own_unless_the_setting_says_so() -> None:
    async with Member(answer_with_an_id) as member, balance(member) as running, running.client() as client:
        for _ in range(3):
            await client.send(POST)
            assert ids(await client.head()) == [b"theirs"]
            await client.exactly(2)


async def test_switch_of_protocols_has_the_id_where_the_setting_says_so() -> None:
    async with member_of_websockets() as member, balance(member, response_request_id=True) as running:
        async with connect(f"ws://{running.address}/", proxy=None) as websocket:
            assert websocket.response
            id = websocket.response.headers["x-request-id"]
        await running.idle()
        assert [it.id.decode() for it in running.records] == [id]
