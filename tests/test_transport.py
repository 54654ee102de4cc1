"""A client's own calls through ``BalancedTransport``: what members get, and what the caller gets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from balancer import BalancedTransport
from balancer.hooks import HookRequest, Hooks, Refusal
from tests.support.calls import CUT, answering, calling, hang, scripted
from tests.support.scripted import ScriptedResolver
from tests.support.wire import OK, Connection, Member, eventually


class Guard(Hooks):
    fail_closed = True

    def on_request(self, request: HookRequest) -> None:
        if request.target == "/private":
            raise Refusal(307, "moved", "elsewhere", headers={"Location": "/public"})
        if request.target == "/broken":
            raise LookupError("no such tenant")


async def test_hooks_answer_calls_as_they_answer_requests() -> None:
    async with Member() as member, calling(member, hooks=[Guard()]) as calls:
        answer = await calls.client.get("/private")
        assert (answer.status_code, answer.headers["location"]) == (307, "/public")
        assert answer.text == f"307 elsewhere\nrequest id: {answer.headers['x-request-id']}\n"
        assert (await calls.client.get("/private", follow_redirects=True)).text == "ok"
        answer = await calls.client.get("/broken")
        assert (answer.status_code, answer.headers["x-balancer-error"]) == (503, "hook_failed")


def fields(received: bytes) -> dict[bytes, bytes]:
    pairs = [it.partition(b": ") for it in received.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
    return {name.lower(): value for name, _, value in pairs}


# What members get.


async def test_members_take_turns_on_connections_that_stay_open() -> None:
    async with Member() as one, Member() as two, calling(one, two) as here:
        answers = [await here.client.get("/") for _ in range(6)]
        assert [(it.status_code, it.text) for it in answers] == [(200, "ok")] * 6
        assert [it.received[0].count(b"GET / HTTP/1.1\r\n") for it in (one, two)] == [3, 3]
        members = [it.extensions["balancer"].member for it in answers]
        assert members[:2] == members[2:4] == members[4:]
        assert set(members) == {one.address, two.address}


async def test_request_is_the_callers_own() -> None:
    async with Member() as member, calling(member) as here:
        target = "/a%2Fb/%ff?x=%20&&y"
        await here.client.get(target, headers={b"X-Forwarded-For": b"9.9.9.9", b"X-B": b"caf\xe9"})
        await here.client.options("/", extensions={"target": b"*"})
        head, other = member.received[0].split(b"\r\n\r\n")[:2]
        assert head.startswith(b"GET /a%2Fb/%ff?x=%20&&y HTTP/1.1\r\n")
        assert other.startswith(b"OPTIONS * HTTP/1.1\r\n")
        sent = fields(head)
        assert sent[b"host"] == b"shop.example"
        assert sent[b"x-forwarded-for"] == b"9.9.9.9"
        assert sent[b"x-b"] == b"caf\xe9"
        assert sent[b"x-request-id"] == here.records[0].id
        assert sent[b"user-agent"].startswith(b"python-httpx/")
        assert not sent.keys() & {b"forwarded", b"x-forwarded-proto", b"x-forwarded-host", b"connection"}


@pytest.mark.parametrize("size", [0, 3, 300_000])
@pytest.mark.parametrize("announced", [True, False])
async def test_body_arrives_whole(size: int, announced: bool) -> None:
    content = bytes(it % 251 for it in range(size))
    got = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b""
        for start in range(0, size, 70_000):
            yield content[start : start + 70_000]
            yield b""

    async def take(connection: Connection) -> None:
        sent = fields(connection.received)
        if b"content-length" in sent:
            assert announced
            assert await connection.exactly(int(sent[b"content-length"])) == content
        else:
            assert sent[b"transfer-encoding"] == b"chunked"
            body = b""
            while length := int(await connection.until(b"\r\n"), 16):
                body += await connection.exactly(length)
                await connection.until(b"\r\n")
            assert await connection.until(b"\r\n") == b"\r\n"
            assert body == content
        got.set()
        await connection.send(OK)

    async with scripted(take) as member, calling(member) as here:
        answer = await here.client.post("/", content=content if announced else stream())
        assert answer.text == "ok"
        assert got.is_set()
        await here.idle()


@pytest.mark.parametrize(("pieces", "words"), [([b"abc", b"d"], "much"), ([b"ab"], "little"), ([], "little")])
async def test_body_of_another_length_than_announced_does_not_reach_a_member_as_a_request(
    pieces: list[bytes], words: str
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def take(connection: Connection) -> None:
        await connection.exactly(3)
        await connection.send(OK)

    async with scripted(take) as member, calling(member) as here:
        with pytest.raises(httpx.LocalProtocolError, match=f"Too {words} data"):
            await here.client.post("/", content=stream(), headers={"Content-Length": "3"})
        await here.idle()
        assert (await here.client.post("/", content=b"abc")).text == "ok"
        assert here.records[0].status == 499


async def test_exception_of_the_callers_body_reaches_the_caller() -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"begun"
        raise OSError("the file is gone")

    async def take(connection: Connection) -> None:
        await connection.to_end()

    async with scripted(take) as member, calling(member) as here:
        with pytest.raises(OSError, match="the file is gone"):
            await here.client.put("/", content=stream())
        await here.idle()
        assert len(member.received) == 1
        assert [it.error for it in here.records] == ["client_gone"]


@pytest.mark.parametrize(
    "request_",
    [
        {"url": "/", "headers": {"X-A": b"1\r\nX-Evil: 2"}},
        {"url": "/", "headers": {b"X A": b"1"}},
        {"url": "/", "extensions": {"target": b"/ HTTP/1.1\r\nX-Evil: 2"}},
        {"url": "/", "extensions": {"target": b""}},
        {"url": "/", "method": "GE T"},
        {"url": "/", "method": "CONNECT"},
        {"url": "/", "headers": [("Host", "a"), ("Host", "b")]},
        {"url": "/", "headers": [("Content-Length", "3"), ("Transfer-Encoding", "chunked")]},
        {"url": "/", "headers": {"Transfer-Encoding": "gzip"}},
        {"url": "/", "headers": {"Content-Length": "-3"}},
    ],
    ids=lambda it: str(it)[:60],
)
async def test_request_that_is_no_http_is_refused_before_a_member_sees_it(request_: dict[str, Any]) -> None:
    async with Member() as member, calling(member) as here:
        with pytest.raises(httpx.LocalProtocolError):
            await here.client.request(**{"method": "GET", **request_})
        assert not member.received


async def test_members_are_not_spoken_to_in_plain_where_tls_was_asked_for() -> None:
    async with Member() as member, calling(member) as here:
        with pytest.raises(httpx.UnsupportedProtocol, match="plain HTTP"):
            await here.client.get("https://shop.example/")
        assert not member.received


@pytest.mark.parametrize("target", ["/foo?", "/?", "/foo?a=b?", "/a%2Fb//d?x=%20&y"])
async def test_target_of_a_call_arrives_byte_for_byte(target: str) -> None:
    async with Member() as member, calling(member) as here:
        assert (await here.client.get(target)).status_code == 200
        assert member.received[0].startswith(b"GET %b HTTP/1.1\r\n" % target.encode())


# What the caller gets.


async def test_response_is_the_members_own() -> None:
    body = gzip.compress(b"hello")
    head = b"HTTP/1.1 203 Fine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\nConnection: x-private"
    response = head + b"\r\nX-Private: 1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with answering(response) as member, calling(member) as here:
        answer = await here.client.get("/")
        assert (answer.status_code, answer.text, answer.http_version) == (203, "hello", "HTTP/1.1")
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert "x-private" not in answer.headers
        assert dict(here.client.cookies) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("method", "response"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_responses_without_a_body(method: str, response: bytes) -> None:
    async with answering(response) as member, calling(member) as here:
        for _ in range(2):
            answer = await here.client.request(method, "/")
            assert answer.content == b""
        await here.idle()
        assert len(member.received) == 1


@pytest.mark.parametrize("status", [299, 600, 999])
async def test_every_status_of_three_digits_is_the_members(status: int) -> None:
    async with answering(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status) as member, calling(member) as here:
        answer = await here.client.get("/")
        assert (answer.status_code, answer.text) == (status, "ok")


async def test_204_has_no_length() -> None:
    async with answering(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n") as member, calling(member) as here:
        assert "content-length" not in (await here.client.get("/")).headers


@pytest.mark.parametrize(
    ("line", "phrase"), [(b"401 Token+timed+out", "Token+timed+out"), (b"200 OK", "OK"), (b"404 ", "Not Found")]
)
async def test_reason_phrase_is_the_members(line: bytes, phrase: str) -> None:
    async with answering(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % line) as member, calling(member) as here:
        for _ in range(3):
            answer = await here.client.get("/")
            assert (answer.status_code, answer.reason_phrase) == (int(line[:3]), phrase)


async def test_body_is_read_no_faster_than_it_is_taken() -> None:
    size, sent = 64 * 1024 * 1024, 0

    async def pour(connection: Connection) -> None:
        nonlocal sent
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            connection.writer.write(b"x" * 65536)
            await connection.writer.drain()
            sent += 65536

    async with scripted(pour) as member, calling(member) as here:
        async with here.client.stream("GET", "/") as response:
            last = -1
            while sent != last:  # until the member is stuck
                last = sent
                await asyncio.sleep(0.2)
            assert sent < size / 2
            assert sum([len(piece) async for piece in response.aiter_raw()]) == size
        await here.idle()


async def test_pieces_come_as_the_member_sends_them() -> None:
    go_on = asyncio.Event()

    async def events(connection: Connection) -> None:
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            await connection.send(b"9\r\ndata: 1\n\n\r\n")
            await go_on.wait()
            go_on.clear()
        await connection.send(b"0\r\n\r\n")

    async with scripted(events) as member, calling(member) as here, here.client.stream("GET", "/") as response:
        seen = []
        async for piece in response.aiter_raw():
            seen.append(piece)
            go_on.set()
        assert seen == [b"data: 1\n\n"] * 3


async def test_member_that_fails_is_replaced_where_that_is_safe() -> None:
    async def die(connection: Connection) -> None:
        connection.close()

    async with scripted(die) as bad, Member() as good, calling(bad, good) as here:
        for _ in range(4):
            assert (await here.client.get("/")).text == "ok"
        attempts = [it for record in here.records for it in record.attempts]
        assert {it.member for it in attempts} == {bad.address}
        # A POST may have been carried out: nobody repeats it.
        answers = [await here.client.post("/", content=b"") for _ in range(2)]
        assert sorted(it.status_code for it in answers) == [200, 502]
        failed = next(it for it in answers if it.is_error)
        assert failed.headers["x-balancer-error"] == failed.extensions["balancer"].error == "member_failed"
        with pytest.raises(httpx.HTTPStatusError):
            failed.raise_for_status()


async def test_call_that_kills_its_member_kills_no_other_without_retries() -> None:
    async def die(connection: Connection) -> None:
        connection.close()

    async with scripted(die) as one, scripted(die) as two, calling(one, two, retries=0) as here:
        answer = await here.client.get("/crash")
        assert (answer.status_code, len(here.records[0].attempts)) == (502, 1)
        assert answer.headers["x-request-id"].encode() == here.records[0].id
        assert "before a response" in answer.text


async def test_call_waits_for_a_member_and_is_refused_in_the_end() -> None:
    resolve = ScriptedResolver()
    async with Member() as member:
        transport = BalancedTransport("apps", resolve=resolve, queue_timeout=0.3)
        async with httpx.AsyncClient(transport=transport, base_url="http://a", timeout=None) as client:
            refused = await client.get("/")
            assert (refused.status_code, refused.headers["x-balancer-error"]) == (503, "no_member")
            assert refused.headers["retry-after"] == "1"
            asking = asyncio.create_task(client.get("/"))
            await eventually(lambda: len(transport.balancer.dispatcher.queue) == 1)
            resolve.found(member.address)
            answer = await asking
            assert answer.text == "ok"
            assert answer.extensions["balancer"].queued > 0


async def test_body_that_ends_early_is_an_error_of_the_member() -> None:
    async def cut(connection: Connection) -> None:
        await connection.send(CUT)
        connection.close()

    async with scripted(cut) as member, calling(member) as here:
        with pytest.raises(httpx.RemoteProtocolError, match=str(member.address)):
            await here.client.get("/")
        await here.idle()
        assert [it.error for it in here.records] == ["truncated"]


async def test_member_that_falls_silent_in_mid_body_is_a_time_out() -> None:
    async def stop(connection: Connection) -> None:
        await connection.send(CUT)
        await connection.to_end()

    async with scripted(stop) as member, calling(member, stream_idle_timeout=0.1) as here:
        with pytest.raises(httpx.ReadTimeout, match=r"silent for 0\.1 s"):
            await here.client.get("/")
        await here.idle()


async def test_member_that_does_not_answer_in_the_balancers_time_is_a_504() -> None:
    async with scripted(hang) as member, calling(member, response_timeout=0.1) as here:
        answer = await here.client.get("/")
        assert (answer.status_code, answer.headers["x-balancer-error"]) == (504, "response_timeout")
