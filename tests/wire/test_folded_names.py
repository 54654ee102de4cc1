"""Names of headers that a WSGI or CGI gateway folds into others: it makes ``HTTP_X_FORWARDED_FOR`` of several."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.doors import ALL, Door, Reply
from tests.support.wire import Connection, Member, answer_all, balance

Fields = list[tuple[bytes, bytes]]
# Sends a request with these fields, and waits for the answer.
Ask = Callable[[Fields], Awaitable[None]]
Way = Callable[..., AbstractAsyncContextManager[Ask]]

FORGED = (
    b"X_Forwarded_For", b"x_forwarded_for", b"X_FORWARDED-FOR", b"X-Forwarded_Proto", b"X_Forwarded_Host",
    b"X_Forwarded_Prefix", b"X_Forwarded_Port", b"X_Request_ID", b"Transfer_Encoding", b"Content_Length",
    b"Proxy_Authorization", b"X_Balancer_Error", b"X.Forwarded.For", b"X~Forwarded~For",
)  # fmt: skip
ODD: Fields = [(b"x_api_key", b"1"), (b"_", b"2"), (b"x__y", b"3")]

SWITCHES = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
HANDSHAKE = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


def folded(head: bytes) -> set[bytes]:
    """The names of a head as ``environ`` of WSGI has them, or a laxer gateway."""
    names = (line.partition(b":")[0] for line in head.split(b"\r\n")[1:] if line)
    return {re.sub(rb"[^A-Z0-9]", b"_", name.upper()) for name in names}


async def ask_raw(client: Connection, fields: Fields, more: bytes = b"") -> None:
    lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + more + lines + b"\r\n")
    await client.head()


def plain(door: Door) -> Way:
    @asynccontextmanager
    async def opened(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Ask]:
        async with door.open(member, folder, **settings) as here:

            async def ask(fields: Fields) -> None:
                assert await here.ask(fields=fields) == Reply(200)

            yield ask

    return opened


@asynccontextmanager
async def tunnel(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Ask]:
    async def switch(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES)
        await connection.to_end()

    member.script = switch
    async with balance(member, **settings) as running, running.client() as client:
        yield lambda fields: ask_raw(client, fields, b"Connection: Upgrade\r\nUpgrade: x\r\n")


@asynccontextmanager
async def websocket(member: Member, folder: Path, **settings: Any) -> AsyncIterator[Ask]:
    async with ALL["ASGI"].open(member, folder, **settings) as here, here.client() as client:
        yield lambda fields: ask_raw(client, fields, b"Connection: Upgrade\r\n" + HANDSHAKE)


WAYS: dict[str, Way] = {
    **{name: plain(door) for name, door in ALL.items()},
    "tunnel": tunnel,
    "WebSocket through ASGI": websocket,
}
each_way_in = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@each_way_in
async def test_name_that_folds_into_a_header_of_the_balancers_reaches_no_member(way: Way, tmp_path: Path) -> None:
    async with Member() as unforged, way(unforged, tmp_path) as ask:
        await ask([(b"X-Request-ID", b"mine")])
    async with Member() as member, way(member, tmp_path) as ask:
        await ask([(b"X-Request-ID", b"mine"), *((name, b"6.6.6.6") for name in FORGED), *ODD])
    (before,), (after,) = unforged.received, member.received
    assert b"6.6.6.6" not in after
    assert b"\r\nx-request-id: mine\r\n" in after
    # Other names pass as they are.
    for pair in ODD:
        assert b"\r\n%b: %b\r\n" % pair in after
    assert folded(after) == folded(before) | {b"X_API_KEY", b"_", b"X__Y"}


@each_way_in
async def test_names_with_an_underscore_are_dropped_where_the_setting_has_it(way: Way, tmp_path: Path) -> None:
    async with Member() as member, way(member, tmp_path, drop_underscore_headers=True) as ask:
        await ask([(b"X-Plain", b"1"), *ODD])
        (received,) = member.received
        assert b"\r\nx-plain: 1\r\n" in received
        assert b"_" not in received


async def test_handshake_that_folds_into_the_balancers_own_reaches_no_member(tmp_path: Path) -> None:
    async with Member() as member, websocket(member, tmp_path) as ask:
        await ask([(b"Sec_WebSocket_Key", b"6.6.6.6"), (b"Sec-WebSocket_Version", b"6.6.6.6")])
        assert b"6.6.6.6" not in member.received[0]


@pytest.mark.parametrize("drop", [False, True], ids=["own names", "all names"])
async def test_trailer_whose_name_folds_into_a_header_of_the_balancers_reaches_no_member(drop: bool) -> None:
    async with Member(answer_all) as member, balance(member, drop_underscore_headers=drop) as running:
        await running.exchange(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n"
            b"X_Forwarded_For: 6.6.6.6\r\nContent_Length: 6.6.6.6\r\nX_Check: 1\r\nX-Sum: 2\r\n\r\n"
        )
        trailers = member.received[0].partition(b"\r\n0\r\n")[2]
        assert trailers == (b"" if drop else b"x_check: 1\r\n") + b"x-sum: 2\r\n\r\n"
