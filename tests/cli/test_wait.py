"""``balancer wait``: what it prints and how it ends, against a balancer and against what else may answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from balancer.cli.main import main
from balancer.cli.wait import run
from balancer.demo.system import free_port
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.admin import administer
from tests.support.processes import serving
from tests.support.scripted import ScriptedResolver
from tests.support.wire import LIMIT, Connection, Member, balance, eventually


async def waited(admin: Address, wanted: int, pool: str | None = None, timeout: float = 0.0) -> int:
    return await asyncio.to_thread(run, admin, wanted, pool, timeout)


async def test_wait_ends_once_so_many_members_are_up(capsys: pytest.CaptureFixture[str]) -> None:
    resolver = ScriptedResolver()
    said = ""

    def says(words: str) -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return words in said

    async with (
        Member() as one,
        Member() as two,
        balance(resolve=resolver, stats=Stats()) as running,
        administer(running) as port,
    ):
        waiting = asyncio.create_task(waited(port.address, 2, timeout=2 * LIMIT))
        await eventually(lambda: says("0 of 2 members are up, of 0 that DNS names\n"))
        resolver.found(one.address)
        await eventually(lambda: says("1 of 2 members are up, of 1 that DNS names\n"))
        assert not waiting.done()
        resolver.found(one.address, two.address)
        assert await waiting == 0
    assert says(f"waiting for 2 members to be up, {2 * LIMIT:g} s at most\n")
    assert said.endswith("2 of 2 members are up, of 2 that DNS names\n")


async def test_wait_in_vain_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    async with Member() as one, balance(one, stats=Stats()) as running, administer(running) as port:
        assert await waited(port.address, 6, timeout=0.3) == 1
        out, err = capsys.readouterr()
        assert err == "not within 0.3 s: 1 of 6 members are up, of 1 that DNS names\n"
        assert out.count("1 of 6 members are up") == 1
        assert await waited(port.address, 1, pool="shop", timeout=60) == 1
        assert capsys.readouterr().err == "there is no pool 'shop'; there is apps\n"


async def test_balancer_that_does_not_answer_yet_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    admin = Address("127.0.0.1", free_port())
    assert await waited(admin, 1, timeout=0.3) == 1
    out, err = capsys.readouterr()
    assert f"the balancer does not answer on {admin}: Connection refused\n" in out
    assert err.startswith("not within 0.3 s: the balancer does not answer on ")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n", "is no balancer that counts members: 200 'ok'"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n\x1b[", "is no balancer that counts members: 404"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is not HTTP: "),
    ],
)
async def test_other_program_on_the_admin_address_ends_the_wait(
    answer: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(answer)

    async with Member(script) as other:
        assert await waited(other.address, 1, timeout=60) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1 and "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--up", "0"], "'0' cannot be used: it takes a whole number from 1 to 1000000"),
        (["--up", "six"], "'six' cannot be used: it takes a whole number"),
        (["--timeout", "-1"], "it takes a number from 0 to 86400"),
        (["--ups", "6"], "unrecognized arguments: --ups 6"),
    ],
)
def test_argument_that_cannot_be_used_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["wait", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_wait_without_an_admin_listener_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", "--admin-bind", "off"]) == 1
    assert "without an admin listener" in capsys.readouterr().err


async def test_wait_counts_over_processes_and_by_pool(tmp_path: Path) -> None:
    admin = free_port()
    async with Member() as member:
        (tmp_path / "routes.toml").write_text(
            f"[shop]\nalias = 'one'\nupstream_port = {member.address.port}\n"
            "[empty]\npath = '/empty'\nalias = 'nothing'\n"
        )
        routes = str(tmp_path / "routes.toml")
        async with serving(member, aliases=["one"], admin=f"127.0.0.1:{admin}", routes=routes, processes="2"):

            async def wait(*arguments: str) -> tuple[int | None, str]:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "balancer", "wait", f"--admin-bind=127.0.0.1:{admin}", *arguments,
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
                out, _ = await process.communicate()
                return process.returncode, out.decode()

            status, out = await wait("--up=1", "--pool=shop", "--timeout=30")
            assert (status, out.splitlines()[-1]) == (0, "1 of 1 members are up, of 1 that DNS names")
            status, out = await wait("--up=1", "--timeout=0")
            assert (status, out.splitlines()[-1]) == (
                1, "not within 0 s: 0 of 1 members are up in empty, of 0 that DNS names"
            )  # fmt: skip
