"""A balancer with a shutdown delay sends its clients elsewhere before it stops, and none of them loses a request."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from balancer.demo.system import free_port
from tests.support.gate import Gate
from tests.support.messages import GET
from tests.support.processes import Serving, serving
from tests.support.wire import LIMIT, Connection, Member, eventually

CLIENTS = 20


async def ask(client: Connection) -> bytes:
    """The head of the answer."""
    await client.send(GET)
    head = await client.head()
    assert head.startswith(b"HTTP/1.1 200 ")
    await client.exactly(2)
    return head


async def ended(serve: Serving) -> int | None:
    async with asyncio.timeout(LIMIT):
        await serve.process.communicate()
    return serve.process.returncode


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_balancer_that_leaves_serves_and_closes_connections_with_their_responses(processes: str) -> None:
    admin = f"127.0.0.1:{free_port()}"
    async with (
        Member() as member,
        serving(member, admin=admin, shutdown_delay="60", processes=processes) as serve,
        serve.client() as client,
        httpx.AsyncClient(trust_env=False) as page,
    ):
        # Often enough that the request is known by its bytes.
        for _ in range(4):
            assert b"connection:" not in await ask(client)
        async with asyncio.timeout(LIMIT):
            while (await page.get(f"http://{admin}/readyz")).status_code != 200:
                await asyncio.sleep(0.02)  # Of several processes each reports once a second.
        serve.process.terminate()
        for _ in range(int(processes)):
            await serve.logged("leaving")  # Each of them says so.
        assert b"\r\nconnection: close\r\n" in await ask(client)
        assert await client.reader.read() == b""
        async with serve.client() as new:
            assert b"\r\nconnection: close\r\n" in await ask(new)
            assert await new.reader.read() == b""
        async with asyncio.timeout(LIMIT):  # The process of the admin port gets its signal by itself.
            while (ready := await page.get(f"http://{admin}/readyz")).status_code != 503:
                await asyncio.sleep(0.02)
        assert ready.text == "the balancer stops\n"
        assert (await page.get(f"http://{admin}/healthz")).status_code == 200
        # Whoever does not want to wait says so again.
        serve.process.terminate()
        assert await ended(serve) == 0


async def test_delay_ends_by_itself() -> None:
    async with Member() as member, serving(member, shutdown_delay="0.5") as serve:
        await serve.logged("apps on")
        began = time.monotonic()
        serve.process.terminate()
        assert await ended(serve) == 0
        assert time.monotonic() - began >= 0.5


async def test_request_in_flight_has_its_time_after_the_delay() -> None:
    gate = Gate()
    async with (
        Member(gate) as member,
        serving(member, shutdown_delay="0.3", shutdown_timeout="30") as serve,
        serve.client() as client,
    ):
        await client.send(GET)
        await eventually(lambda: gate.waiting == 1)
        serve.process.terminate()
        await serve.logged("stopping: 1 request in progress")
        gate.let()
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await ended(serve) == 0


@pytest.mark.parametrize("front", ["edge", "proxy header"])
async def test_clients_that_never_stop_asking_lose_nothing(front: str) -> None:
    at_it = asyncio.Semaphore(0)
    trusted = {"edge": "", "proxy header": "127.0.0.1"}[front]
    announced = "on" if trusted else "off"
    async with (
        Member() as member,
        serving(member, shutdown_delay="1", trusted_proxies=trusted, proxy_protocol=announced) as serve,
    ):

        async def keep_asking(client: Connection) -> int:
            """Until told to go elsewhere; the number of answers."""
            if front == "proxy header":
                await client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
            answers = 1
            while b"connection: close" not in await ask(client):
                answers += 1
                if answers == 10:
                    at_it.release()
            client.close()
            return answers

        async with asyncio.TaskGroup() as group:
            crowd = []
            for _ in range(CLIENTS):
                client = Connection(*await asyncio.open_connection("127.0.0.1", serve.port))
                crowd.append(group.create_task(keep_asking(client)))
            for _ in crowd:
                await at_it.acquire()
            serve.process.terminate()
        assert min(it.result() for it in crowd) > 10
        assert await ended(serve) == 0
