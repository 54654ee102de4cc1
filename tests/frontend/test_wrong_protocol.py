"""Clients that speak the wrong protocol to a port: they are told so, and so is the log, now and then."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from balancer.telemetry.rare_log import RareLog
from tests.support.messages import GET
from tests.support.proxy_header import V1, announced
from tests.support.tls import issue, trusting
from tests.support.wire import Connection, Member, Running, balance, eventually

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
SPEAKS_TLS = b"400 this port speaks TLS: use https://\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return issue(tmp_path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]


async def send_bytes(client: Connection, data: bytes, cut: bool) -> None:
    for piece in [data[at : at + 1] for at in range(len(data))] if cut else [data]:
        try:
            await client.send(piece)
        except ConnectionError:
            return
        await asyncio.sleep(0)


async def answer_to(running: Running, data: bytes, cut: bool = False, first: bytes = b"") -> bytes:
    async with running.client(first=first) as client:
        await send_bytes(client, data, cut)
        return await client.to_end()


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    "data",
    [
        GET,
        b"\r\n" + GET,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
        PREFACE,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
    ids=["GET", "an empty line first", "POST", "HTTP/2", "SSH", "malformed"],
)
async def test_plain_http_on_the_port_of_tls_gets_a_400_that_says_so(
    data: bytes, cut: bool, files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with Member() as member, balance(member, **files) as running:
        answer = await answer_to(running, data, cut)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"\r\nx-balancer-error: malformed_request\r\n" in answer
        assert b"\r\nconnection: close\r\n\r\n" in answer
        assert answer.partition(b"\r\n\r\n")[2].startswith(SPEAKS_TLS)
        assert answer.count(b"HTTP/1.1") == 1
        assert member.received == []
        # Who speaks TLS is served as before, and the connection is counted no more.
        async with running.client(trusting()) as client:
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        await running.idle()
        assert [it.error for it in running.records] == ["malformed_request", ""]
    assert warnings(caplog) == ["a client at 127.0.0.1 speaks HTTP without TLS to the port of TLS; it gets a 400"]


async def test_log_has_the_request_and_one_warning_a_minute(
    files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with Member() as member, balance(member, **files) as running:
        for _ in range(5):
            await answer_to(running, GET.replace(b"GET /", b"PUT /x"))
        assert [(it.request.method, it.request.target, it.status) for it in running.records] == [
            ("PUT", b"/x", 400)
        ] * 5
    assert len(warnings(caplog)) == 1


async def test_plain_head_on_the_port_of_tls_gets_no_body(files: dict[str, Any]) -> None:
    async with balance(**files) as running:
        assert (await answer_to(running, GET.replace(b"GET", b"HEAD"))).endswith(b"\r\n\r\n")


async def test_plain_upload_to_the_port_of_tls_ends_with_the_answer(files: dict[str, Any]) -> None:
    async with balance(**files) as running, httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(running.url.replace("https", "http"), content=bytes(100_000))
        assert response.status_code == 400 and response.content.startswith(SPEAKS_TLS)


@pytest.mark.parametrize("data", [GET, PREFACE], ids=["GET", "HTTP/2"])
async def test_plain_http_behind_a_proxy_header_gets_the_400(data: bytes, tmp_path: Path) -> None:
    async with Member() as member, announced(member, **issue(tmp_path)) as running:
        assert (await answer_to(running, data, first=V1)).partition(b"\r\n\r\n")[2].startswith(SPEAKS_TLS)
        assert [it.request.client for it in running.records] == ["192.0.2.7"]


async def test_plain_http_on_the_port_of_http2_gets_the_400(files: dict[str, Any]) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    async with balance(http2=True, **files) as running:
        assert (await answer_to(running, PREFACE)).partition(b"\r\n\r\n")[2].startswith(SPEAKS_TLS)


async def test_limit_of_connections_holds_for_plain_http_on_the_port_of_tls(files: dict[str, Any]) -> None:
    async with balance(max_connections=1, **files) as running, running.client(trusting()) as client:
        await client.send(GET[:5])
        await eventually(lambda: bool(running.balancer.proxy.connections))
        assert b"\r\nx-balancer-error: too_many_connections\r\n" in await answer_to(running, GET)
        client.close()
        await eventually(lambda: not running.balancer.proxy.connections)
        assert (await answer_to(running, GET)).partition(b"\r\n\r\n")[2].startswith(SPEAKS_TLS)


async def test_plain_head_that_stops_on_the_port_of_tls_is_answered(files: dict[str, Any]) -> None:
    async with balance(header_timeout=0.3, **files) as running:
        assert (await answer_to(running, b"GET /")).partition(b"\r\n\r\n")[2].startswith(SPEAKS_TLS)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
async def test_tls_on_a_plain_port_gets_words_for_the_log(cut: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with Member() as member, balance(member) as running:
        for _ in range(2):
            answer = await answer_to(running, HELLO, cut)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"\r\n\r\n400 this port does not speak TLS: use http://\n" in answer
        assert [it.reason for it in running.records] == ["this port does not speak TLS: use http://"] * 2
    assert warnings(caplog) == ["a client at 127.0.0.1 speaks TLS to a port without; BALANCER_TLS_CERT is not set"]


async def test_byte_of_tls_behind_the_beginning_of_a_head_is_malformed_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with balance() as running:
        for begun in (b"GET / HTTP/1.1\r\n", b"G"):
            assert (await running.exchange(begun + HELLO)).startswith(b"HTTP/1.1 400 ")
            async with running.client() as client:
                await client.send(begun)
                await asyncio.sleep(0.05)
                await client.send(HELLO)
                assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        assert not any("TLS" in it.reason for it in running.records)
    assert warnings(caplog) == []


async def test_connection_without_the_proxy_header_that_is_due_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Member() as member, announced(member) as running:
        async with running.client():
            pass  # A health check of the proxy may only connect.
        for _ in range(3):
            assert await running.exchange(GET) == b""
    (line,) = warnings(caplog)
    assert line.startswith("a client at 127.0.0.1 begins with no sound PROXY header, and is closed: ")


def test_rare_log_has_a_line_a_minute_and_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    rare = RareLog(logging.getLogger("test"), lambda: now)
    for seconds in (0.0, 1.0, 59.9, 60.0, 61.0, 119.0, 121.0, 300.0):
        now = seconds
        rare.warning("%s at %g", "it", seconds)
    assert warnings(caplog) == [
        "it at 0",
        "it at 60 (and 2 times since the last line)",
        "it at 121 (and 2 times since the last line)",
        "it at 300",
    ]
