"""``balancer reload`` and what may answer on the admin address: nothing but a supervisor is ever signalled."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from balancer.admin.auth import prove
from balancer.cli import reload
from balancer.demo.system import free_port
from balancer.errors import FAILED
from balancer.process import supervisor_mark
from balancer.types import Address
from tests.support.processes import Serving, serving
from tests.support.wire import Member

TOKEN = "correct-horse-battery"
# What an answer has to say, but for the process that it names.
ANSWER: dict[str, Any] = {"generation": 0, "processes": [{"pid": 3}], "proof": None}


class Impostor:
    """Answers on the admin address in place of a balancer. ``asked``: the heads of the requests."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.keeps_open = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            while self.answer.endswith(b"..."):
                await writer.drain()
                writer.write(bytes(65536))
            await writer.drain()
            if self.keeps_open:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def page(body: object, status: bytes = b"200 OK") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\nConnection: close\r\n\r\n%b" % (status, text)


@asynccontextmanager
async def impostor(answer: bytes) -> AsyncIterator[tuple[Impostor, Address]]:
    it = Impostor(answer)
    async with await asyncio.start_server(it.serve, "127.0.0.1", 0) as server:
        yield it, Address("127.0.0.1", server.sockets[0].getsockname()[1])


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that would have been signalled: -1 and 0 stand for many."""
    found: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append(pid))
    return found


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that is called as a balancer is, and dies of SIGUSR2."""
    with subprocess.Popen(["balancer serve", "60"], executable="sleep") as process:
        yield process
        process.kill()


async def command(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error of ``balancer reload``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "balancer", "reload", *arguments, env=os.environ | environ, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_process_that_is_no_balancer_survives_what_an_answer_says(victim: subprocess.Popen[bytes]) -> None:
    async with impostor(page(ANSWER | {"supervisor": victim.pid})) as (_, address):
        status, out, err = await command(f"--admin-bind={address}")
    assert (status, out) == (FAILED, "")
    assert err.startswith(f"process {victim.pid} is no supervisor of `balancer serve`, and is not signalled")
    assert victim.poll() is None


@pytest.mark.parametrize(
    ("supervisor", "words"),
    [
        (-1, "supervisor is -1, and takes a whole number from 1 to 2147483647"),
        (0, "supervisor is 0, and takes"),
        (1, "process 1 "),
        ("7", "supervisor is '7', and takes"),
        (True, "supervisor is True, and takes"),
        (7.0, "supervisor is 7.0, and takes"),
        (None, "supervisor is None, and takes"),
        (2**31, "supervisor is 2147483648, and takes"),
        (2**31 - 1, "there is no process 2147483647"),
    ],
)
async def test_supervisor_that_is_none_is_refused(
    supervisor: object, words: str, signalled: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    async with impostor(page(ANSWER | {"supervisor": supervisor})) as (_, address):
        assert await asyncio.to_thread(reload.run, address, None, None) == FAILED
    assert signalled == []
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page([]), "is no balancer: it takes a JSON object"),
        (page({"supervisor": 7, "generation": 0}), "it takes a JSON object with a list of processes"),
        (page(ANSWER | {"supervisor": 7, "processes": [7]}), "pid is None, and takes"),
        (page(ANSWER | {"supervisor": 7, "generation": "one"}), "generation is 'one', and takes"),
        (page(b"<html>"), "is no balancer: Expecting value"),
        (page(b"\xff"), "is no balancer: 'utf-8' codec can't decode"),
        (page(b"[" * 100_000), "is no balancer: "),
        (page(b"", b"302 Found\r\nLocation: http://127.0.0.1:1/"), "it says 302, and should say 200"),
        (b"220 mail.example ESMTP\r\n\r\n", "does not answer: illegal status line"),
        (b"", "does not answer: Server disconnected"),
        (page(b"..."), f"its answer has more than {reload.ANSWER_BYTES} bytes"),
    ],
)
async def test_answer_that_is_no_balancers_is_refused(
    answer: bytes, words: str, signalled: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    async with impostor(answer) as (_, address):
        assert await asyncio.to_thread(reload.run, address, None, None) == FAILED
    assert signalled == []
    assert words in capsys.readouterr().err


async def test_answer_that_does_not_end_is_bounded_in_time(
    signalled: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "ANSWER_SECONDS", 0.2)
    async with impostor(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") as (it, address):
        it.keeps_open = True
        assert await asyncio.to_thread(reload.run, address, None, None) == FAILED
    assert signalled == []
    assert "has not answered within 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize("proof", [None, 7, "", "\ud800", prove(TOKEN, "0" * 64, 1, 0)])
async def test_answer_without_the_proof_of_a_token_is_refused_and_not_sent_the_token(
    proof: object, signalled: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "objection", lambda pid: None)
    async with impostor(page(ANSWER | {"supervisor": os.getpid(), "proof": proof})) as (it, address):
        assert await asyncio.to_thread(reload.run, address, None, TOKEN) == FAILED
    assert signalled == []
    (err,) = capsys.readouterr().err.splitlines()
    assert err.startswith(f"what answers on {address} ")
    assert TOKEN.encode() not in b"".join(it.asked)


async def test_command_reload_says_what_it_cannot_do() -> None:
    port = free_port()
    status, _, err = await command(f"--admin-bind=127.0.0.1:{port}")
    assert status == 1
    assert err.startswith(f"the admin listener on 127.0.0.1:{port} does not answer: ")
    assert await command("--admin-bind=off") == (
        1, "", "without an admin listener nothing names the supervisor: --pid is needed\n"
    )  # fmt: skip


async def test_process_given_by_hand_is_checked_as_well(victim: subprocess.Popen[bytes]) -> None:
    status, out, err = await command("--admin-bind=off", f"--pid={victim.pid}")
    assert (status, out) == (FAILED, "")
    assert err.startswith(f"process {victim.pid} is no supervisor of `balancer serve`")
    assert victim.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user takes root")
async def test_supervisor_of_another_user_is_refused() -> None:
    async with running_balancer() as (it, _):
        ask = "import os; from balancer.process.supervisor_mark import objection; os.setuid(65534); "
        ask += f"print(objection({it.process.pid}))"
        asked = await asyncio.create_subprocess_exec(sys.executable, "-c", ask, stdout=PIPE)
        out, _ = await asked.communicate()
        assert out.decode() == f"process {it.process.pid} belongs to user 0 and not to user 65534\n"


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


BY_PS = pytest.param(
    supervisor_mark.PROC / "nowhere",
    id="ps",
    marks=pytest.mark.skipif(not shutil.which("ps"), reason="there is no ps here"),
)


@pytest.mark.parametrize("proc", [pytest.param(supervisor_mark.PROC, id="proc"), BY_PS])
async def test_supervisor_is_told_from_its_children_and_from_others(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_mark, "PROC", proc)
    async with running_balancer() as (it, _):
        supervisor = it.process.pid
        (child,) = children(supervisor)
        assert supervisor_mark.objection(supervisor) is None
        for pid in (child, os.getpid()):
            assert supervisor_mark.objection(pid) == f"process {pid} is no supervisor of `balancer serve`"
        assert supervisor_mark.objection(2**31 - 1) == "there is no process 2147483647"


@pytest.mark.parametrize("token", ["", TOKEN])
async def test_reload_finds_the_supervisor_by_the_admin_listener(token: str) -> None:
    async with running_balancer(admin_token=token) as (it, admin):
        status, out, err = await command(f"--admin-bind={admin}", BALANCER_ADMIN_TOKEN=token)
        assert (status, err) == (0, "")
        assert out.startswith("reloaded: ")
        # The mark outlives a reload.
        status, _, err = await command("--admin-bind=off", f"--pid={it.process.pid}")
        assert (status, err) == (0, "")
        for _ in range(2):
            await it.logged("SIGUSR2: trying the new code")


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_reload_takes_the_token_from_its_file_as_it_is_now(processes: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    async with running_balancer(admin_token_file=str(file), processes=processes) as (it, admin):
        environ = {"BALANCER_ADMIN_TOKEN_FILE": str(file)}
        status, out, err = await command(f"--admin-bind={admin}", **environ)
        assert (status, err, out[:10]) == (0, "", "reloaded: ")
        file.write_text("another-token\n")
        status, _, err = await command(f"--admin-bind={admin}", **environ)
        assert (status, "does not prove" in err) == (FAILED, True)
        it.process.send_signal(signal.SIGHUP)
        await it.logged("the token of the admin port is read again")
        status, out, err = await command(f"--admin-bind={admin}", f"--admin-token-file={file}")
        assert (status, err, out[:10]) == (0, "", "reloaded: ")


@pytest.mark.parametrize("token", ["", "another-token"])
async def test_balancer_with_another_token_or_none_is_not_reloaded(token: str) -> None:
    async with running_balancer(admin_token=token) as (it, admin):
        status, out, err = await command(f"--admin-bind={admin}", f"--admin-token={TOKEN}")
        assert (status, out) == (FAILED, "")
        assert err == (
            f"what answers on {admin} does not prove that it is the balancer with this BALANCER_ADMIN_TOKEN; "
            "nothing is signalled\n"
        )
        status, _, err = await it.stop()
        assert (status, "SIGUSR2" in err) == (0, False)


async def test_challenge_that_is_none_is_told_what_is_accepted() -> None:
    async with running_balancer(admin_token=TOKEN) as (_, admin), httpx.AsyncClient(trust_env=False) as client:
        for challenge in ("", "0", "G" * 64, "0" * 65, "0" * 64 + "%0A"):
            answer = await client.get(f"http://{admin}/api/status?challenge={challenge}")
            assert (answer.status_code, answer.json()["error"]) == (400, "bad_challenge"), challenge
            assert "64 hexadecimal digits" in answer.json()["reason"]


@asynccontextmanager
async def running_balancer(**settings: Any) -> AsyncIterator[tuple[Serving, str]]:
    """``balancer serve`` with its mark, and where its admin listener is."""
    admin = f"127.0.0.1:{free_port()}"
    async with Member() as member, serving(member, admin=admin, **settings) as it:
        await it.logged("admin on ")
        yield it, admin


async def test_healthcheck_of_what_is_no_balancer_says_so() -> None:
    async with impostor(b"220 mail.example ESMTP\r\n") as (_, address):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "balancer.cli.healthcheck",
            env=os.environ | {"BALANCER_ADMIN_BIND": str(address)}, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        _, err = await process.communicate()
    assert process.returncode == 1
    assert err.decode() == "what answers is not HTTP: BadStatusLine('220 mail.example ESMTP\\r\\n')\n"
