"""Requests that come back to the balancer that passed them on, and chains of balancers, which are none."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from balancer import BalancedTransport, LoadBalancer
from balancer.demo.system import free_port
from balancer.types import Address
from tests.process.test_supervisor import fleet
from tests.support.messages import LAST_GET
from tests.support.mounted import served
from tests.support.processes import serving
from tests.support.routed import TWO, routed
from tests.support.scripted import ScriptedResolver
from tests.support.wire import LIMIT, Connection, Member, balance, eventually

WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
REQUESTS = {
    "GET": LAST_GET,
    "HEAD": LAST_GET.replace(b"GET", b"HEAD"),
    "POST": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody",
    "a body in chunks": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\nbody\r\n0\r\n\r\n",
    "behind a proxy": LAST_GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"),
    "that names the field in Connection": LAST_GET.replace(b"close", b"close, cdn-loop"),
}


def loops(answer: bytes) -> bool:
    """Whether an answer is the balancer's 508."""
    head = answer.lower()
    return head.startswith(b"http/1.1 508 ") and b"\r\nx-balancer-error: loop_detected\r\n" in head


def marks(received: Iterable[bytes]) -> list[bytes]:
    """The values of CDN-Loop in the heads of requests."""
    lines = [line.lower() for head in received for line in head.split(b"\r\n")]
    return [line.partition(b": ")[2] for line in lines if line.startswith(b"cdn-loop: ")]


def with_mark(request: bytes, mark: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\nCDN-Loop: %b\r\n\r\n" % mark, 1)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("trusted", [(), (ipaddress.ip_network("127.0.0.0/8"),)], ids=["strangers", "trusted"])
async def test_request_that_comes_back_is_answered_508_at_the_first_hop(request_: bytes, trusted: tuple[()]) -> None:
    resolver = ScriptedResolver()
    async with balance(resolve=resolver, trusted_proxies=trusted, wait=False) as running:
        resolver.found(running.address)
        await running.available(1)
        assert loops(await running.exchange(request_))
        await running.idle()
        assert [(it.status, it.error) for it in running.records] == [(508, "loop_detected"), (508, "")]


@pytest.mark.usefixtures("each_way")
async def test_loop_through_two_balancers_ends_where_it_began() -> None:
    one, two = ScriptedResolver(), ScriptedResolver()
    trusted = (ipaddress.ip_network("127.0.0.0/8"),)
    async with (
        balance(resolve=one, wait=False) as first,
        balance(resolve=two, wait=False, trusted_proxies=trusted) as second,
    ):
        one.found(second.address)
        two.found(first.address)
        await first.available(1)
        await second.available(1)
        assert loops(await first.exchange(LAST_GET))
        assert [it.error for it in first.records] == ["loop_detected", ""]
        assert [it.error for it in second.records] == [""]


@pytest.mark.usefixtures("each_way")
async def test_chain_of_balancers_passes_and_the_member_sees_each_of_them() -> None:
    async with Member() as member, balance(member) as inner, balance(inner.address) as outer:
        for _ in range(4):
            assert (await outer.exchange(with_mark(LAST_GET, b"cdn.example; v=1"))).endswith(b"ok")
        (found,) = set(marks(member.received))
        assert found.startswith(b"cdn.example; v=1, balancer-")
        assert len(set(found.split(b", "))) == 3


async def test_request_with_a_pools_own_mark_is_refused_however_often_it_comes() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        request = LAST_GET.replace(b"Connection: close\r\n", b"")
        await client.send(request)
        await client.until(b"ok")
        (mark,) = marks(member.received)
        for _ in range(4):  # It is known by its bytes from the third on.
            await client.send(with_mark(request, b"other, " + mark))
            assert b" 508 " in await client.until(b"\n")
            await client.until(b"request id: ")
            await client.until(b"\n")
        await client.send(request)
        assert b" 200 " in await client.until(b"ok")
        assert len(marks(member.received)) == 2


async def test_websocket_that_comes_back_is_answered_508() -> None:
    resolver = ScriptedResolver()
    async with balance(resolve=resolver, wait=False) as running, running.client() as client:
        resolver.found(running.address)
        await running.available(1)
        await client.send(WEBSOCKET)
        assert loops(await client.head())


async def test_mounted_pool_that_is_its_own_member_is_refused_at_the_first_hop() -> None:
    resolver = ScriptedResolver()
    async with LoadBalancer("apps", resolve=resolver) as pool, served(pool) as address:
        resolver.found(address)
        await eventually(lambda: pool.available == 1)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(LAST_GET)
        async with asyncio.timeout(LIMIT):
            assert loops(await reader.read())
        writer.close()


async def test_call_that_passes_on_the_fields_of_a_request_that_came_through_its_pool_is_refused() -> None:
    async with Member() as member:
        transport = BalancedTransport("apps", resolve=ScriptedResolver(member.address))
        async with httpx.AsyncClient(transport=transport, base_url="http://apps") as client:
            assert (await client.get("/")).status_code == 200
            (mark,) = marks(member.received)
            answer = await client.get("/", headers={"CDN-Loop": mark.decode()})
            assert (answer.status_code, answer.headers["x-balancer-error"]) == (508, "loop_detected")


async def test_request_may_pass_through_several_pools_of_one_balancer(tmp_path: Path) -> None:
    """A worker of one pool may call another through the balancer, with the fields that it was sent."""
    async with Member() as one, Member() as two, routed(tmp_path, TWO, members={"one": one, "two": two}) as running:
        await running.ask("/", "a")
        (mark,) = marks(one.received)
        assert " 200 " in await running.ask("/two", "b", more=f"CDN-Loop: {mark.decode()}\r\n")
        assert " 508 " in await running.ask("/", "a", more=f"CDN-Loop: {mark.decode()}\r\n")


async def test_loop_over_tls_and_http2_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")
    from tests.support.http2_door import HEAD, spoken
    from tests.support.tls import trusting

    async with Member() as member, spoken(tmp_path, member) as here:
        async with here.client() as client:
            assert (await client.get("/")).body == b"ok"
            (mark,) = marks(member.received)
            answer = await client.answer(await client.ask_raw([*HEAD, (b"cdn-loop", mark)]))
            assert (answer.status, dict(answer.headers)[b"x-balancer-error"]) == (508, b"loop_detected")
        async with here.running.client(trusting("http/1.1")) as connection:
            await connection.send(with_mark(LAST_GET, mark))
            assert loops(await connection.head())


# The balancer among its own members.


async def test_address_of_the_balancer_itself_gets_no_request_and_a_line_in_the_log() -> None:
    async with Member(host="127.0.0.2") as member:
        own = Member(host="127.0.0.1", port=member.address.port)
        bind = str(Address("127.0.0.1", member.address.port))
        async with serving(member, bind=bind, others=[own], access_log="off") as serve:
            await serve.logged(f"{bind} is this balancer itself")
            await serve.logged(f"{member.address} up")
            for _ in range(6):
                async with serve.client() as client:
                    await client.send(LAST_GET)
                    assert (await client.to_end()).endswith(b"ok")
            assert sum(received.count(b"GET / ") for received in member.received) == 6
            assert "is this balancer itself" not in (await serve.stop())[2]


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "[::]"])
async def test_balancer_that_is_its_only_member_answers_508_at_once(bind: str) -> None:
    port = free_port()
    async with serving(Member(host="127.0.0.1", port=port), bind=f"{bind}:{port}", access_log="off") as serve:
        await serve.logged("is this balancer itself")
        async with serve.client() as client:
            await client.send(LAST_GET)
            answer = await client.to_end()
        assert loops(answer)
        assert b"apps" in answer


async def test_health_checks_do_not_go_round_where_the_balancer_is_its_own_member() -> None:
    async def count(connection: Connection) -> None:
        while True:
            probed.append((await connection.head()).split()[1])
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    probed: list[bytes] = []
    async with Member(count, host="127.0.0.2") as member:
        own = Member(host="127.0.0.1", port=member.address.port)
        bind = str(own.address)
        async with serving(member, bind=bind, others=[own], health_path="/up", health_interval="0.1") as serve:
            await serve.logged(f"{member.address} up")
            await eventually(lambda: len(probed) >= 5)
            _, log, _ = await serve.stop()
    # The access log has requests of clients alone: no probe has come to the balancer.
    assert "/up" not in log


async def test_processes_of_one_balancer_have_one_mark_and_keep_it_through_a_reload() -> None:
    async with Member() as member, Member() as other, fleet(member, processes=3) as it, fleet(other) as second:
        for _ in range(24):
            await it.get()
        it.process.send_signal(signal.SIGUSR2)
        await it.reloaded(1, 3)
        for _ in range(24):
            await it.get()
        assert len(marks(member.received)) == 48
        assert len(set(marks(member.received))) == 1
        await second.get()
        assert set(marks(other.received)) != set(marks(member.received))


def test_processes_forked_from_one_that_has_made_the_pool_have_marks_of_their_own() -> None:
    """gunicorn with ``--preload``: whether two processes are one balancer is not known there."""
    source = textwrap.dedent(
        """
        import asyncio, os
        from balancer import LoadBalancer

        pool = LoadBalancer("apps", resolver="127.0.0.1")

        async def main():
            async with pool:
                print(pool.dispatcher._request_headers([], "", "http", b"")[-1][1].decode(), flush=True)

        for _ in range(2):
            if not os.fork():
                asyncio.run(main())
                os._exit(0)
            os.wait()
        """
    )
    found = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    first, second = found.stdout.split()
    assert first.startswith("balancer-")
    assert first != second
