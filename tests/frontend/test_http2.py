"""HTTP/2 with clients: what crosses, and how it ends."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from balancer.frontend.client_registry import ClientRegistry
from balancer.process.sockets import listen
from balancer.types import Address
from tests.support import wire
from tests.support.http2 import Answer, Http2Client
from tests.support.http2_door import CANCEL, REFUSED_STREAM, reset, spoken
from tests.support.processes import serving
from tests.support.tls import issue, trusting
from tests.support.wire import OK, Connection, Member, answer_all, eventually


async def test_request_crosses_as_http_1_1(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        fields = [(b"x-a", b"1"), (b"x-a", b"2"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")]
        answer = await client.answer(await client.ask(*fields, path=b"/a%20b?c=d"))
        assert (answer.status, answer.headers, answer.body) == (200, [(b"content-length", b"2")], b"ok")
        (received,) = member.received
        line, *lines = received.split(b"\r\n")
        assert line == b"GET /a%20b?c=d HTTP/1.1"
        # No body was announced, so none is: RFC 9113 section 8.2.3 joins what was one Cookie.
        assert lines[:4] == [b"x-a: 1", b"x-a: 2", b"host: a", b"cookie: a=1; b=2"]
        assert b"x-forwarded-proto: https" in lines
        assert b"x-forwarded-for: 127.0.0.1" in lines
        assert not [it for it in lines if it.startswith((b"te:", b"transfer-encoding:", b"content-length:"))]
        (record,) = here.running.records
        assert (record.request.client, record.status, record.body_bytes) == ("127.0.0.1", 200, 2)


@pytest.mark.parametrize("method", [b"LIST", b"get", b"!#$%&'*+-.^_`|~1a"])
async def test_any_token_is_a_method(method: bytes, tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        assert (await client.answer(await client.ask(method=method))).status == 200
        assert member.received[0].startswith(method + b" / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "target",
    [
        b"/foo?", b"/?", b"/foo??", b"/foo?a=b?", b"/a%2Fb/../c//d?x=%20&y", b"//", b"/%ff%C3%A9%zz%", b"/a;b=c,d+e?+",
        b"/%2e%2e/./?%00", b"/|<>^`{}\"\\?[]|", b"/a%3Fb?", b"/?/?",
    ],
)  # fmt: skip
async def test_target_crosses_byte_for_byte(target: bytes, tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        assert (await client.answer(await client.ask(path=target))).status == 200
        assert member.received[0].startswith(b"GET %b HTTP/1.1\r\n" % target)
        assert here.running.records[0].request.target == target


async def test_asterisk_crosses_for_options(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        assert (await client.answer(await client.ask(method=b"OPTIONS", path=b"*"))).status == 200
        assert member.received[0].startswith(b"OPTIONS * HTTP/1.1\r\n")


async def test_clients_choose_by_alpn(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here:
        for http1, http2_ in ((True, True), (True, False), (False, True)):
            async with httpx.AsyncClient(verify=trusting(), http1=http1, http2=http2_, trust_env=False) as client:
                response = await client.get(here.running.url)
                assert (response.http_version, response.text) == ("HTTP/2" if http2_ else "HTTP/1.1", "ok")


@pytest.mark.parametrize("length", [True, False], ids=["with its length", "without"])
async def test_body_crosses_whole(length: bool, tmp_path: Path) -> None:
    size = 3_000_000

    async def echo(connection: Connection) -> None:
        head = await connection.head()
        assert (b"\r\ncontent-length: %d\r\n" % size in head) == length
        assert (b"\r\ntransfer-encoding: chunked\r\n" in head) != length
        body = b""
        if length:
            body = await connection.exactly(size)
        else:
            while count := int(await connection.until(b"\r\n"), 16):
                body += (await connection.exactly(count + 2))[:-2]
            await connection.until(b"\r\n")
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with Member(echo) as member, spoken(tmp_path, member) as here, here.client() as client:
        body = bytes(range(250)) * (size // 250)
        fields = [(b"content-length", b"%d" % size)] if length else []
        stream = await client.ask(*fields, method=b"POST", end=False)
        await client.send(stream, body, end=True)
        answer = await client.answer(stream)
        assert (answer.status, answer.body == body) == (200, True)


def has(answer: Answer, body: bytes) -> bool:
    return answer.body == body


async def test_bodies_stream_both_ways(tmp_path: Path) -> None:
    async def in_turn(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await connection.until(b"ping\r\n")
            await connection.send(b"4\r\npong\r\n")
        await connection.until(b"0\r\n\r\n")
        await connection.send(b"0\r\n\r\n")

    async with Member(in_turn) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask(method=b"POST", end=False)
        for number in range(3):
            await client.send(stream, b"ping")
            await client.until(partial(has, client.answers[stream], b"pong" * (number + 1)))
        client.h2.end_stream(stream)
        await client.flush()
        assert (await client.answer(stream)).ended


async def test_requests_are_served_side_by_side(tmp_path: Path) -> None:
    waiting: dict[bytes, asyncio.Event] = {b"/%d" % number: asyncio.Event() for number in range(100)}

    async def when_told(connection: Connection) -> None:
        while True:
            path = (await connection.head()).split(b" ")[1]
            await waiting[path].wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with Member(when_told) as member, spoken(tmp_path, member) as here, here.client() as client:
        streams = {path: await client.ask(path=path) for path in waiting}
        await eventually(lambda: here.running.balancer.proxy.active == 100)
        for path, told in reversed(waiting.items()):
            told.set()
            assert (await client.answer(streams[path])).body == path


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_response_without_a_body_ends_with_its_head(method: bytes, status: int, tmp_path: Path) -> None:
    async def bodiless(connection: Connection) -> None:
        await connection.head()
        length = b"" if status == 204 else b"Content-Length: 7\r\n"
        await connection.send(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, length))

    async with Member(bodiless) as member, spoken(tmp_path, member) as here, here.client() as client:
        answer = await client.answer(await client.ask(method=method))
        assert (answer.status, answer.body, answer.ended) == (status, b"", True)


@pytest.mark.parametrize("length", [b"0", b"5"])
async def test_204_has_no_length(length: bytes, tmp_path: Path) -> None:
    async def no_content(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(b"HTTP/1.1 204 No Content\r\nContent-Length: %b\r\nX-A: b\r\n\r\n" % length)

    async with Member(no_content) as member, spoken(tmp_path, member) as here, here.client() as client:
        for method in (b"GET", b"POST", b"HEAD"):
            answer = await client.answer(await client.ask(method=method))
            assert (answer.status, answer.headers, answer.ended) == (204, [(b"x-a", b"b")], True)


@pytest.mark.parametrize("status", [299, 599, 600, 799, 999])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
async def test_every_status_of_three_digits_crosses(method: bytes, status: int, tmp_path: Path) -> None:
    async def odd(connection: Connection) -> None:
        while True:
            head = await connection.head()
            # What stands for another status between the balancer and its library must not be taken for that.
            which = status if b" /odd " in head else 599
            body = b"" if head.startswith(b"HEAD") else b"ok"
            await connection.send(b"HTTP/1.1 %d X\r\nX-A: 599\tb\r\nContent-Length: 2\r\n\r\n%b" % (which, body))

    async with Member(odd) as member, spoken(tmp_path, member) as here, here.client() as client:
        for _ in range(3):
            stream = await client.ask(method=method, path=b"/odd")
            other = await client.ask(method=method)
            answer = await client.answer(stream)
            assert (answer.status, answer.ended, answer.reset) == (status, True, None)
            assert answer.headers == [(b"x-a", b"599 b"), (b"content-length", b"2")]
            assert answer.body == (b"" if method == b"HEAD" else b"ok")
            assert (await client.answer(other)).status == 599
        assert {it.status for it in here.running.records} == {status, 599}


async def test_trailers_do_not_cross(tmp_path: Path) -> None:
    async def with_trailers(connection: Connection) -> None:
        await connection.until(b"3\r\nabc\r\n0\r\n\r\n")
        await connection.send(
            b"HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
        )

    async with Member(with_trailers) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"te", b"trailers"), method=b"POST", end=False)
        await client.send(stream, b"abc")
        client.h2.send_headers(stream, [(b"x-t", b"1")], end_stream=True)
        await client.flush()
        answer = await client.answer(stream)
        assert (answer.body, answer.ended) == (b"ok", True)
        assert b"x-t" not in member.received[0]


async def test_client_that_asks_is_told_to_go_on(tmp_path: Path) -> None:
    async with Member(answer_all) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"expect", b"100-continue"), (b"content-length", b"3"), method=b"POST", end=False)
        await client.until(lambda: bool(client.answers[stream].informational))
        assert client.answers[stream].informational == [100]
        await client.send(stream, b"abc", end=True)
        assert (await client.answer(stream)).status == 200


async def test_client_that_asks_may_go_on_though_its_member_never_says_so(tmp_path: Path) -> None:
    async def take(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(3)
        await connection.send(OK)

    async with Member(take) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"expect", b"100-continue"), (b"content-length", b"3"), method=b"POST", end=False)
        await client.until(lambda: bool(client.answers[stream].informational))
        await client.send(stream, b"abc", end=True)
        assert (await client.answer(stream)).status == 200
        assert client.answers[stream].informational == [100]


async def test_websocket_is_left_to_http_1_1(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        await client.until(lambda: bool(client.settings))
        assert client.settings.keys() & {0x6, 0x8} == {0x6}
        stream = await client.ask((b":protocol", b"websocket"), method=b"CONNECT", end=False)
        answer = await client.answer(stream)
        assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (501, b"method_not_allowed")
        assert member.received == []


async def test_streams_beyond_those_announced_are_refused_and_safe_to_repeat(tmp_path: Path) -> None:
    told = asyncio.Event()

    async def when_told(connection: Connection) -> None:
        while True:
            await connection.head()
            await told.wait()
            await connection.send(OK)

    async with Member(when_told) as member, spoken(tmp_path, member) as here, here.client() as client:
        assert client.settings[0x3] == 128
        client.h2.remote_settings.update({0x3: 1000})
        client.h2.remote_settings.acknowledge()
        streams = [await client.ask() for _ in range(140)]
        refused = [await client.answer(stream) for stream in streams[128:]]
        assert {it.reset for it in refused} == {REFUSED_STREAM}
        told.set()
        assert [(await client.answer(stream)).body for stream in streams[:128]] == [b"ok"] * 128


async def test_upload_is_not_to_blame_for_one_beside_it_that_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wire.defaults, "stream_idle_timeout", 1.0)
    told = asyncio.Event()

    async def take_one(connection: Connection) -> None:
        head = await connection.head()
        if b"/stuck" in head:
            await told.wait()
        await connection.exactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await connection.send(OK)

    size = 40_000_000
    async with Member(take_one) as member, spoken(tmp_path, member) as here, here.client() as client:
        beside = await client.ask((b"content-length", b"3"), method=b"POST", end=False)
        stuck = await client.ask((b"content-length", b"%d" % size), method=b"POST", path=b"/stuck", end=False)
        sending = asyncio.create_task(client.send(stuck, bytes(size), end=True))
        while not await halted(client):
            pass
        assert not sending.done()
        assert await halted(client)
        # From here on the balancer reads again, and the second body comes after the first.
        object.__setattr__(here.running.balancer.settings, "stream_idle_timeout", 60.0)
        assert await halted(client)
        told.set()
        await sending
        await client.send(beside, b"abc", end=True)
        assert (await client.answer(stuck)).status == 200
        assert (await client.answer(beside)).status == 200


async def halted(client: Http2Client) -> bool:
    """Whether nothing more of a body could be sent for a while: longer than STREAM_IDLE_TIMEOUT has here."""
    before = client.sent
    await asyncio.sleep(1.3)
    return client.sent == before


async def test_response_that_breaks_off_breaks_its_stream_alone(tmp_path: Path) -> None:
    async def cut(connection: Connection) -> None:
        head = await connection.head()
        if head.startswith(b"GET /cut"):
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        else:
            await asyncio.sleep(0.1)
            await connection.send(OK)

    async with Member(cut) as member, spoken(tmp_path, member) as here, here.client() as client:
        other = await client.ask()
        answer = await client.answer(await client.ask(path=b"/cut"))
        assert (answer.status, answer.ended, answer.reset) == (200, False, CANCEL)
        assert (await client.answer(other)).body == b"ok"
        assert {it.error for it in here.running.records} == {"truncated", ""}


async def test_tab_in_a_value_becomes_a_space(tmp_path: Path) -> None:
    async def tabbed(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nX-A: a\tb\r\nContent-Length: 2\r\n\r\nok")

    async with Member(tabbed) as member, spoken(tmp_path, member) as here, here.client() as client:
        answer = await client.get("/")
        assert (answer.status, dict(answer.headers)[b"x-a"], answer.body) == (200, b"a b", b"ok")


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \t ", b"  "])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_white_space_around_a_members_value_is_left_out(method: bytes, blank: bytes, tmp_path: Path) -> None:
    async def padded(connection: Connection) -> None:
        while True:
            await connection.head()
            value = blank + b"PHP/8.1" + blank
            await connection.send(b"HTTP/1.1 200 OK\r\nX-Powered-By:%b\r\nContent-Length: 2\r\n\r\nok" % value)

    async with Member(padded) as member, spoken(tmp_path, member) as here, here.client() as client:
        for _ in range(3):  # The head may be remembered.
            answer = await client.answer(await client.ask(method=method))
            assert (answer.status, dict(answer.headers)[b"x-powered-by"], answer.body) == (200, b"PHP/8.1", b"ok")


async def test_field_that_cannot_be_said_is_a_bad_response(tmp_path: Path) -> None:
    async def escaped(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nX-A: \x1b[0m\r\nContent-Length: 2\r\n\r\nok")

    async with Member(escaped) as member, spoken(tmp_path, member) as here, here.client() as client:
        answer = await client.get("/")
        assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (502, b"bad_response")


async def leave(client: Http2Client, stream: int) -> None:
    client.connection.close()


@pytest.mark.parametrize("how", [reset, leave])
@pytest.mark.parametrize("begun", [False, True], ids=["before the response", "in mid-response"])
async def test_client_that_leaves_cancels_its_request(how: Any, begun: bool, tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.head()
        if begun:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await connection.to_end()
        ended.set()

    async with Member(slow) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask()
        if begun:
            await client.until(lambda: client.answers[stream].body == b"abc")
        else:
            await eventually(lambda: bool(member.received))
        await how(client, stream)
        await asyncio.wait_for(ended.wait(), 5)
        await here.running.idle()
        assert [it.error for it in here.running.records] == ["client_gone"]


async def test_client_that_leaves_in_mid_upload_cancels_it(tmp_path: Path) -> None:
    async with Member(answer_all) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"content-length", b"9"), method=b"POST", end=False)
        await client.send(stream, b"abc")
        await eventually(lambda: bool(member.received))
        await reset(client, stream)
        await eventually(lambda: [it.error for it in here.running.records] == ["client_gone"])
        assert (await client.get("/")).body == b"ok"


async def test_client_that_leaves_while_it_waits_for_a_member_costs_nothing(tmp_path: Path) -> None:
    async with spoken(tmp_path, queue_timeout=60.0) as here, here.client() as client:
        stream = await client.ask()
        await eventually(lambda: here.running.balancer.proxy.active == 1)
        await reset(client, stream)
        await here.running.idle()


async def test_http2_request_in_flight_is_finished_when_the_server_stops(tmp_path: Path) -> None:
    told = asyncio.Event()

    async def when_told(connection: Connection) -> None:
        while True:
            if b"/wait" in await connection.head():
                await told.wait()
            await connection.send(OK)

    async with Member(when_told) as member, serving(member, http2="on", **issue(tmp_path)) as serve:
        await serve.logged("up: accepts connections")
        async with serve.client(trusting("h2")) as connection:
            client = Http2Client(connection)
            await client.begin()
            waiting = await client.ask(path=b"/wait")
            await eventually(lambda: bool(member.received))
            serve.process.terminate()
            await serve.logged("stopping: 1 request in progress")
            # Who asks for more is served, and told to ask elsewhere from now on; who does not is not disturbed.
            assert not client.told_to_go()
            while not client.told_to_go():
                assert (await client.get("/")).body == b"ok"
            assert client.goaway
            assert (client.goaway.error_code, client.goaway.last_stream_id) == (0, 2**31 - 1)
            told.set()
            assert (await client.answer(waiting)).body == b"ok"
            await client.until(lambda: False)
        status, _, err = await serve.stop()
    assert (status, "Traceback" in err) == (0, False)


async def test_ipv4_client_of_an_ipv6_socket_has_its_plain_address(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here:
        running, sock = here.running, listen("BIND", Address("::", 0))
        clients = ClientRegistry(running.balancer.proxy, running.balancer.settings)
        async with wire.listening(running.balancer, sock, clients, running.certificate):
            running.listens = Address("127.0.0.1", sock.getsockname()[1])
            async with here.client() as client:
                assert (await client.get("/")).status == 200
                assert (await client.answer(await client.ask(method=b"CONNECT"))).status == 501
        assert [it.request.client for it in running.records] == ["127.0.0.1", "127.0.0.1"]
        assert b"\r\nx-forwarded-for: 127.0.0.1\r\n" in member.received[0]
