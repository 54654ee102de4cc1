"""The admin listener by a host name or by a network: it is on the balancer's own address there alone."""

from __future__ import annotations

import errno
import socket
from typing import Any

import httpx
import pytest

from balancer.cli.healthcheck import main as healthcheck
from balancer.cli.main import main
from balancer.cli.wait import run as wait
from balancer.config.own_address import is_own, own_address
from balancer.demo.system import free_port
from balancer.process.sockets import CannotListen, listen
from balancer.types import Address
from tests.cli.test_reload import command
from tests.support.processes import serving
from tests.support.wire import Member

# Addresses of nobody (RFC 5737 and RFC 3849).
FOREIGN, FOREIGN_V6 = "198.51.100.7", "2001:db8::7"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the system's resolver has for each name; an unknown one is none."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: str, port: Any, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(families[":" in it], socket.SOCK_STREAM, 6, "", (it, 0)) for it in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", FOREIGN])
def test_ip_address_stays_as_it_is(names: dict[str, list[str]], host: str) -> None:
    assert own_address(Address(host, 9000)) == Address(host, 9000)


@pytest.mark.parametrize(
    ("addresses", "own"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        # As Debian calls a host by default.
        (["127.0.1.1"], "127.0.1.1"),
        # Several balancers share an alias, and DNS names them in any order.
        ([FOREIGN, "127.0.0.3"], "127.0.0.3"),
        ([FOREIGN_V6, "127.0.0.3"], "127.0.0.3"),
    ],
)
def test_name_is_the_address_of_this_machine(names: dict[str, list[str]], addresses: list[str], own: str) -> None:
    names["balancer-admin"] = addresses
    assert own_address(Address("balancer-admin", 9000)) == Address(own, 9000)


def test_name_prefers_ipv4_to_which_published_ports_lead(names: dict[str, list[str]]) -> None:
    if not is_own("::1"):
        pytest.skip("no IPv6 here")
    names["balancer-admin"] = ["::1", "127.0.0.1"]
    assert own_address(Address("balancer-admin", 9000)).host == "127.0.0.1"
    names["balancer-admin"] = ["::1"]
    assert own_address(Address("balancer-admin", 9000)).host == "::1"


@pytest.mark.parametrize(("network", "own"), [("127.0.0.0/8", "127.0.0.1"), ("127.0.0.1/32", "127.0.0.1")])
def test_network_is_the_address_of_this_machine_in_it(network: str, own: str) -> None:
    assert own_address(Address(network, 9000)) == Address(own, 9000)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("198.51.100.0/24", "this machine has no address in that network"),
        ("unknown", "Name or service not known"),
        ("another", f"{FOREIGN}, {FOREIGN_V6} is no address of this machine"),
    ],
)
def test_listener_without_an_own_address_says_why(names: dict[str, list[str]], host: str, reason: str) -> None:
    names["another"] = [FOREIGN, FOREIGN_V6]
    with pytest.raises(CannotListen) as caught:
        listen("BALANCER_ADMIN_BIND", Address(host, 9000))
    assert str(caught.value) == f"BALANCER_ADMIN_BIND={host}:9000 cannot be listened on: {reason}"


def test_start_without_an_own_address_ends_with_one_line(
    names: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", f"--bind=127.0.0.1:{free_port()}", "--admin-bind=unknown:9000"]) == 1
    line = "BALANCER_ADMIN_BIND=unknown:9000 cannot be listened on: Name or service not known\n"
    assert capfd.readouterr().err.endswith(line)


def test_commands_say_that_a_name_has_no_address(
    names: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALANCER_ADMIN_BIND", "unknown:9000")
    assert healthcheck() == 1
    assert "the balancer does not answer: " in capsys.readouterr().err
    assert wait(Address("unknown", 9000), 1, None, 0.0) == 1
    assert "does not answer on unknown:9000: Name or service not known" in "".join(capsys.readouterr())
    assert main(["reload", "--admin-bind=unknown:9000"]) == 1
    assert "the admin listener on unknown:9000 does not answer: " in capsys.readouterr().err


@pytest.mark.parametrize("host", ["localhost", "127.0.0.0/8"])
async def test_admin_listener_by_a_name_or_network_is_that_of_its_address(host: str) -> None:
    """It listens there alone; rules for a listener on loopback hold, and commands and a reload find it."""
    port = free_port()
    async with Member() as member, serving(member, admin=f"{host}:{port}", processes="2") as it:
        await it.logged(f"admin on 127.0.0.1:{port}")
        with pytest.raises(OSError) as refused, socket.socket() as elsewhere:
            elsewhere.connect(("127.0.0.2", port))
        assert refused.value.errno == errno.ECONNREFUSED
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/members", headers={"Host": "evil.example"})).status_code == 403
            assert (await client.get("/members")).status_code == 200
        status, _, err = await command(f"--admin-bind={host}:{port}")
        assert (status, err) == (0, "")
        await it.logged(f"admin on 127.0.0.1:{port}")
        assert (await it.stop())[0] == 0
