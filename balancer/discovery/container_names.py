"""Names of containers, by PTR queries off the path of requests. Docker's DNS answers ``name.network``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence

import dns.exception
import dns.name
import dns.rdatatype
import dns.reversename

from balancer.discovery.dns_client import ask
from balancer.discovery.dns_message import Reply
from balancer.types import Address

Ask = Callable[[Address, dns.name.Name, str], Awaitable[Reply]]

# Queries that may be under way: a name is not urgent, and 255 members may join together.
MAX_QUERIES = 8


class ContainerNames:
    """Looks names up: the first server that has one decides; ``close`` ends queries under way."""

    def __init__(self, servers: Sequence[Address], ask: Ask = ask) -> None:
        self._servers = servers
        self._ask = ask
        self._turn = asyncio.Semaphore(MAX_QUERIES)
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}

    def look_up(self, member: Hashable, host: str, found: Callable[[str], None], wanted: Callable[[], bool]) -> None:
        """Call ``found`` with the name of the member at the address ``host``, if DNS has one.

        ``wanted``: returns whether the name is still needed once its turn has come.
        An earlier query for the member is cancelled: its answer may be of an earlier container.
        """
        if self._servers:
            if earlier := self._tasks.get(member):
                earlier.cancel()
            self._tasks[member] = asyncio.get_running_loop().create_task(self._look_up(member, host, found, wanted))

    def is_looking_up(self, member: Hashable) -> bool:
        """Whether the member's name is being looked up."""
        return member in self._tasks

    async def find(self, host: str) -> str:
        """Return the name of the container at an address; "" where no server has one, or answers."""
        try:
            reverse = dns.reversename.from_address(host)
        except dns.exception.DNSException:
            return ""  # Not an address, but a name already.
        for server in self._servers:
            if name := await self._query(server, reverse):
                return name
        return ""

    async def close(self) -> None:
        """Cancel all queries."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(
        self, member: Hashable, host: str, found: Callable[[str], None], wanted: Callable[[], bool]
    ) -> None:
        try:
            async with self._turn:
                name = await self.find(host) if wanted() else ""
        finally:
            if self._tasks.get(member) is asyncio.current_task():
                del self._tasks[member]
        if name and wanted():
            found(name)

    async def _query(self, server: Address, reverse: dns.name.Name) -> str:
        try:
            message = (await self._ask(server, reverse, "PTR")).message()
        except (dns.exception.DNSException, OSError):  # A time-out is an OSError.
            return ""
        for rrset in message.answer:
            if rrset.rdtype == dns.rdatatype.PTR:
                return display_name(rrset[0].target)
        return ""


def display_name(name: dns.name.Name) -> str:
    """Return ``shop-worker-1`` for ``shop-worker-1.shop_backend.``, the container's part; longer names stay whole."""
    text = name.to_text(omit_final_dot=True)
    first, _, rest = text.partition(".")
    return text if "." in rest else first
