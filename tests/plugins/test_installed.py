"""Plug-ins of a package of their own, as docs/guides/plugins.md has them, with ``balancer serve`` and ``check``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from balancer.config.settings import Settings, SettingsError
from balancer.demo.system import free_port
from balancer.hooks import HookRequest, Hooks
from balancer.loadbalancer import LoadBalancer
from balancer.plugins.hooked_dispatcher import HookedDispatcher
from tests.support import guide
from tests.support.processes import Serving, serving
from tests.support.wire import Connection, Member

GUIDE = guide.files("guides/plugins.md")

RAISING = """
from balancer.hooks import Hooks

class Policy:
    def build(self, members):
        pass

    def choose(self, request, exclude):
        return {"/fine": None}[request.target]

class Raising(Hooks):
    def on_request(self, request):
        request.headers.set("x-half", "done")
        raise LookupError("nobody knows")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of the guide is installed, built as anybody would build it."""
    package, target = tmp_path_factory.mktemp("balancer-tenants"), tmp_path_factory.mktemp("installed")
    for name in ("tenants.py", "pyproject.toml"):
        (package / name).write_text(GUIDE[name])
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", target, package], check=True, timeout=60)
    return target


@pytest_asyncio.fixture
async def members() -> AsyncIterator[list[Member]]:
    """Two members on the same port."""
    async with Member() as one, Member(host="127.0.0.2", port=one.address.port) as other:
        yield [one, other]


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, folders), *([known] if known else [])]))


async def run(command: str, **settings: str) -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error of a command that ends by itself."""
    environ = {f"BALANCER_{name.upper()}": value for name, value in settings.items()}
    environ |= {
        "BALANCER_BIND": f"127.0.0.1:{free_port()}",
        "BALANCER_ADMIN_BIND": "off",
        "BALANCER_RESOLVER": "127.0.0.1:9",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "balancer", command, env=os.environ | environ, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def ask(client: Connection, *fields: str, path: str = "/") -> bytes:
    """The head of the response; its body is "ok" where the member answers."""
    await client.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode())
    head = await client.head()
    await client.exactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    return head


async def tenants_at(serve: Serving, members: Sequence[Member], tenants: range) -> list[set[str]]:
    """Ask four times for each tenant; who was asked for whom."""
    async with serve.client() as client:
        for _ in range(4):
            for tenant in tenants:
                await ask(client, f"X-Tenant: t{tenant}")
    received = [b"".join(it.received).decode().lower() for it in members]
    return [{f"t{tenant}" for tenant in tenants if f"x-tenant: t{tenant}\r\n" in text} for text in received]


@pytest.mark.parametrize("name", ["tenants:TenantAffinity", "tenant_affinity"])
async def test_policy_of_another_package_keeps_tenants_together(
    name: str, installed: Path, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch, installed)
    async with serving(members[0], others=members[1:], policy=name) as serve:
        await both_up(serve)
        one, other = await tenants_at(serve, members, range(20))
        status, _, err = await serve.stop()
    assert (status, "ERROR" in err) == (0, False)
    assert one and other and not one & other and len(one | other) == 20


async def test_policy_of_the_guide_that_learns_leaves_a_failing_member_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cautious.py").write_text(GUIDE["cautious.py"])
    on_path(monkeypatch, tmp_path)

    async def fail(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")

    async with (
        Member() as one,
        Member(fail, host="127.0.0.2", port=one.address.port) as other,
        serving(one, others=[other], policy="cautious:Cautious") as serve,
    ):
        await both_up(serve)
        async with serve.client() as client:
            statuses = [(await ask(client)).split()[1] for _ in range(40)]
        assert (await serve.stop())[0] == 0
    # Each draw before the first failure has even odds; a busy machine may take longer than the five seconds.
    assert 1 <= statuses.count(b"500") <= 4


async def test_hooks_of_the_guide_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys.py").write_text(GUIDE["keys.py"])
    on_path(monkeypatch, tmp_path)
    monkeypatch.setenv("API_KEYS", "s3cret=blue,t0ken=red")
    async with Member() as member, serving(member, hooks="keys:ApiKeys") as serve:
        await serve.logged("was joining and is up: ")
        async with serve.client() as client:
            for key in ("s3cret", "t0ken"):
                head = await ask(client, f"X-Api-Key: {key}", "X-Tenant: forged", "Connection: x-tenant")
                assert f"x-served-by: {member.address}\r\n".encode() in head
            for fields in ([], ["X-Api-Key: guessed"]):
                head = await ask(client, *fields)
                assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
                assert b"\r\nx-balancer-error: no_api_key\r\n" in head
                assert b"\r\nwww-authenticate: ApiKey\r\n" in head
        assert (await serve.stop())[0] == 0
    (received,) = member.received
    assert b"x-api-key" not in received
    assert received.count(b"x-tenant: ") == 2
    assert received.index(b"x-tenant: blue\r\n") < received.index(b"x-tenant: red\r\n")


async def test_ring_of_the_guide_keeps_tenants_together_but_for_the_status(
    tmp_path: Path, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ring.py").write_text(GUIDE["ring.py"])
    on_path(monkeypatch, tmp_path)
    async with serving(members[0], others=members[1:], policy="ring:TenantRing") as serve:
        await both_up(serve)
        one, other = await tenants_at(serve, members, range(20))
        async with serve.client() as client:
            for _ in range(4):
                await ask(client, "X-Tenant: t0", path="/status")
        status, _, err = await serve.stop()
    assert (status, "ERROR" in err) == (0, False)
    assert one and other and not one & other and len(one | other) == 20
    assert [b"".join(it.received).count(b"GET /status ") for it in members] == [2, 2]


BROKEN = [
    ("policy", "tenant:TenantAffinity", "there is no module tenant among what is installed and on PYTHONPATH"),
    (
        "policy",
        "tenants:TenantAfinity",
        "the module tenants has no attribute TenantAfinity; did you mean TenantAffinity?",
    ),
    ("hooks", "keys:ApiKeys", "keys:ApiKeys raised KeyError: 'API_KEYS' (/plugins/keys.py, line 14)"),
    ("hooks", "tenants:TenantAffinity", "tenants:TenantAffinity makes an object of type TenantAffinity, not one of "),
    (
        "policy",
        "tenant_afinity",
        "it takes round_robin, least_requests, least_latency, random, hash, the name of an entry point in the ",
    ),
]


@pytest.mark.parametrize(("setting", "name", "words"), BROKEN, ids=[it[1] for it in BROKEN])
@pytest.mark.parametrize("command", ["serve", "check"])
async def test_broken_plug_in_stops_the_start_with_one_clear_line(
    command: str,
    setting: str,
    name: str,
    words: str,
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "keys.py").write_text(GUIDE["keys.py"])
    on_path(monkeypatch, installed, tmp_path)
    status, out, err = await run(command, **{setting: name})
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    line = f"BALANCER_{setting.upper()}={name!r} cannot be used: {words}"
    assert err.replace(str(tmp_path), "/plugins").startswith(line)
    if name == "tenant_afinity":
        assert err.endswith("; entry points that are installed: tenant_affinity\n")


def test_guide_shows_lines_as_they_are() -> None:
    shown = next(it for it in guide.blocks("guides/plugins.md") if it.startswith("BALANCER_POLICY='tenant:"))
    expected = [f"BALANCER_{setting.upper()}={name!r} cannot be used: {words}" for setting, name, words in BROKEN[:3]]
    assert shown.splitlines() == expected


async def test_check_says_nothing_of_plug_ins_that_work(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, installed)
    status, out, err = await run("check", policy="tenant_affinity", alias="nobody.invalid")
    assert (status, err) == (1, "")  # Nobody answers for the alias.
    assert "BALANCER_POLICY=tenant_affinity\n" in out


async def test_plug_ins_that_raise_later_are_logged_once_and_requests_go_on(
    tmp_path: Path, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising.py").write_text(RAISING)
    on_path(monkeypatch, tmp_path)
    plug_ins = {"policy": "raising:Policy", "hooks": "raising:Raising"}
    async with serving(members[0], others=members[1:], **plug_ins) as serve:
        await both_up(serve)
        async with serve.client() as client:
            for number in range(20):
                head = await ask(client, path=f"/{number % 2}" if number else "/fine")
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        status, _, err = await serve.stop()
    assert status == 0
    assert [b"".join(it.received).count(b"GET ") for it in members] == [10, 10]
    assert b"x-half" not in b"".join(members[0].received)
    said = [line for line in err.splitlines() if " ERROR " in line]
    # The two paths make one kind: the same exception in the same place.
    assert len(said) == 2
    assert "on_request of raising:Raising raised LookupError: nobody knows (" in said[0]
    assert "the policy raising:Policy raised KeyError: '/1' (" in said[1]
    assert f"({tmp_path / 'raising.py'}, line 9); members take turns" in said[1]


async def test_program_gives_them_as_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "s3cret=blue")
    names: dict[str, object] = {"settings": Settings(), "__name__": "guide"}
    for block in (GUIDE["tenants.py"], GUIDE["keys.py"]):
        exec(block, names)
    (program,) = [it for it in guide.blocks("guides/plugins.md") if it.startswith("from balancer.loadbalancer import")]
    exec(program, names)
    balancer = names["balancer"]
    assert isinstance(balancer, LoadBalancer)
    assert isinstance(balancer.dispatcher, HookedDispatcher)


def test_guide_shows_what_is_said_of_objects() -> None:
    names: dict[str, Any] = {"__name__": "tenants"}
    exec(GUIDE["tenants.py"], names)

    async def on_request(self: Hooks, request: HookRequest) -> None: ...

    guard = type("Guard", (Hooks,), {"__module__": "keys", "on_request": on_request})
    with pytest.raises(SettingsError) as caught:
        LoadBalancer("apps", resolver="127.0.0.1", policy=names["TenantAffinity"], hooks=[guard()])
    shown = next(it for it in guide.blocks("guides/plugins.md") if it.startswith("policy=<class"))
    assert shown.splitlines() == caught.value.problems


async def both_up(serve: Serving) -> None:
    for _ in range(2):
        await serve.logged(" up: ")
