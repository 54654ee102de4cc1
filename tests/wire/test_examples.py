"""The examples in examples/ as they are, under the servers that people run, over real workers and a DNS server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from websockets.asyncio.client import connect

from balancer import BalancedTransport, Settings
from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from balancer.discovery.snapshot import Answer, Outcome, Snapshot
from balancer.members.health import HealthEvent
from balancer.members.probe import Verdict
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream
from tests.support.blocks import readme_block
from tests.support.paths import ROOT
from tests.support.redis import redis
from tests.support.scripted import ScriptedResolver
from tests.support.wire import LIMIT, eventually
from tests.support.workers import Worker, running, worker

EXAMPLES = ROOT / "examples"
HOSTS = {"one": "127.0.1.201", "two": "127.0.1.202"}

MOUNT_ONLY = """
import os
from starlette.applications import Starlette
from starlette.routing import Mount
from balancer import LoadBalancer, Settings

app = Starlette(routes=[Mount("/api", LoadBalancer(Settings.load(os.environ)))])
"""

SERVERS = {
    "uvicorn-h11": ["uvicorn", "--http=h11", "--ws=websockets-sansio", "--log-level=warning", "--port={port}"],
    "hypercorn": ["hypercorn", "--log-level=WARNING", "--bind=127.0.0.1:{port}"],
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> list[str]:
    return SERVERS[request.param]


@asynccontextmanager
async def system() -> AsyncIterator[dict[str, str]]:
    """Two workers behind the alias, as the environment of whoever balances them."""
    async with AsyncExitStack() as stack:
        redis_port = await stack.enter_async_context(redis())
        port = free_port(HOSTS["one"])
        for name, host in HOSTS.items():
            await stack.enter_async_context(worker(redis_port, name, host, port))
        zone = Zone()
        zone.records["apps"] = [("A", host) for host in HOSTS.values()]
        dns = await stack.enter_async_context(DnsServer(zone))
        yield {
            "BALANCER_RESOLVER": str(dns.address),
            "BALANCER_UPSTREAM_PORT": str(port),
            "BALANCER_HEALTH_PATH": "/healthz",
            "PYTHONPATH": str(ROOT),
        }


@asynccontextmanager
async def serving(server: list[str], app: str, folder: Path, environ: dict[str, str]) -> AsyncIterator[Worker]:
    port = free_port()
    arguments = [it.format(port=port) for it in server]
    # In development mode, Python says what is left behind.
    async with running(port, "-X", "dev", "-m", *arguments, f"{app}:app", cwd=folder, environ=environ) as process:
        yield process


def names(answers: list[httpx.Response]) -> list[str]:
    return [re.fullmatch(r"Hello World I am (\w+)! \d+ times\.\n", it.text)[1] for it in answers]  # type: ignore[index]


async def test_fastapi_example(server: list[str]) -> None:
    async with system() as environ, serving(server, "fastapi_mount", EXAMPLES, environ) as app:
        url = f"http://127.0.0.1:{app.port}"
        token = {"Authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT) as client:
            refused = await client.get("/api/")
            assert (refused.status_code, refused.text) == (401, "a token is required\n")
            answers = [await client.get("/api/", headers=token) for _ in range(6)]
            assert sorted(names(answers)) == ["one"] * 3 + ["two"] * 3
            port = environ["BALANCER_UPSTREAM_PORT"]
            assert (await client.get("/")).json() == {f"{host}:{port}": "up" for host in HOSTS.values()}
            recorded = await client.post("/api/record", headers=token, content=b"x" * 100)
            assert recorded.text.endswith("came 1 times.\n")
            async with client.stream("GET", "/api/events?seconds=0.2", headers=token) as events:
                async for line in events.aiter_lines():
                    assert line.startswith("data: Hello World I am ")
                    break
        async with connect(f"ws://127.0.0.1:{app.port}/api/echo", additional_headers=token, proxy=None) as socket:
            await socket.send("héllo")
            assert await socket.recv() == "héllo"
        status, seconds, err = await app.stop()
        assert status in (0, -signal.SIGTERM)  # uvicorn ends itself by the signal that it got
        assert err == ""
        assert seconds < 3


async def test_mount_without_a_lifespan_ends_cleanly_with_its_server(server: list[str], tmp_path: Path) -> None:
    (tmp_path / "mounted.py").write_text(MOUNT_ONLY)
    async with system() as environ, serving(server, "mounted", tmp_path, environ) as app:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.port}", timeout=LIMIT) as client:
            answers = await asyncio.gather(*(client.get("/api/") for _ in range(4)))
            assert set(names(answers)) <= set(HOSTS)
        status, seconds, err = await app.stop()
        assert status in (0, -signal.SIGTERM)  # uvicorn ends itself by the signal that it got
        assert err == ""
        assert seconds < 3


async def test_client_example() -> None:
    assert readme_block("async def main() -> None:").text.strip() in (EXAMPLES / "balanced_client.py").read_text()
    async with system() as environ:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "dev", "balanced_client.py",
            cwd=EXAMPLES, env=os.environ | environ, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        async with asyncio.timeout(2 * LIMIT):
            out, err = await process.communicate()
        assert (process.returncode, err.decode()) == (0, "")
        port = environ["BALANCER_UPSTREAM_PORT"]
        said = [f"200 {host}:{port} Hello World I am {name}! " for name, host in HOSTS.items()]
        lines = out.decode().splitlines()
        assert len(lines) == 10
        assert all(it.startswith(tuple(said)) for it in lines)


async def test_example_of_tests_passes_where_it_is_copied_to(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "test_calls.py", tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", "test_calls.py",
        cwd=tmp_path, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_way_to_no_member_and_to_one_that_is_down_is_as_the_guide_says(library: Any) -> None:
    """docs/guides/library.md, on tests; there with either library."""

    async def no_one() -> Snapshot:
        return Snapshot((Answer("A", Outcome.EMPTY),), 0.0)

    async def down(address: Address) -> Verdict:
        return HealthEvent.REFUSED, "down"

    upstream = HttpxUpstream(Timeouts(1, 1, 1), lambda: library.MockTransport(lambda request: library.Response(200)))
    one = ScriptedResolver(Address("10.0.0.1", 80))
    settings: list[dict[str, Any]] = [{"resolve": no_one}, {"resolve": one, "probe": down}]
    for setting in settings:
        transport = BalancedTransport("apps", upstream=upstream, queue_timeout=0.1, **setting)
        async with library.AsyncClient(transport=transport, base_url="http://apps") as client:
            answer = await client.get("/")
            assert (answer.status_code, answer.headers["x-balancer-error"]) == (503, "no_member")


async def test_caller_does_not_notice_that_members_come_and_go() -> None:
    async with AsyncExitStack() as stack:
        port = free_port(HOSTS["one"])
        one = await stack.enter_async_context(worker(1, "one", HOSTS["one"], port))
        zone = Zone()
        zone.records["apps"] = [("A", host) for host in HOSTS.values()]
        dns = await stack.enter_async_context(DnsServer(zone))
        settings = Settings.of(resolver=str(dns.address), upstream_port=port, health_path="/healthz")
        transport = BalancedTransport(settings)
        async with httpx.AsyncClient(transport=transport, base_url="http://apps", timeout=LIMIT) as client:
            answers: list[httpx.Response] = []
            going = True

            async def keep_calling() -> None:
                while going:
                    answers.append(await client.get("/work?seconds=0"))

            callers = [asyncio.create_task(keep_calling()) for _ in range(3)]
            await eventually(lambda: len(answers) > 10)
            await stack.enter_async_context(worker(1, "two", HOSTS["two"], port))
            await eventually(lambda: any(it.text.startswith("two") for it in answers))
            assert (await one.stop())[0] == 0
            stopped = len(answers)
            await eventually(lambda: len(answers) > stopped + 10)
            going = False
            await asyncio.gather(*callers)
        assert {it.status_code for it in answers} == {200}
        assert answers[-1].text == "two worked for 0 s.\n"
