"""The names of containers, by PTR queries off the path of requests. Docker's DNS answers ``name.network``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import dns.exception
import dns.name
import dns.rdatatype
import dns.reversename

from balancer.dnsquery import Reply, ask
from balancer.membership import Member
from balancer.settings import Address

Ask = Callable[[Address, dns.name.Name, str], Awaitable[Reply]]

# Queries that may be under way at a time: a name is no hurry, and 255 members may join at once.
AT_A_TIME = 8
# Seconds before each attempt. The first comes at once, and a name that is not known after the last never will be.
ATTEMPTS = (0.0, 2.0, 10.0)


class Names:
    """Looks names up: the first server that knows one has the word; ``close`` ends what is under way."""

    def __init__(self, servers: Sequence[Address], ask: Ask = ask, attempts: Sequence[float] = ATTEMPTS) -> None:
        self._servers = servers
        self._ask = ask
        self._attempts = attempts
        self._turn = asyncio.Semaphore(AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    def look_up(self, member: Member, found: Callable[[str], None], wanted: Callable[[], bool]) -> None:
        """Call ``found`` with the member's name once it is known, if ever. ``wanted``: whether to go on asking."""
        task = asyncio.get_running_loop().create_task(self._look_up(member.address.host, found, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, host: str, found: Callable[[str], None], wanted: Callable[[], bool]) -> None:
        try:
            reverse = dns.reversename.from_address(host)
        except dns.exception.DNSException:
            return  # Not an address, but a name already.
        for delay in self._attempts:
            await asyncio.sleep(delay)
            if not wanted():
                return
            for server in self._servers:
                async with self._turn:
                    if name := await self._query(server, reverse):
                        found(name)
                        return

    async def _query(self, server: Address, reverse: dns.name.Name) -> str:
        try:
            message = (await self._ask(server, reverse, "PTR")).message()
        except (dns.exception.DNSException, OSError):  # A time-out is an OSError.
            return ""
        for rrset in message.answer:
            if rrset.rdtype == dns.rdatatype.PTR:
                return shown(rrset[0].target)
        return ""


def shown(name: dns.name.Name) -> str:
    """``shop-worker-1.shop_backend.`` is the container ``shop-worker-1``; longer names are shown whole."""
    text = name.to_text(omit_final_dot=True)
    first, _, rest = text.partition(".")
    return text if "." in rest else first
