"""HTTP/2 requests that are refused, each with the token that HTTP/1.1 gives it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from balancer.config.settings import Settings
from balancer.frontend import client_connection
from tests.support.http2_door import ENHANCE_YOUR_CALM, HEAD, spoken
from tests.support.wire import Connection, Member, answer_all, eventually


def long_field(size: int) -> list[tuple[bytes, bytes]]:
    return [(b"x-%d" % number, b"v" * 1000) for number in range(size // 1000)]


LIMITS = Settings()
REFUSED: dict[str, tuple[list[tuple[bytes, bytes]], int, bytes]] = {
    "no host": ([*HEAD[:2], HEAD[3]], 400, b"malformed_request"),
    "an empty host": ([*HEAD[:2], (b":authority", b""), HEAD[3]], 400, b"malformed_request"),
    "a host with a space": ([*HEAD[:2], (b":authority", b"a b"), HEAD[3]], 400, b"malformed_request"),
    "a host with a user": ([*HEAD[:2], (b":authority", b"u@a"), HEAD[3]], 400, b"malformed_request"),
    "a target in absolute form": ([*HEAD[:3], (b":path", b"http://b/")], 400, b"malformed_request"),
    "a target without a slash": ([*HEAD[:3], (b":path", b"a")], 400, b"malformed_request"),
    "an asterisk for GET": ([*HEAD[:3], (b":path", b"*")], 400, b"malformed_request"),
    "a space in the target": ([*HEAD[:3], (b":path", b"/a b")], 400, b"malformed_request"),
    "a byte beyond ASCII in the target": ([*HEAD[:3], (b":path", b"/\xff")], 400, b"malformed_request"),
    "PRI": ([(b":method", b"PRI"), *HEAD[1:]], 400, b"malformed_request"),
    "TRACE": ([(b":method", b"TRACE"), *HEAD[1:]], 405, b"method_not_allowed"),
    "a target too long": ([*HEAD[:3], (b":path", b"/" + b"a" * LIMITS.max_uri_bytes)], 414, b"uri_too_long"),
    "too many fields": (HEAD + [(b"x", b"v")] * LIMITS.max_headers, 431, b"headers_too_large"),
    "too large a head": (HEAD + long_field(LIMITS.max_header_bytes + 1000), 431, b"headers_too_large"),
}


@pytest.mark.parametrize(("fields", "status", "token"), REFUSED.values(), ids=REFUSED.keys())
async def test_http2_request_that_http_1_1_refuses_gets_the_same_token(
    fields: list[tuple[bytes, bytes]], status: int, token: bytes, tmp_path: Path
) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        answer = await client.answer(await client.ask_raw(fields))
        assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (status, token)
        assert answer.body.startswith(b"%d " % status)
        (record,) = here.running.records
        assert (record.status, record.error) == (status, token.decode())
        assert dict(answer.headers)[b"x-request-id"] == record.id
        assert answer.body.endswith(b"\nrequest id: %b\n" % record.id)
        # Other requests of the connection are none the worse.
        assert (await client.get("/")).body == b"ok"
        assert member.received[0].count(b"GET") == 1


MALFORMED: dict[str, list[tuple[bytes, bytes]]] = {
    "two hosts that differ": [*HEAD, (b"host", b"b")],
    "a host with another port": [*HEAD, (b"host", b"a:81")],
    "Transfer-Encoding": [*HEAD, (b"transfer-encoding", b"chunked")],
    "Connection": [*HEAD, (b"connection", b"x-a")],
    "Upgrade": [*HEAD, (b"upgrade", b"websocket")],
    "a name in upper case": [*HEAD, (b"X-A", b"1")],
    "a line break in a value": [*HEAD, (b"x-a", b"1\r\nx-b: 2")],
    "a NUL in a value": [*HEAD, (b"x-a", b"1\0")],
    "a space in a name": [*HEAD, (b"x a", b"1")],
    "a line break in the target": [*HEAD[:3], (b":path", b"/ HTTP/1.1\r\nx: y")],
    "a method that is no token": [(b":method", b"G(T"), *HEAD[1:]],
    "a line break in the method": [(b":method", b"GET / HTTP/1.1\r\nx: y"), *HEAD[1:]],
    "a line break in the host": [*HEAD[:2], (b":authority", b"a\r\nx: y"), HEAD[3]],
    "a length and no body": [*HEAD, (b"content-length", b"5")],
    "no method": HEAD[1:],
    "no path": HEAD[:3],
    "a pseudo-field after a field": [*HEAD[:3], (b"x-a", b"1"), HEAD[3]],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
async def test_http2_headers_that_would_be_another_request_in_http_1_1_end_their_stream(
    fields: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        answer = await client.answer(await client.ask_raw(fields))
        assert answer.status in (0, 400)
        assert answer.reset is not None or answer.ended
        assert (await client.get("/")).body == b"ok"
        assert member.received[0].count(b"GET") == 1


async def test_two_lengths_that_agree_are_refused(tmp_path: Path) -> None:
    async with Member(answer_all) as member, spoken(tmp_path, member) as here, here.client() as client:
        fields = [(b"content-length", b"3"), (b"content-length", b"3")]
        stream = await client.ask(*fields, method=b"POST", end=False)
        await client.send(stream, b"abc", end=True)
        assert (await client.answer(stream)).status == 400
        assert member.received == []


@pytest.mark.parametrize(
    "length",
    [b"18446744073709551611", b"1" + b"0" * 18, b"0" * 5000 + b"1" * 19],
    ids=["-5 in 64 bits", "19 digits", "zeros"],
)
async def test_length_that_nothing_has_is_refused(length: bytes, tmp_path: Path) -> None:
    async with Member(answer_all) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"content-length", length), method=b"POST", end=False)
        assert (await client.answer(stream)).status == 400
        assert member.received == []


async def test_body_that_is_not_as_long_as_announced_never_counts_as_whole(tmp_path: Path) -> None:
    async with Member(answer_all) as member, spoken(tmp_path, member) as here, here.client() as client:
        for size in (2, 4):
            stream = await client.ask((b"content-length", b"3"), method=b"POST", end=False)
            await eventually(lambda: here.running.balancer.proxy.active == 1)
            await client.send(stream, b"abcd"[:size], end=True)
            assert (await client.answer(stream)).reset is not None
        await here.running.idle()
        assert [it.error for it in here.running.records] == ["client_gone", "client_gone"]


async def test_too_much_for_hpack_ends_the_connection(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        # A few hundred bytes that stand for megabytes: one field, and references to it.
        client.h2.encoder.header_table_size = 4096
        stream = await client.ask_raw(HEAD + [(b"x", b"v" * 3000)] * 2000)
        await client.until(client.told_to_go)
        assert client.goaway
        assert client.goaway.error_code == ENHANCE_YOUR_CALM
        assert (client.answers[stream].status, member.received) == (0, [])


async def test_refused_bodies_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 0.1)

    async def refuse(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(1)

    async with Member(refuse) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"content-length", b"1000000000"), method=b"POST", end=False)
        await client.send(stream, bytes(100_000))
        answer = await client.answer(stream)
        assert (answer.status, answer.body, answer.ended) == (413, b"no", True)
        # RFC 9113 section 8.1: the client is told to stop.
        await client.until(lambda: answer.reset is not None)
        assert answer.reset == 0


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("pieces", [[b"abc" + SMUGGLED], [b"ab", b"c" + SMUGGLED], [b"abc", SMUGGLED]])
async def test_http2_body_that_is_longer_than_its_length_is_no_second_request(
    pieces: list[bytes], tmp_path: Path
) -> None:
    arrived = asyncio.Event()

    async def waits(connection: Connection) -> None:
        await connection.head()
        arrived.set()
        await connection.to_end()

    async with Member(waits) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"content-length", b"3"), method=b"POST", end=False)
        for piece in pieces:
            await client.send(stream, piece)
            if piece != pieces[-1]:
                await arrived.wait()
        answer = await client.answer(stream)
        assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (400, b"malformed_request")
        await eventually(lambda: here.running.records != [])
        assert b"smuggled" not in b"".join(member.received)
        assert [(it.status, it.error) for it in here.running.records] == [(400, "malformed_request")]
