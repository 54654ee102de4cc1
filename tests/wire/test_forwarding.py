"""What reaches a member, and what comes back, byte for byte."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.support import wire
from tests.support.wire import OK, Connection, Member, balance

pytestmark = pytest.mark.usefixtures("each_way")

POLICIES: dict[str, dict[str, Any]] = {
    "random": {"policy": "random"},
    "sticky": {"policy": "random", "sticky_cookie": "member"},
}

GET = b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"


def answering(response: bytes) -> Member:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(response)

    return Member(script)


def fields(head: bytes) -> list[bytes]:
    """The header lines of a message, without its first line."""
    return head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


async def test_target_arrives_as_it_was_written() -> None:
    async with Member() as member, balance(member) as running:
        await running.exchange(GET.replace(b"GET / ", b"GET /a%2Fb/../c?x=%20&x=2&&y "))
        assert member.received[0].startswith(b"GET /a%2Fb/../c?x=%20&x=2&&y HTTP/1.1\r\n")


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND", b"PURGE"])
async def test_every_method_is_passed_on(method: bytes) -> None:
    async with Member() as member, balance(member) as running:
        answer = await running.exchange(GET.replace(b"GET", method))
        assert answer.endswith(b"\r\n\r\nok")
        assert member.received[0].startswith(method + b" / HTTP/1.1\r\n")


@pytest.mark.parametrize("method", [b"LIST", b"get", b"PLAY", b"X-1", b"q" * 1000])
async def test_any_token_is_a_method(method: bytes) -> None:
    if not wire.edge:
        pytest.skip("uvicorn's own parser takes the methods alone that it knows")
    async with Member() as member, balance(member) as running:
        assert (await running.exchange(GET.replace(b"GET", method))).endswith(b"\r\n\r\nok")
        assert member.received[0].startswith(method + b" / HTTP/1.1\r\n")
        assert running.records[0].request.method == method.decode()


async def test_request_fields_keep_order_duplicates_and_odd_bytes() -> None:
    request = GET.replace(b"\r\n\r\n", b"\r\nX-B: 1\r\nX-A: caf\xe9\r\nX-B: 2\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n")
    async with Member() as member, balance(member) as running:
        await running.exchange(request)
        sent = [line.lower() for line in fields(member.received[0])]
        assert sent[:6] == [
            b"host: shop.example",
            b"x-b: 1",
            b"x-a: caf\xe9",
            b"x-b: 2",
            b"cookie: a=1",
            b"cookie: b=2",
        ]


async def test_white_space_around_a_value_is_not_part_of_it_either_way() -> None:
    response = b"HTTP/1.1 200 OK\r\nX-B:\t b \t\r\nX-C: \t\r\nContent-Length: 2\r\n\r\nok"
    async with answering(response) as member, balance(member) as running:
        answer = await running.exchange(GET.replace(b"\r\n\r\n", b"\r\nX-A:\t a \t\r\nX-C: \t\r\n\r\n"))
        sent = [line for line in fields(member.received[0].lower()) if line.startswith(b"x-")]
        assert sent[:2] == [b"x-a: a", b"x-c: "]
        assert fields(answer.lower())[:2] == [b"x-b: b", b"x-c: "]


async def test_hop_by_hop_fields_and_those_that_connection_names_stay_behind() -> None:
    extra = (
        b"Connection: X-Private, keep-alive\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        b"Proxy-Authorization: Basic eA==\r\nUpgrade: h2c\r\nX-Public: 1\r\n"
    )
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + extra + b"\r\n")
        await client.head()
        names = {line.partition(b":")[0].lower() for line in fields(member.received[0])}
        assert b"x-public" in names
        assert not names & {b"x-private", b"keep-alive", b"proxy-authorization", b"upgrade"}
        # Where trailers pass, the balancer says in its own name that they are welcome.
        assert (b"connection: te\r\nte: trailers\r\n" in member.received[0]) is wire.edge


async def test_stranger_cannot_forge_forwarding_fields() -> None:
    forged = GET.replace(
        b"\r\n\r\n",
        b"\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-User: root\r\nForwarded: for=6.6.6.6\r\n"
        b"X-Forwarded-Proto: https\r\n\r\n",
    )
    async with Member() as member, balance(member) as running:
        await running.exchange(forged)
        sent = [line.lower() for line in fields(member.received[0])]
        assert {it for it in sent if it.startswith((b"x-forwarded", b"forwarded"))} == {
            b"x-forwarded-for: 127.0.0.1",
            b"x-forwarded-proto: http",
            b"x-forwarded-host: shop.example",
            b'forwarded: for=127.0.0.1;host="shop.example";proto=http',
        }


async def test_trusted_proxys_forwarding_fields_are_extended() -> None:
    request = GET.replace(
        b"\r\n\r\n", b"\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9\r\n\r\n"
    )
    trusted = (ipaddress.ip_network("127.0.0.0/8"),)
    async with Member() as member, balance(member, trusted_proxies=trusted) as running:
        await running.exchange(request)
        sent = {line.lower() for line in fields(member.received[0])}
        assert b"x-forwarded-for: 9.9.9.9, 127.0.0.1" in sent
        assert b"x-forwarded-proto: https" in sent
        assert b'forwarded: for=9.9.9.9, for=127.0.0.1;host="shop.example";proto=http' in sent


async def test_response_fields_keep_order_and_duplicates_and_the_members_date() -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nDate: then\r\nServer: theirs\r\nSet-Cookie: a=1\r\nX-A: caf\xe9\r\nSet-Cookie: b=2\r\n"
        b"Connection: X-Private\r\nX-Private: 1\r\nContent-Length: 2\r\n\r\nok"
    )
    async with answering(response) as member, balance(member) as running:
        head, _, body = (await running.exchange(GET)).lower().partition(b"\r\n\r\n")
        assert body == b"ok"
        assert fields(head)[:6] == [
            b"date: then",
            b"server: theirs",
            b"set-cookie: a=1",
            b"x-a: caf\xe9",
            b"set-cookie: b=2",
            b"content-length: 2",
        ]
        assert b"x-private" not in head


@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD"])
async def test_204_has_no_length_in_any_case(method: bytes) -> None:
    response = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX-A: b\r\n\r\n"
    async with answering(response) as member, balance(member) as running:
        head, _, body = (await running.exchange(GET.replace(b"GET", method))).partition(b"\r\n\r\n")
        assert b"x-a: b" in fields(head.lower())
        assert b"content-length" not in head
        assert b"transfer-encoding" not in head
        assert body == b""


@pytest.mark.parametrize("policy", ["random", "sticky"])
async def test_members_reason_phrase_is_passed_on(policy: str) -> None:
    if not wire.edge:
        pytest.skip("ASGI has no place for it")
    phrases = [b"401 Token+timed+out", b"200 Fine", b"200 OK", b"404 ", b"700 caf\xe9", b"200 OK"]

    async def own_words(connection: Connection) -> None:
        while True:
            phrase = phrases[int((await connection.head()).split(b" ")[1][1:])]
            await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % phrase)

    async with Member(own_words) as member, balance(member, **POLICIES[policy]) as running, running.client() as client:
        for _ in range(4):  # Heads that come again are remembered.
            for number, phrase in enumerate(phrases):
                await client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
                head = await client.head()
                # Without one of the member's, the usual phrase does no harm.
                assert head.startswith(b"HTTP/1.1 %b\r\n" % (b"404 Not Found" if phrase == b"404 " else phrase))
                await client.exactly(2)


@pytest.mark.parametrize("status", [299, 499, 599, 600, 999])
async def test_every_status_of_three_digits_is_passed_on(status: int) -> None:
    if status > 599 and not wire.edge:
        pytest.skip("uvicorn has no status line for it")
    async with (
        answering(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status) as member,
        balance(member) as running,
    ):
        answer = await running.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.endswith(b"\r\n\r\nok")
        assert [it.status for it in running.records] == [status]


@pytest.mark.parametrize("encoded", [b"\x1f\x8b not really gzip", b"plain"])
async def test_bodies_are_not_decoded(encoded: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(encoded)
    async with answering(head + encoded) as member, balance(member) as running:
        assert (await running.exchange(GET)).endswith(b"\r\n\r\n" + encoded)


@pytest.mark.parametrize(
    ("method", "response", "status"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nEtag: x\r\n\r\n", b"HTTP/1.1 304 Not Modified"),
    ],
)
async def test_responses_without_a_body(method: bytes, response: bytes, status: bytes) -> None:
    async with answering(response) as member, balance(member) as running:
        head, _, body = (await running.exchange(GET.replace(b"GET", method))).partition(b"\r\n\r\n")
        assert head.startswith(status)
        assert body == b""
        assert not running.records[0].error


async def test_chunked_upload_arrives_in_chunks_with_its_bytes_intact() -> None:
    async def script(connection: Connection) -> None:
        await connection.until(b"0\r\n\r\n")
        await connection.send(OK)

    async with Member(script) as member, balance(member) as running:
        await running.exchange(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
        )
        head, _, body = member.received[0].partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert b"content-length" not in head.lower()
        assert body in (b"c\r\nhello, world\r\n0\r\n\r\n", b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n")


async def test_upload_with_a_length_keeps_it() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.exactly(5)
        await connection.send(OK)

    async with Member(script) as member, balance(member) as running:
        await running.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
        head, _, body = member.received[0].partition(b"\r\n\r\n")
        assert b"content-length: 5" in head.lower()
        assert b"transfer-encoding" not in head.lower()
        assert body == b"hello"
