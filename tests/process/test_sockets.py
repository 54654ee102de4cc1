"""Where the balancer listens: addresses of both families, and a path in the file system."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from balancer.demo.dns_server import DnsServer, Zone
from balancer.process.sockets import CannotListen, listen, listening
from balancer.types import UnixSocket
from tests.support.messages import LAST_GET as GET
from tests.support.processes import Serving, serving
from tests.support.wire import LIMIT, Connection, Member


async def exchange(serve: Serving, request: bytes = GET) -> bytes:
    async with serve.client() as client:
        await client.send(request)
        return await client.to_end()


async def test_unix_socket_serves_and_is_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "balancer.sock"
    async with Member() as member, serving(member, bind=f"unix:{path}") as serve:
        mode = path.stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)
        assert (await exchange(serve)).endswith(b"\r\n\r\nok")
        status, out, err = await serve.stop()
    assert (status, path.exists()) == (0, False)
    assert f" on unix:{path}\n" in err
    assert "Traceback" not in err
    # Who asked has no address: neither the log nor the member is told one.
    (line,) = out.splitlines()
    assert json.loads(line)["client"] == ""
    assert b"\r\nx-forwarded-for: unknown\r\n" in member.received[0]
    assert b"\r\nforwarded: for=unknown;" in member.received[0]


async def test_health_check_finds_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "balancer.sock"

    async def check() -> int | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "balancer.cli.healthcheck",
            env=os.environ | {"BALANCER_BIND": f"unix:{path}", "BALANCER_ADMIN_BIND": "off"},
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await process.communicate()
        return process.returncode

    assert await check() == 1
    async with Member() as member, serving(member, bind=f"unix:{path}"):
        assert await check() == 0


def test_socket_of_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "balancer.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with listening("BIND", UnixSocket(str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert not path.exists()


def test_socket_on_which_a_process_listens_is_taken(tmp_path: Path) -> None:
    address = UnixSocket(str(tmp_path / "balancer.sock"))
    with listening("BIND", address):
        with pytest.raises(CannotListen, match=f"^BIND={address} cannot be listened on: Address already in use$"):
            listen("BIND", address)
        assert Path(address.path).is_socket()


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(CannotListen, match="Address already in use"):
        listen("BIND", UnixSocket(str(path)))
    assert path.read_text() == "mine"


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = UnixSocket(str(tmp_path / "nowhere" / "balancer.sock"))
    with pytest.raises(CannotListen, match=f"^BIND={address} cannot be listened on: No such file or directory$"):
        listen("BIND", address)


def test_unix_socket_of_a_successor_is_not_taken_away_at_the_end(tmp_path: Path) -> None:
    address = UnixSocket(str(tmp_path / "balancer.sock"))
    with listening("BIND", address):
        Path(address.path).unlink()
        successor = listen("BIND", address)
    with successor, socket.socket(socket.AF_UNIX) as client:
        client.connect(address.path)


def free_everywhere() -> int:
    """A port that is free at every address of this machine, of both families."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::", 0))
            return int(sock.getsockname()[1])
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


@pytest.mark.parametrize(("bind", "client"), [("[::]", "::1"), ("[::1]", "::1"), ("[::]", "127.0.0.1")])
async def test_ipv6_address_is_listened_on(bind: str, client: str) -> None:
    port = free_everywhere()
    async with Member() as member, serving(member, bind=f"{bind}:{port}") as serve:
        reader, writer = await asyncio.open_connection(client, port)
        connection = Connection(reader, writer)
        await connection.send(GET)
        assert (await connection.to_end()).endswith(b"\r\n\r\nok")
        writer.close()
        _, out, _ = await serve.stop()
    assert json.loads(out.splitlines()[-1])["client"] == client


async def test_taken_unix_socket_stops_the_start_with_one_line(tmp_path: Path) -> None:
    address = UnixSocket(str(tmp_path / "balancer.sock"))
    async with DnsServer(Zone()) as server:
        with listening("BIND", address):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "balancer", "serve", f"--bind={address}",
                env=os.environ | {"BALANCER_RESOLVER": str(server.address)},
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            async with asyncio.timeout(LIMIT):
                _, err = await process.communicate()
    assert process.returncode == 1
    assert err.decode() == f"BALANCER_BIND={address} cannot be listened on: Address already in use\n"
