"""The addresses of the names that SRV records point at, where the answer does not bring them along.

That takes a query for each name, and there may be thousands. Rules:
* QUERIES_AT_ONCE are under way at most, however many rounds overlap; no name is asked for twice at a time.
* A name that was never resolved is asked for at once. The others take turns, REFRESHED of them a round: up to that many
  are asked for in every round, and of more each one every so many rounds.
* A query that fails leaves what is known of its name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping

import dns.exception
import dns.name

QUERIES_AT_ONCE = 32
REFRESHED = 64

Hosts = tuple[str, ...]
# Gives the addresses of a name. Raises OSError or DNSException where that cannot be said.
Query = Callable[[dns.name.Name], Awaitable[Hosts]]


class SrvTargets:
    """Remembers addresses by name; names are as on the wire, in lower case and without compression."""

    def __init__(self, query: Query) -> None:
        self._query = query
        # In the order in which they were asked for: those asked for last come last.
        self._known: dict[bytes, Hosts] = {}
        self._waiting: deque[bytes] = deque()
        self._asked: dict[bytes, asyncio.Future[None]] = {}
        self._workers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure = ""

    async def resolve(self, wanted: Collection[bytes], given: Mapping[bytes, Hosts]) -> dict[bytes, Hosts]:
        """The addresses of each name, those that are ``given`` as they are.

        ContainerNames that cannot be resolved, and never could, are left out. Raises OSError if that leaves no address.
        """
        if self._loop is not asyncio.get_running_loop():
            # What another event loop had under way ended with it.
            self._loop, self._workers = asyncio.get_running_loop(), 0
            self._waiting.clear()
            self._asked.clear()
        names = [it for it in wanted if it not in given]
        new = [it for it in names if it not in self._known]
        missing = frozenset(names)
        turns = [it for it in self._known if it in missing][: max(0, REFRESHED - len(new))]
        if names:
            await self._ask(new + turns)
        self._known = {name: hosts for name, hosts in self._known.items() if name in missing}
        found = {**{it: self._known[it] for it in names if it in self._known}, **given}
        hosts = {it: found[it] for it in wanted if it in found}
        if len(hosts) < len(wanted) and not any(hosts.values()):
            raise OSError(self._failure)
        return hosts

    async def _ask(self, names: Collection[bytes]) -> None:
        """Until each has an answer, or failed."""
        for name in names:
            if name not in self._asked:
                self._asked[name] = asyncio.get_running_loop().create_future()
                self._waiting.append(name)
        pending = [self._asked[it] for it in names]
        room = min(QUERIES_AT_ONCE - self._workers, len(self._waiting))
        self._workers += room
        try:
            await asyncio.gather(*(self._work() for _ in range(room)))
        finally:
            self._workers -= room
        if pending:
            await asyncio.wait(pending)

    async def _work(self) -> None:
        while self._waiting:
            name = self._waiting.popleft()
            try:
                hosts = await self._query(dns.name.from_wire(name, 0)[0])
                self._known.pop(name, None)
                self._known[name] = hosts
            except (dns.exception.DNSException, OSError) as failure:
                self._failure = str(failure) or "timeout"
                if name in self._known:
                    self._known[name] = self._known.pop(name)
            finally:
                self._asked.pop(name).set_result(None)
