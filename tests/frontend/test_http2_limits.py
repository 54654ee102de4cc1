"""What bounds a connection of HTTP/2: time, memory, resets and age."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from balancer.frontend import client_connection, client_registry, http2_connection
from balancer.http import http2
from tests.support.http2 import Http2Client
from tests.support.http2_door import CANCEL, ENHANCE_YOUR_CALM, HEAD, MEBI, reset, spoken
from tests.support.tls import trusting
from tests.support.wire import OK, Connection, Member, answer_all, eventually


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("pings", [False, True])
async def test_idle_connection_is_closed_with_a_word(pings: bool, tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here:
        for requests in (0, 1):
            async with here.client() as client:
                for _ in range(requests):
                    assert (await client.get("/")).body == b"ok"

                async def keep_pinging(client: Http2Client = client) -> None:
                    while not client.ended:
                        client.h2.ping(b"12345678")
                        await client.flush()
                        await asyncio.sleep(0.05)

                pinging = asyncio.create_task(keep_pinging()) if pings else None
                await client.until(client.told_to_go)
                assert client.goaway
                assert client.goaway.error_code == 0
                if pinging:
                    pinging.cancel()


@pytest.mark.usefixtures("impatient")
async def test_connection_that_never_says_a_word_is_closed(tmp_path: Path) -> None:
    async with (
        Member() as member,
        spoken(tmp_path, member) as here,
        here.running.client(trusting("h2")) as connection,
    ):
        await connection.send(b"PRI * HTTP/2.0\r\n")
        await connection.to_end()


@pytest.mark.usefixtures("impatient")
async def test_body_has_to_go_on(tmp_path: Path) -> None:
    async with Member(answer_all) as member, spoken(tmp_path, member) as here, here.client() as client:
        stream = await client.ask((b"content-length", b"9"), method=b"POST", end=False)
        await client.send(stream, b"abc")
        answer = await client.answer(stream)
        assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (408, b"request_timeout")
        await here.running.idle()


async def flood(connection: Connection) -> None:
    head = await connection.head()
    if head.startswith(b"GET /flood"):
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            await connection.send(bytes(100_000))
    else:
        await connection.send(OK)


async def test_window_that_stays_shut_holds_up_its_member_alone(tmp_path: Path) -> None:
    async with Member(flood) as member, spoken(tmp_path, member) as here, here.client() as client:
        client.acknowledges = False
        stream = await client.ask(path=b"/flood")
        await client.until(lambda: len(client.answers[stream].body) >= MEBI)
        assert (await client.get("/")).body == b"ok"
        (record,) = (it for it in here.running.balancer.proxy.in_flight)
        await asyncio.sleep(0.3)
        assert here.running.balancer.proxy.active == 1
        assert record
        await reset(client, stream)
        await here.running.idle()
        # What was taken from the member is what the client let pass, and what is in a few buffers.
        assert max(it.body_bytes for it in here.running.records) < 2 * MEBI


@pytest.mark.usefixtures("impatient")
async def test_window_that_stays_shut_has_an_end(tmp_path: Path) -> None:
    async with Member(flood) as member, spoken(tmp_path, member) as here, here.client(window=1000) as client:
        client.acknowledges = False
        answer = await client.answer(await client.ask(path=b"/flood"))
        assert (answer.status, len(answer.body), answer.reset) == (200, 1000, CANCEL)
        await eventually(lambda: [it.error for it in here.running.records] == ["client_gone"])


async def test_window_that_opens_late_gets_the_rest(tmp_path: Path) -> None:
    async def some(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000))

    async with Member(some) as member, spoken(tmp_path, member) as here, here.client(window=1000) as client:
        client.acknowledges = False
        stream = await client.ask()
        answer = client.answers[stream]
        await client.until(lambda: len(answer.body) == 1000)
        client.h2.increment_flow_control_window(300_000)
        client.h2.increment_flow_control_window(300_000, stream)
        await client.flush()
        await client.answer(stream)
        assert (len(answer.body), answer.ended) == (200_000, True)


@pytest.mark.usefixtures("impatient")
async def test_client_that_reads_nothing_at_all_is_cut_off(tmp_path: Path) -> None:
    async with Member(flood) as member, spoken(tmp_path, member) as here, here.client(window=1 << 30) as client:
        client.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.ask(path=b"/flood")
        await eventually(lambda: [it.error for it in here.running.records] == ["client_gone"])


async def test_answers_to_pings_that_are_not_read_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "OVERHEAD_MAX", 1 << 30)
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        client.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        pings = (b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)) * 10_000
        # The kernels hold some megabytes of it; then nobody takes any more.
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                await asyncio.wait_for(client.connection.send(pings), 1)


async def test_client_that_resets_all_the_time_is_thrown_out(tmp_path: Path) -> None:
    """CVE-2023-44487: requests that are cancelled as they are sent."""
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        for _ in range(300):
            stream = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream, HEAD, end_stream=True)
            client.h2.reset_stream(stream, CANCEL)
        await client.flush()
        await client.until(lambda: False)
        assert client.goaway
        assert client.goaway.error_code == ENHANCE_YOUR_CALM
        # They were over before they began: a few at most have reached a member.
        assert sum(it.count(b"GET") for it in member.received) < 30
        await here.running.idle()


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections that are retired after ten requests, or three resets, and at the latest two later."""
    for name, value in {"STREAMS_MAX": 10, "STREAMS_LAST": 12, "RESETS_MAX": 3, "RESETS_LAST": 4}.items():
        monkeypatch.setattr(http2_connection, name, value)
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    yield


@pytest.mark.usefixtures("short_lived")
async def test_old_connection_is_closed_when_it_is_idle(tmp_path: Path) -> None:
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        for _ in range(10):
            assert not client.told_to_go()
            assert (await client.get("/")).body == b"ok"
        await client.until(lambda: False)
        assert client.goaway
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (0, 19)


@pytest.mark.usefixtures("short_lived")
async def test_old_connection_that_is_never_idle_is_asked_to_end(tmp_path: Path) -> None:
    told = asyncio.Event()

    async def first_waits(connection: Connection) -> None:
        while True:
            if b"/wait" in await connection.head():
                await told.wait()
            await connection.send(OK)

    async with Member(first_waits) as member, spoken(tmp_path, member) as here, here.client() as client:
        waiting = await client.ask(path=b"/wait")
        for _ in range(11):
            assert not client.told_to_go()
            assert (await client.get("/")).body == b"ok"
        await client.until(client.told_to_go)
        assert client.goaway
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (0, 2**31 - 1)
        # What is under way, and what was sent before the client could know, is served.
        assert (await client.get("/")).body == b"ok"
        told.set()
        assert (await client.answer(waiting)).body == b"ok"
        await client.until(lambda: False)
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (0, 25)


@pytest.mark.usefixtures("short_lived")
async def test_connection_with_many_resets_is_closed_when_it_is_idle(tmp_path: Path) -> None:
    async with spoken(tmp_path) as here, here.client() as client:
        for number in range(3):
            stream = await client.ask()
            await eventually(lambda: here.running.balancer.proxy.active == 1)
            await reset(client, stream)
            await here.running.idle()
            assert len(here.running.records) == number + 1
        await client.until(lambda: False)
        assert client.goaway
        assert client.goaway.error_code == 0


@pytest.mark.usefixtures("short_lived")
async def test_client_library_does_not_notice_that_its_connections_are_retired(tmp_path: Path) -> None:
    async with (
        Member() as member,
        spoken(tmp_path, member) as here,
        httpx.AsyncClient(verify=trusting(), http1=False, http2=True, trust_env=False) as client,
    ):
        for _ in range(50):
            assert (await client.get(here.running.url)).text == "ok"
            await asyncio.sleep(0.005)


async def test_idle_connection_stays_for_longer_than_uvicorn_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(config: uvicorn.Config) -> None:
        usual(config)
        config.timeout_keep_alive = 0  # 5 s by default

    usual = uvicorn.Config.load
    monkeypatch.setattr(uvicorn.Config, "load", load)
    async with Member() as member, spoken(tmp_path, member) as here, here.client() as client:
        for _ in range(2):
            assert (await client.get("/")).body == b"ok"
            await asyncio.sleep(0.2)
