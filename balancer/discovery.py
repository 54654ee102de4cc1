"""Asks DNS who is behind the alias, all the time, off the path of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from balancer.dispatch import Clock
from balancer.dnsquery import EDNS_PAYLOAD, Reply, ask
from balancer.health import URGENT_INTERVAL
from balancer.membership import Answer, Endpoint, Outcome, Snapshot
from balancer.search import Search, candidates
from balancer.settings import Address, Settings, SettingsError

log = logging.getLogger(__name__)

NOBODY_RCODES = frozenset({dns.rcode.NXDOMAIN, dns.rcode.NOERROR})

# Docker's DNS in a container. Aliases are known there as they are, whatever search list comes from the host: a query
# with a domain behind it would only go on to the host's name servers, which may take seconds to say no.
DOCKER_DNS = "127.0.0.11"

RESOLV_CONF = Path("/etc/resolv.conf")

Resolve = Callable[[], Awaitable[Snapshot]]


class System(NamedTuple):
    """How names are resolved here: the name servers, and the search list with its ``ndots`` (resolv.conf(5))."""

    servers: list[Address]
    search: Sequence[str] = ()
    ndots: int = 1


class DnsResolver:
    """Resolves the alias: a call asks once for each record type and returns the answers as a snapshot.

    Where the name server is the system's, so is the search list: then ``balancer.search`` says which name to ask for.
    ``system``: in place of this system's.
    """

    def __init__(self, settings: Settings, clock: Clock = time.monotonic, system: System | None = None) -> None:
        how = System([settings.resolver]) if settings.resolver else system or read_system()
        self._servers = how.servers
        self._names = [dns.name.from_text(it) for it in candidates(settings.alias, how.search, how.ndots)]
        self._search = Search(len(self._names))
        self._port = settings.upstream_port
        self._records = settings.record.upper().split("+")
        self._clock = clock
        # The record types whose last answer did not fit into UDP: ask for the next over TCP at once.
        self._large: set[str] = set()
        self._last: dict[str, tuple[list[str], frozenset[Endpoint]]] = {}

    async def __call__(self) -> Snapshot:
        if len(self._names) == 1:
            return Snapshot(await self._ask_all(self._names[0]), self._clock())
        answers: dict[int, tuple[Answer, ...]] = {}
        for number in self._search.begin():
            answers[number] = found = await self._ask_all(self._names[number])
            outcome = _overall(found)
            self._search.heard(number, outcome)
            if outcome is Outcome.FOUND:
                return Snapshot(found, self._clock(), self._names[number].to_text())
        said = answers.get(self._search.in_use) or found
        if not self._search.nobody():
            # Somebody may be there under another name.
            said = tuple(replace(it, outcome=Outcome.UNKNOWN) for it in said)
        return Snapshot(said, self._clock())

    async def _ask_all(self, name: dns.name.Name) -> tuple[Answer, ...]:
        return tuple(await asyncio.gather(*(self._ask(name, it) for it in self._records)))

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
        elif reply.rcode in NOBODY_RCODES:
            outcome = Outcome.NOBODY
        else:
            outcome = Outcome.UNKNOWN
        return Answer(record, outcome, endpoints, dns.rcode.to_text(dns.rcode.Rcode(reply.rcode)), reply.over_tcp)

    async def _query(self, name: dns.name.Name, record: str) -> Reply:
        """The reply of the first server that sends one. Raises the last one's error if none does."""
        error: Exception = OSError("no name server to ask")
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
                return reply
        raise error

    async def _addresses(self, reply: Reply, record: str) -> frozenset[Endpoint]:
        hosts = sorted(reply.addresses(dns.rdatatype.from_text(record)))
        known = self._last.get(record)
        if known and known[0] == hosts:
            return known[1]  # The very same set is recognized as no news further on.
        endpoints = frozenset(Endpoint(Address(host, self._port)) for host in hosts)
        self._last[record] = hosts, endpoints
        return endpoints

    async def _services(self, reply: Reply) -> frozenset[Endpoint]:
        message = reply.message()
        services = list(_records(message.answer, "SRV"))
        targets = {data.target for data in services}
        hosts = dict(zip(targets, await asyncio.gather(*(self._hosts(it, message) for it in targets)), strict=True))
        return frozenset(
            Endpoint(Address(host, data.port), data.priority, data.weight)
            for data in services
            for host in hosts[data.target]
        )

    async def _hosts(self, target: dns.name.Name, message: dns.message.Message) -> list[str]:
        """The addresses of an SRV target: from the additional section, else by a query of their own."""
        given = [
            data.address
            for record in ("A", "AAAA")
            for data in _records((it for it in message.additional if it.name == target), record)
        ]
        if given:
            return given
        for record in (dns.rdatatype.A, dns.rdatatype.AAAA):
            reply = await self._query(target, record.name)
            if found := reply.addresses(record):
                return found
            if reply.rcode not in NOBODY_RCODES:
                # Left out, it would be a member that has gone.
                raise OSError(f"{dns.rcode.to_text(dns.rcode.Rcode(reply.rcode))} for {target}")
        return []


def read_system(path: Path | None = None) -> System:
    """What resolv.conf says. Raises SettingsError if it has no name server.

    Docker's DNS has no search list, nor has anybody who says ``ndots:0``, as Docker does.
    """
    resolver = dns.resolver.Resolver(configure=False)
    try:
        resolver.read_resolv_conf(str(path or RESOLV_CONF))
    except dns.resolver.NoResolverConfiguration as error:
        raise SettingsError(
            [f"BALANCER_RESOLVER is not set and the system has no name server ({error}): it takes ip[:port]"]
        ) from error
    servers = [Address(str(server), resolver.port) for server in resolver.nameservers]
    ndots = 1 if resolver.ndots is None else resolver.ndots
    if not ndots or any(it.host == DOCKER_DNS for it in servers):
        return System(servers)
    return System(servers, [it.to_text() for it in resolver.search], ndots)


def system_nameservers() -> list[Address]:
    """The name servers of this system (in a container 127.0.0.11). Raises SettingsError if it has none."""
    return read_system().servers


def _overall(answers: Sequence[Answer]) -> Outcome:
    """What a name has said in all: a record type that it has nothing of does not take anything from the others."""
    outcomes = {it.outcome for it in answers}
    return next(it for it in (Outcome.FOUND, Outcome.UNKNOWN, Outcome.NOBODY) if it in outcomes)


def _records(section: Iterable[Any], record: str) -> Iterable[Any]:
    wanted = dns.rdatatype.from_text(record)
    return (data for rrset in section if rrset.rdtype == wanted for data in rrset)


class Discovery:
    """Resolves every ``interval`` seconds, and every URGENT_INTERVAL while ``urgent()``.

    A query that takes long does not keep the next from being sent, so that one slow answer cannot
    hide a new member; an answer that is older than one that was delivered already is dropped.
    """

    def __init__(
        self, resolve: Resolve, interval: float, urgent: Callable[[], bool], deliver: Callable[[Snapshot], None]
    ) -> None:
        self._resolve = resolve
        self._interval = interval
        self._urgent = urgent
        self._deliver = deliver
        self._asked = 0
        self._delivered = 0
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Nobody is available any more: do not sleep until the next regular round."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as queries:
            while True:
                self._asked += 1
                queries.create_task(self._round(self._asked))
                self._hurry.clear()
                await asyncio.sleep(min(URGENT_INTERVAL, self._interval))
                if not self._urgent():
                    try:
                        async with asyncio.timeout(self._interval - min(URGENT_INTERVAL, self._interval)):
                            await self._hurry.wait()
                    except TimeoutError:
                        pass

    async def _round(self, number: int) -> None:
        try:
            snapshot = await self._resolve()
        except Exception:
            log.exception("a resolver raised; what is known stays")
            return
        if number > self._delivered:
            self._delivered = number
            self._deliver(snapshot)
