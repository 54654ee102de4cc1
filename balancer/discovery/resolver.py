"""Resolves the alias: a query for each record type, through the system's search list where there is one.

As for other programs, the hosts file goes before DNS, unless BALANCER_RESOLVER names a server or the alias ends with a
dot. An alias that is an address is its own answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import dns.exception
import dns.name
import dns.rcode
import dns.rdatatype

from balancer.config.display import variable
from balancer.config.parsers import is_address
from balancer.config.settings import Settings, SettingsError
from balancer.discovery.container_names import ContainerNames
from balancer.discovery.dns_client import EDNS_PAYLOAD, ask
from balancer.discovery.dns_message import Reply, Service, unpack
from balancer.discovery.dual_stack import DualStack
from balancer.discovery.hosts_file import HostsFile
from balancer.discovery.loop import Resolve
from balancer.discovery.search_list import SearchList, candidates
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.discovery.srv_targets import Hosts, SrvTargets
from balancer.types import Address, Clock

log = logging.getLogger(__name__)

EMPTY_RCODES = frozenset({dns.rcode.NXDOMAIN, dns.rcode.NOERROR})
# Answers after which the next name server gets the query, as from the system's own resolver.
NO_ANSWER_RCODES = frozenset({dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP})

# Docker's DNS in a container. It has aliases as they are, whatever search list comes from the host. A query with a
# domain behind it would only go on to the host's name servers, which may take seconds.
DOCKER_DNS = "127.0.0.11"

RESOLV_CONF = Path("/etc/resolv.conf")


class ResolverConfig(NamedTuple):
    """Resolution of names on a system: name servers, and the search list with its ``ndots`` (resolv.conf(5))."""

    servers: list[Address]
    search: Sequence[str] = ()
    ndots: int = 1


def make_resolver(settings: Settings, clock: Clock = time.monotonic) -> Resolve:
    """Return what resolves the alias. Raises SettingsError where it cannot be resolved by these settings."""
    if not is_address(settings.alias):
        return DnsResolver(settings, clock)
    if settings.dns_record == "srv":
        words = f"{variable('dns_record')}=srv: an address has no SRV records"
        raise SettingsError([f"{variable('alias')}={settings.alias!r} cannot be used with {words}"])
    record = "AAAA" if ":" in settings.alias else "A"
    endpoint = Endpoint(Address(settings.alias, settings.upstream_port))
    answer = Answer(record, Outcome.FOUND, frozenset({endpoint}), source="the alias is an address")

    async def resolve() -> Snapshot:
        return Snapshot((answer,), clock())

    return resolve


class DnsResolver:
    """Resolves the alias: a call sends a query for each record type and returns the answers as a snapshot.

    With the system's name servers, its hosts file and its search list apply too: see ``discovery.search_list``.
    ``system``, ``hosts``: in place of this system's own.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = time.monotonic,
        system: ResolverConfig | None = None,
        hosts: HostsFile | None = None,
    ) -> None:
        self._alias = settings.alias
        self._hosts_file = None if settings.resolver else hosts or HostsFile()
        config = ResolverConfig([settings.resolver]) if settings.resolver else system or read_system()
        self._servers = config.servers
        self._names = [dns.name.from_text(name) for name in candidates(settings.alias, config.search, config.ndots)]
        self._search = SearchList(len(self._names))
        self._port = settings.upstream_port
        self._records = settings.dns_record.upper().split("+")
        self._dual_stack: DualStack | None = None
        if len(self._records) == 2 and any(server.host == DOCKER_DNS for server in self._servers):
            self._dual_stack = DualStack(ContainerNames(self._servers).find, clock)
        self._clock = clock
        # Record types whose last answer did not fit into UDP: the next query goes over TCP.
        self._large: set[str] = set()
        # The last answer of each record type, by its bytes on the wire: the same again costs next to nothing.
        self._last: dict[str, tuple[dict[bytes, Endpoint], frozenset[Endpoint]]] = {}
        self._last_services: tuple[frozenset[Service], dict[bytes, Hosts], frozenset[Endpoint]] | None = None
        self._targets = SrvTargets(self._hosts)

    async def __call__(self) -> Snapshot:
        """Query DNS for one round."""
        asked = self._clock()
        if self._hosts_file and (known := self._from_hosts_file(self._hosts_file)):
            return Snapshot(known, asked)
        if len(self._names) == 1:
            return Snapshot(await self._ask_all(self._names[0]), self._clock(), asked=asked)
        answers: dict[int, tuple[Answer, ...]] = {}
        for number in self._search.begin():
            answers[number] = found = await self._ask_all(self._names[number])
            outcome = _overall(found)
            self._search.on_outcome(number, outcome)
            if outcome is Outcome.FOUND:
                return Snapshot(found, self._clock(), self._names[number].to_text(), asked)
        result = answers.get(self._search.in_use) or found
        if not self._search.is_empty():
            # Members may be there under another name.
            result = tuple(replace(answer, outcome=Outcome.UNKNOWN) for answer in result)
        return Snapshot(result, self._clock(), asked=asked)

    def _from_hosts_file(self, hosts_file: HostsFile) -> tuple[Answer, ...]:
        """Return the answers of the hosts file, or () if it has no address of the families asked for."""
        hosts = hosts_file.addresses(self._alias)
        if not hosts or "SRV" in self._records:
            return ()
        answers = []
        for record in self._records:
            family = [host for host in hosts if (":" in host) == (record == "AAAA")]
            endpoints = frozenset(Endpoint(Address(host, self._port)) for host in family)
            outcome = Outcome.FOUND if endpoints else Outcome.EMPTY
            answers.append(Answer(record, outcome, endpoints, source=str(hosts_file)))
        return tuple(answers) if any(answer.endpoints for answer in answers) else ()

    async def _ask_all(self, name: dns.name.Name) -> tuple[Answer, ...]:
        answers = tuple(await asyncio.gather(*(self._ask(name, record) for record in self._records)))
        return await self._dual_stack.rank(answers) if self._dual_stack else answers

    async def _ask(self, name: dns.name.Name, record: str) -> Answer:
        try:
            reply = await self._query(name, record)
            endpoints = await (self._services(reply) if record == "SRV" else self._addresses(reply, record))
        except TimeoutError:
            return Answer(record, Outcome.UNKNOWN, rcode="timeout")
        except (dns.exception.DNSException, OSError) as error:
            return Answer(record, Outcome.UNKNOWN, rcode=str(error) or type(error).__name__)
        if endpoints:
            outcome = Outcome.FOUND
        elif reply.rcode in EMPTY_RCODES:
            outcome = Outcome.EMPTY
        else:
            outcome = Outcome.UNKNOWN
        return Answer(record, outcome, endpoints, dns.rcode.to_text(dns.rcode.Rcode(reply.rcode)), reply.over_tcp)

    async def _query(self, name: dns.name.Name, record: str) -> Reply:
        """Return the reply of the first server with an answer, else the last one. Raises the last error without any."""
        error: Exception = OSError("no name server to ask")
        last: Reply | None = None
        for server in self._servers:
            try:
                reply = await ask(server, name, record, by_tcp=record in self._large)
            except (dns.exception.DNSException, OSError) as failure:
                error = failure
                self._large.discard(record)
            else:
                if reply.over_tcp and len(reply.wire) > EDNS_PAYLOAD:
                    self._large.add(record)
                else:
                    self._large.discard(record)
                if reply.rcode not in NO_ANSWER_RCODES:
                    return reply
                last = reply
        if last is None:
            raise error
        return last

    async def _addresses(self, reply: Reply, record: str) -> frozenset[Endpoint]:
        found = reply.packed(dns.rdatatype.from_text(record))
        known, endpoints = self._last.get(record, ({}, frozenset()))
        if known.keys() != set(found):
            places = {packed: known.get(packed) or Endpoint(Address(unpack(packed), self._port)) for packed in found}
            endpoints = frozenset(places.values())
            self._last[record] = places, endpoints
        return endpoints  # Further on, the very same set counts as unchanged.

    async def _services(self, reply: Reply) -> frozenset[Endpoint]:
        found, glue = reply.services()
        services = frozenset(found)
        hosts = await self._targets.resolve({service.target for service in services}, glue)
        if self._last_services and self._last_services[:2] == (services, hosts):
            return self._last_services[2]
        endpoints = frozenset(
            Endpoint(Address(host, service.port), service.priority, service.weight)
            for service in services
            for host in hosts.get(service.target, ())
        )
        self._last_services = services, hosts, endpoints
        return endpoints

    async def _hosts(self, target: dns.name.Name) -> Hosts:
        """Return the addresses of an SRV target. Raises OSError where the server gives no answer."""
        for record in (dns.rdatatype.A, dns.rdatatype.AAAA):
            reply = await self._query(target, record.name)
            if reply.rcode not in EMPTY_RCODES:
                raise OSError(f"{target}: {dns.rcode.to_text(dns.rcode.Rcode(reply.rcode))}")
            if found := reply.packed(record):
                return tuple(sorted(map(unpack, found)))
        return ()


def read_system(path: Path | None = None) -> ResolverConfig:
    """Return the configuration in resolv.conf. Raises SettingsError if it has no name server.

    Docker's DNS has no search list, and neither has a system with ``ndots:0``, which Docker sets.
    """
    import dns.resolver  # It imports all of dnspython, and httpx2 where that is installed.

    resolver = dns.resolver.Resolver(configure=False)
    try:
        resolver.read_resolv_conf(str(path or RESOLV_CONF))
    except dns.resolver.NoResolverConfiguration as error:
        raise SettingsError(
            [f"BALANCER_RESOLVER is not set and the system has no name server ({error}): it takes ip[:port]"]
        ) from error
    servers = [Address(str(server), resolver.port) for server in resolver.nameservers]
    ndots = 1 if resolver.ndots is None else resolver.ndots
    if not ndots or any(server.host == DOCKER_DNS for server in servers):
        return ResolverConfig(servers)
    return ResolverConfig(servers, [domain.to_text() for domain in resolver.search], ndots)


def system_nameservers() -> list[Address]:
    """Return the name servers of this system (in a container 127.0.0.11). Raises SettingsError if it has none."""
    return read_system().servers


def _overall(answers: Sequence[Answer]) -> Outcome:
    """Return the outcome for a name: a record type without addresses takes nothing from the others."""
    outcomes = {answer.outcome for answer in answers}
    return next(outcome for outcome in (Outcome.FOUND, Outcome.UNKNOWN, Outcome.EMPTY) if outcome in outcomes)
