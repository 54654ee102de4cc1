"""The names of headers pass as they are written, both ways, whichever way a head is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tls import issue, trusting
from tests.support.wire import Connection, Member, balance
from tests.wire.test_forwarding import fields

SPELLED = [b"HOST: a", b"X-Odd: 1", b"x-even: 2", b"Sec-WebSocket-Key: k", b"ETAG: 3"]


@pytest.mark.parametrize("more", [b"", b"X-Tab:\t1\r\n"], ids=["simple", "not simple"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_names_are_spelled_as_their_sender_spells_them(more: bytes, secure: bool, tmp_path: Path) -> None:
    """Those of ASGI, of HTTP/2 and of httpx are in lower case."""
    seen: list[bytes] = []
    files, trust = (issue(tmp_path), trusting()) if secure else ({}, None)

    async def answer(connection: Connection) -> None:
        while True:
            seen.append(await connection.reader.readuntil(b"\r\n\r\n"))
            lines = b"\r\n".join([b"HTTP/1.1 200 OK", b"CONTENT-length: 2", *SPELLED[1:]])
            await connection.send(lines + b"\r\n" + more + b"\r\nok")

    async with Member(answer) as member, balance(member, **files) as running, running.client(trust) as client:
        for method in (b"GET", b"POST"):
            await client.send(method + b" / HTTP/1.1\r\n" + b"\r\n".join(SPELLED) + b"\r\n" + more + b"\r\n")
            head = await client.until(b"\r\n\r\n")
            assert await client.exactly(2) == b"ok"
            assert fields(head)[:5] == [b"CONTENT-length: 2", *SPELLED[1:]]
            assert fields(seen[-1])[:5] == SPELLED
