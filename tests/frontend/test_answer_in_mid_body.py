"""An answer that is complete before the request: the client goes on sending, and reads the answer all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from balancer.frontend import client_connection, client_registry
from tests.support import wire
from tests.support.hostile import POST
from tests.support.tls import issue, trusting
from tests.support.wire import LIMIT, Connection, Member, Running, balance

PIECE = bytes(10_000)
# How often a piece is sent, and the pause between two: thrice as long in all as one without a body may linger.
PIECES, PAUSE = 50, 0.012
UPLOAD = POST + b"Content-Length: %d\r\n\r\n" % (PIECES * len(PIECE))
REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n"


def refuse(pause: float = 0.0) -> wire.Script:
    """A member that refuses after the first bytes, with its body after a ``pause``, and reads on."""

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(REFUSAL)
        await asyncio.sleep(pause)
        await connection.send(b"no")
        await connection.to_end()

    return script


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return issue(tmp_path)


async def upload(client: Connection, head: bytes = UPLOAD) -> bytes:
    """Send a body without a look at the answer, as urllib and http.client do; then return that."""
    await client.send(head)
    for _ in range(PIECES):
        await client.send(PIECE)
        await asyncio.sleep(PAUSE)
    received = await client.head()
    return received + await client.exactly(int(received.split(b"content-length: ")[1].split(b"\r\n")[0]))


async def lasts(running: Running, client: Connection) -> float:
    """Seconds for which a client may go on sending after it has the answer."""
    await client.send(UPLOAD + PIECE)
    await client.head()
    began = asyncio.get_running_loop().time()
    try:
        while asyncio.get_running_loop().time() < began + LIMIT:
            await client.send(PIECE)
            await asyncio.sleep(0.02)
    except ConnectionError:
        pass
    return asyncio.get_running_loop().time() - began


@pytest.mark.usefixtures("each_front")
@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["whole", "head first"])
async def test_client_that_goes_on_sending_reads_the_answer_behind_its_body(pause: float) -> None:
    async with Member(refuse(pause)) as member, balance(member) as running, running.client() as client:
        answer = await upload(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\nno")
        if wire.edge:
            assert b"\r\nconnection: close\r\n" in answer
        await running.idle()
        assert [(it.status, it.error) for it in running.records] == [(413, "")]


async def test_client_that_goes_on_sending_over_tls_reads_the_answer_behind_its_body(files: dict[str, Any]) -> None:
    async with Member(refuse()) as member, balance(member, **files) as running, running.client(trusting()) as client:
        answer = await upload(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (UPLOAD.replace(b"Host: a", b"Host: a\r\nX: " + b"a" * 40_000), b"431"),
        (UPLOAD.replace(b"POST /", b"POST /" + b"a" * 20_000), b"414"),
    ],
    ids=["head", "target"],
)
async def test_client_that_goes_on_sending_reads_the_balancers_own_refusal(
    head: bytes, status: bytes, tls: bool, files: dict[str, Any]
) -> None:
    used = files if tls else {}
    async with (
        Member(refuse()) as member,
        balance(member, **used) as running,
        running.client(trusting() if tls else None) as client,
    ):
        answer = await upload(client, head)
        assert answer.startswith(b"HTTP/1.1 %b " % status)


async def test_body_that_is_refused_as_too_large_is_read_on(files: dict[str, Any]) -> None:
    async with Member() as member, balance(member, max_body_bytes=10) as running, running.client() as client:
        answer = await upload(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize(("name", "bound"), [("DISCARD_SECONDS", 0.5), ("DISCARD_BYTES", 300_000)])
async def test_body_is_read_on_within_bounds_of_time_and_bytes(
    name: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, name, bound)
    async with Member(refuse()) as member, balance(member) as running, running.client() as client:
        assert await lasts(running, client) < LIMIT
        await running.idle()


async def test_client_that_stops_in_mid_body_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "DISCARD_SILENCE", 0.3)
    async with Member(refuse()) as member, balance(member) as running, running.client() as client:
        await client.send(UPLOAD + PIECE)
        assert (await client.to_end()).endswith(b"no")
        await wire.eventually(lambda: not running.balancer.clients)


async def test_response_that_goes_on_beside_its_request_keeps_the_connection() -> None:
    """Only an answer that ends early ends the connection: two that talk go on."""

    async def talk(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nta")
            await connection.exactly(4)
            await connection.send(b"lk")

    async with Member(talk) as member, balance(member) as running, running.client() as client:
        for _ in range(2):
            await client.send(POST + b"Content-Length: 4\r\n\r\nab")
            assert b"connection: close" not in await client.head()
            await client.send(b"cd")
            assert await client.exactly(4) == b"talk"


async def test_answer_in_mid_body_is_the_last_of_its_connection_for_a_client_of_http_1_0() -> None:
    async with Member(refuse()) as member, balance(member) as running, running.client() as client:
        answer = await upload(client, UPLOAD.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n"))
        assert b"\r\nconnection: close\r\n" in answer
        assert b"keep-alive" not in answer


async def test_http_2_client_that_goes_on_sending_reads_the_answer_and_keeps_its_connection(
    files: dict[str, Any],
) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    from tests.support.http2 import Http2Client

    length = b"%d" % (PIECES * len(PIECE))
    async with (
        Member(refuse()) as member,
        balance(member, http2=True, **files) as running,
        running.client(trusting("h2")) as connection,
    ):
        client = Http2Client(connection)
        await client.begin()
        stream = await client.ask((b"content-length", length), method=b"POST", end=False)
        answer = client.answers[stream]
        for _ in range(PIECES):
            await client.send(stream, PIECE)
            await asyncio.sleep(PAUSE)
        await client.until(lambda: answer.reset is not None)
        assert (answer.status, answer.body, answer.reset) == (413, b"no", 0)
        assert (await client.get("/after")).status == 413
        assert not client.told_to_go()
