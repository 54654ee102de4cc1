"""Asks DNS who is behind the alias, all the time, off the path of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from balancer.dispatch import Clock
from balancer.health import URGENT_INTERVAL
from balancer.membership import Answer, Endpoint, Outcome, Snapshot
from balancer.settings import Address, Settings, SettingsError

log = logging.getLogger(__name__)

# Docker's DNS cuts an answer to the size asked for: without EDNS to 512 bytes, some 24 addresses.
EDNS_PAYLOAD = 4096
# Limit for one query, in seconds: Docker forwards unknown names and may take that long to give up.
QUERY_TIMEOUT = 5.0

NOBODY_RCODES = frozenset({dns.rcode.NXDOMAIN, dns.rcode.NOERROR})

Resolve = Callable[[], Awaitable[Snapshot]]


class DnsResolver:
    """Resolves the alias: a call asks once for each record type and returns the answers as a snapshot."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self._name = dns.name.from_text(settings.alias)
        self._port = settings.upstream_port
        self._records = settings.record.upper().split("+")
        self._servers = [settings.resolver] if settings.resolver else system_nameservers()
        self._clock = clock

    async def __call__(self) -> Snapshot:
        answers = await asyncio.gather(*map(self._ask, self._records))
        return Snapshot(tuple(answers), self._clock())

    async def _ask(self, record: str) -> Answer:
        try:
            message, over_tcp = await self._query(self._name, record)
            endpoints = await self._endpoints(message, record)
        except (dns.exception.DNSException, OSError, EOFError) as error:
            reason = "timeout" if isinstance(error, dns.exception.Timeout) else str(error) or type(error).__name__
            return Answer(record, Outcome.UNKNOWN, rcode=reason)
        rcode = message.rcode()
        if endpoints:
            outcome = Outcome.FOUND
        elif rcode in NOBODY_RCODES:
            outcome = Outcome.NOBODY
        else:
            outcome = Outcome.UNKNOWN
        return Answer(record, outcome, endpoints, dns.rcode.to_text(rcode), over_tcp)

    async def _query(self, name: dns.name.Name, record: str) -> tuple[dns.message.Message, bool]:
        """The response of the first server that sends one, and whether it took TCP."""
        error: Exception = OSError("no name server to ask")
        for server in self._servers:
            query = dns.message.make_query(name, record, use_edns=0, payload=EDNS_PAYLOAD)
            try:
                return await dns.asyncquery.udp_with_fallback(query, server.host, QUERY_TIMEOUT, server.port)
            except (dns.exception.DNSException, OSError, EOFError) as failure:
                error = failure
        raise error

    async def _endpoints(self, message: dns.message.Message, record: str) -> frozenset[Endpoint]:
        if record != "SRV":
            return frozenset(Endpoint(Address(data.address, self._port)) for data in _records(message.answer, record))
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
        for record in ("A", "AAAA"):
            answer, _ = await self._query(target, record)
            if found := [data.address for data in _records(answer.answer, record)]:
                return found
        return []


def system_nameservers() -> list[Address]:
    """The name servers of this system (in a container 127.0.0.11). Raises SettingsError if it has none."""
    try:
        system = dns.resolver.Resolver()
    except dns.resolver.NoResolverConfiguration as error:
        raise SettingsError(
            [f"BALANCER_RESOLVER is not set and the system has no name server ({error}): it takes ip[:port]"]
        ) from error
    return [Address(str(server), system.port) for server in system.nameservers]


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
