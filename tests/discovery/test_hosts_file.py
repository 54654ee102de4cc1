"""Aliases that DNS does not know: names of the hosts file, and addresses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from balancer.config.settings import Settings, SettingsError
from balancer.demo.dns_server import DnsServer, Zone
from balancer.discovery.hosts_file import HostsFile, parse
from balancer.discovery.resolver import DnsResolver, ResolverConfig, make_resolver
from balancer.discovery.snapshot import Outcome, Snapshot
from balancer.loadbalancer import LoadBalancer
from balancer.members.membership import Membership
from tests.support.messages import LAST_GET
from tests.support.mounted import served
from tests.support.wire import Connection, Member, balance, eventually

FILE = """\
127.0.0.1\tlocalhost
::1 localhost ip6-localhost # both families
172.17.0.1      host.docker.internal
10.0.0.1 Legacy legacy.example
10.0.0.2 legacy
10.0.0.2 legacy again
fd00:0::2 legacy
fe80::1%eth0 legacy
# 10.0.0.9 legacy
nonsense legacy

10.0.0.3
192.168.0.5 box box.example
"""


def addresses(snapshot: Snapshot) -> dict[str, set[str]]:
    return {answer.record: {it.address.host for it in answer.endpoints} for answer in snapshot.answers}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        ("host.docker.internal", ["172.17.0.1"]),
        ("LEGACY", ["10.0.0.1", "10.0.0.2", "fd00::2"]),
        ("legacy.example", ["10.0.0.1"]),
        ("apps", []),
        # The name of this host, and what is below it.
        ("box", []),
        ("box.example", []),
    ],
)
def test_names_have_the_addresses_of_their_lines(name: str, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(FILE)
    assert HostsFile(path, own="Box").addresses(name) == found


def test_file_that_is_none_has_no_names(tmp_path: Path) -> None:
    assert HostsFile(tmp_path / "hosts").addresses("localhost") == []
    assert parse("\0\xff \x1b 10.0.0.1\n10.0.0.1") == {}


def test_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path, other = tmp_path / "hosts", tmp_path / "other"
    file = HostsFile(path)
    assert file.addresses("legacy") == []
    path.write_text("10.0.0.1 legacy")
    assert file.addresses("legacy") == ["10.0.0.1"]
    path.write_text("10.0.0.1 legacy\n10.0.0.2 legacy")
    assert file.addresses("legacy") == ["10.0.0.1", "10.0.0.2"]
    other.write_text("10.0.0.3 legacy\n10.0.0.4 legacy")
    other.replace(path)
    assert file.addresses("legacy") == ["10.0.0.3", "10.0.0.4"]
    path.unlink()
    assert file.addresses("legacy") == []


class Names:
    """A hosts file, and a DNS server that has other addresses."""

    def __init__(self, folder: Path, server: DnsServer) -> None:
        self.path = folder / "hosts"
        self.path.write_text(FILE)
        self.server = server

    def resolver(self, alias: str, record: str = "a", search: tuple[str, ...] = ()) -> DnsResolver:
        settings = Settings(alias=alias, dns_record=record)
        system = ResolverConfig([self.server.address], search, 2)
        return DnsResolver(settings, system=system, hosts=HostsFile(self.path, own="box"))


@pytest.mark.parametrize(
    ("alias", "record", "found", "queries"),
    [
        ("legacy", "a", {"A": {"10.0.0.1", "10.0.0.2"}}, 0),
        ("legacy", "aaaa", {"AAAA": {"fd00::2"}}, 0),
        ("legacy", "a+aaaa", {"A": {"10.0.0.1", "10.0.0.2"}, "AAAA": {"fd00::2"}}, 0),
        # One of the families is enough, and the other is empty.
        ("host.docker.internal", "a+aaaa", {"A": {"172.17.0.1"}, "AAAA": set()}, 0),
        # Another family alone is as nothing, as for a program that asks for one.
        ("host.docker.internal", "aaaa", {"AAAA": {"fd00::9"}}, 1),
        ("apps", "a", {"A": {"10.9.9.9"}}, 1),
        ("box", "a", {"A": {"10.9.9.9"}}, 1),
        # An absolute name of DNS.
        ("legacy.", "a", {"A": {"10.9.9.9"}}, 1),
        ("legacy", "srv", {"SRV": set()}, 1),
    ],
)
async def test_hosts_file_goes_before_dns(
    alias: str, record: str, found: dict[str, set[str]], queries: int, tmp_path: Path
) -> None:
    zone = Zone()
    for name in ("legacy", "host.docker.internal", "apps", "box"):
        zone.records[name] = [("A", "10.9.9.9"), ("AAAA", "fd00::9")]
    async with DnsServer(zone) as server:
        snapshot = await Names(tmp_path, server).resolver(alias, record)()
        assert addresses(snapshot) == found
        assert server.udp_queries == queries
        source = "NOERROR" if queries else str(tmp_path / "hosts")
        assert all(answer.words == source for answer in snapshot.answers)
        assert source in snapshot.describe()


async def test_name_that_leaves_the_file_is_looked_for_in_dns(tmp_path: Path) -> None:
    async with DnsServer(Zone()) as server:
        names = Names(tmp_path, server)
        resolve = names.resolver("legacy", search=("svc.example.",))
        membership = Membership()
        membership.reconcile(await resolve())
        assert {it.host for it in membership.members} == {"10.0.0.1", "10.0.0.2"}
        names.path.write_text("10.0.0.2 legacy\n10.0.0.7 legacy\n")
        membership.reconcile(await resolve())
        assert {it.host for it in membership.members} == {"10.0.0.2", "10.0.0.7"}
        names.path.write_text("")
        for _ in range(3):
            membership.reconcile(await resolve())
        assert not membership.members


async def test_resolver_of_the_settings_is_asked_and_no_file() -> None:
    zone = Zone()
    zone.records["localhost"] = [("A", "10.0.0.9")]
    async with DnsServer(zone) as server:
        snapshot = await make_resolver(Settings(alias="localhost", resolver=server.address))()
    assert addresses(snapshot) == {"A": {"10.0.0.9"}}


@pytest.mark.parametrize(
    ("alias", "record", "found"),
    [("192.168.144.2", "a", {"A": {"192.168.144.2"}}), ("[FD00:0::2]", "a", {"AAAA": {"fd00::2"}})],
)
async def test_address_is_its_own_answer(alias: str, record: str, found: dict[str, set[str]]) -> None:
    (answer,) = (await make_resolver(Settings.of(alias=alias, dns_record=record))()).answers
    assert {answer.record: {it.address.host for it in answer.endpoints}} == found
    assert (answer.outcome, answer.words) == (Outcome.FOUND, "the alias is an address")


def test_address_has_no_srv_records() -> None:
    words = r"BALANCER_ALIAS='10.0.0.1' cannot be used with BALANCER_DNS_RECORD=srv: an address has no SRV records"
    with pytest.raises(SettingsError, match=words):
        LoadBalancer("10.0.0.1", dns_record="srv")


async def test_requests_reach_a_member_by_its_address_without_any_dns() -> None:
    async with Member() as member:
        pool = LoadBalancer("127.0.0.1", upstream_port=member.address.port)
        async with pool, served(pool) as address:
            await eventually(lambda: pool.available == 1)
            client = Connection(*await asyncio.open_connection(*address))
            await client.send(LAST_GET)
            assert (await client.to_end()).endswith(b"ok")
            client.close()


async def test_request_without_a_host_has_the_address_in_brackets() -> None:
    async with Member() as member, balance(member, alias="fd00::2") as running:
        await running.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert b"\r\nhost: [fd00::2]\r\n" in member.received[0]
