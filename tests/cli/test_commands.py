"""The commands as a user runs them."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from balancer.cli.main import main
from balancer.demo import system
from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import System, free_port, preferred_port
from balancer.watch import Loop, Tally
from tests.support.gate import Gate
from tests.support.processes import serving
from tests.support.wire import Connection, Member, balance, eventually


async def start(*arguments: str, **environ: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "balancer", *arguments, env=os.environ | environ, stdout=PIPE, stderr=PIPE
    )


async def run(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error."""
    process = await start(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def processes_with(text: str) -> list[str]:
    """Command lines of the processes on this machine that contain ``text`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


async def test_port_is_given_to_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from balancer.demo.system import free_port; print(free_port(), flush=True); input()"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=PIPE, stdout=PIPE)
    try:
        assert other.stdout
        port = int(await other.stdout.readline())
        monkeypatch.setattr(random, "randrange", lambda *limits: port)
        with pytest.raises(OSError, match="no free port"):
            free_port()
    finally:
        await other.communicate(b"\n")
    assert free_port() == port
    with pytest.raises(OSError, match="no free port"):
        free_port()


async def test_demo_scales_and_leaves_nothing_behind() -> None:
    mark = f"DEMO_TEST_{free_port()}"
    port = free_port()
    status, out, err = await run("demo", "--seconds", "6", "--port", str(port), **{mark: "1"})
    assert (status, err) == (0, "")
    assert re.match(rf"workers: http://127\.0\.0\.1:{port}/\nstatus page: http://127\.0\.0\.1:\d+/\n", out)
    assert re.search(r"answering: worker-1, worker-2, worker-3\n", out)
    assert " 0 failed" in out
    assert processes_with(mark) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_endless_demo_ends_on_a_signal_and_leaves_nothing_behind(number: signal.Signals) -> None:
    mark = f"DEMO_TEST_{free_port()}"
    process = await start("demo", "--seconds", "0", "--port", str(free_port()), **{mark: "1", "PYTHONUNBUFFERED": "1"})
    assert process.stdout
    said = b""
    while b"answering" not in said:
        said += await process.stdout.readline()
    found = re.search(rb"status page: (\S+)\n", said)
    assert found
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(found[1].decode())).text.startswith("<!doctype html>")
    process.send_signal(number)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert processes_with(mark) == []


def test_port_that_is_preferred_is_taken_by_one_demo_at_a_time() -> None:
    port = free_port()
    assert preferred_port(port) != port, "it is reserved"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken: int = sock.getsockname()[1]
        assert preferred_port(taken) != taken
    assert preferred_port(taken) == taken
    assert preferred_port(taken) != taken


def test_demo_without_its_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system, "find_spec", lambda name: None)
    assert main(["demo"]) == 1
    error = "The demo cannot run: the package redis is missing: pip install 'balancer[demo]'\n"
    assert capsys.readouterr() == ("", error)


async def test_demo_says_so_when_its_port_is_taken() -> None:
    async with Member() as member:
        status, _, err = await run("demo", "--port", str(member.address.port))
    assert status == 1
    assert err == (
        "The demo cannot run: balancer ended: "
        f"BALANCER_BIND={member.address} cannot be listened on: Address already in use\n"
    )


async def test_workers_where_loopback_has_one_address_are_found_by_srv() -> None:
    async with System(free_port(), own_addresses=False) as demo:
        await demo.scale(2)
        tally = Tally()
        async for result in Loop(f"http://127.0.0.1:{demo.port}/", rate=50, count=40).results():
            tally.add(result)
    assert not tally.failures
    assert set(tally.shares) == {"worker-1", "worker-2"}


def test_loopback_of_this_machine_is_a_network() -> None:
    assert system.has_loopback_network() == sys.platform.startswith("linux")


async def test_check_prints_settings_the_dns_answer_and_what_a_probe_of_each_member_comes_to() -> None:
    zone = Zone()
    zone.records["apps"] = [("A", "127.0.0.1"), ("A", "127.0.0.2")]
    zone.records["down"] = [("A", "127.0.0.2")]
    async with DnsServer(zone) as server, Member() as member:
        port, resolver = str(member.address.port), str(server.address)
        status, out, err = await run("check", BALANCER_RESOLVER=resolver, BALANCER_UPSTREAM_PORT=port)
        assert (status, err) == (0, "")
        assert f"BALANCER_RESOLVER={server.address}\n" in out
        refused = f"  127.0.0.2:{port}  connection refused: nothing listens there, or on 127.0.0.1 only\n"
        assert out.endswith(
            f"DNS for apps: A: NOERROR, 2 endpoints\n  127.0.0.1:{port}  accepts connections\n{refused}"
        )
        status, out, _ = await run("check", "--alias", "down", "--upstream-port", port, BALANCER_RESOLVER=resolver)
        assert status == 1
        assert out.endswith(f"DNS for down: A: NOERROR, 1 endpoint\n{refused}")
        status, out, _ = await run("check", "--alias", "nobody", BALANCER_RESOLVER=str(server.address))
        assert status == 1
        assert out.endswith("DNS for nobody: A: NXDOMAIN, 0 endpoints\n")
        status, out, _ = await run("check", "--alias", "localhost", "--upstream-port", port)
        assert status == 0
        assert out.endswith(f"DNS for localhost: A: /etc/hosts, 1 endpoint\n  127.0.0.1:{port}  accepts connections\n")
        status, out, _ = await run("check", "--alias", "127.0.0.1", "--upstream-port", port)
        assert status == 0
        words = "A: the alias is an address, 1 endpoint"
        assert out.endswith(f"DNS for 127.0.0.1: {words}\n  127.0.0.1:{port}  accepts connections\n")
        status, out, err = await run("check", "--alias", "127.0.0.1", "--upstream-port", port, "--bind", f"[::]:{port}")
        assert status == 1
        assert out.endswith(f"  127.0.0.1:{port}  this is the balancer itself, whose requests would come back\n")
        assert "take the alias 127.0.0.1 from its service" in err
        status, _, err = await run("check", "--alias", "127.0.0.1", "--dns-record", "srv")
        assert (status, err.count("\n")) == (2, 1)


async def test_watch_shows_who_answers_and_succeeds() -> None:
    async with Member() as member, balance(member) as running:
        status, out, err = await run("watch", running.url, "--count", "5", "--rate", "100")
    assert (status, err) == (0, "")
    assert out.count("ok\n") == 5
    assert "5 requests, 0 failed" in out
    assert "  ok: 5 (100.0%)" in out


async def test_watch_fails_when_a_request_fails_and_says_why() -> None:
    async with balance(queue_timeout=0.01) as running:
        status, out, _ = await run("watch", running.url, "--count", "2", "--rate", "100")
    assert status == 1
    assert "failed 2 times: 503 no_member" in out


async def test_serve_finishes_what_is_in_flight_when_it_is_told_to_stop() -> None:
    gate = Gate()
    async with (
        Member(gate) as member,
        serving(member, admin=f"127.0.0.1:{free_port()}") as serve,
        serve.client() as client,
    ):
        await client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: gate.waiting == 1)
        serve.process.terminate()
        await _refusing(serve.port)
        gate.let()
        assert (await client.to_end()).endswith(b"\r\n\r\nok")
        out, err = await serve.process.communicate()
        assert serve.process.returncode == 0
    assert b"Traceback" not in err
    assert b'"target":"/slow","status":200,"bytes":2' in out


async def test_serve_has_more_clients_than_the_soft_limit_on_open_files() -> None:
    zone = Zone()
    zone.records["apps"] = [("A", "127.0.0.1")]
    port = free_port()
    async with AsyncExitStack() as stack:
        member = await stack.enter_async_context(Member())
        server = await stack.enter_async_context(DnsServer(zone))
        arguments = [f"--bind=127.0.0.1:{port}", "--admin-bind=off", f"--upstream-port={member.address.port}"]
        # ``exec``, so that the process is the balancer and not the shell.
        command = ["sh", "-c", 'ulimit -Sn 64; exec "$0" "$@"', sys.executable, "-m", "balancer", "serve", *arguments]
        environ = os.environ | {"BALANCER_RESOLVER": str(server.address)}
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=DEVNULL, stderr=DEVNULL)
        stack.push_async_callback(process.wait)
        stack.callback(process.terminate)
        await _listening(port)
        for _ in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            client = Connection(reader, writer)
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.until(b"\r\n\r\nok")


async def test_request_that_outlasts_the_drain_is_told_so() -> None:
    async with (
        Member() as member,
        serving(member, aliases=(), shutdown_timeout="0.3") as serve,
        serve.client() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        # Only a connection that was taken up can be finished.
        await serve.logged("DNS for apps")
        serve.process.terminate()
        answer = await client.to_end()
        _, err = await serve.process.communicate()
        assert serve.process.returncode == 0
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"x-balancer-error: shutting_down\r\n" in answer
    assert b"Traceback" not in err


async def _listening(port: int) -> None:
    async def up() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    async with asyncio.timeout(10):
        while not await up():
            await asyncio.sleep(0.02)


async def _refusing(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)
