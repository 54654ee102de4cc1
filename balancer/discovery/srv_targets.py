"""Addresses of the names that SRV records point at, where the answer does not bring them along.

Each name takes a query, and there may be thousands. Rules:
* MAX_QUERIES are under way, however many rounds overlap; no name has two at a time.
* A name that was never resolved is queried at once. The others take turns, REFRESHED of them a round. Up to that many
  are queried in every round, and of more each one every so many rounds.
* A query that fails leaves the last addresses of its name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping

import dns.exception
import dns.name

MAX_QUERIES = 32
REFRESHED = 64

Hosts = tuple[str, ...]
# Returns the addresses of a name. Raises OSError or DNSException where there is no answer.
Query = Callable[[dns.name.Name], Awaitable[Hosts]]


class SrvTargets:
    """Addresses by name; names are as on the wire, in lower case and without compression."""

    def __init__(self, query: Query) -> None:
        self._query = query
        # In the order of their queries, the latest last.
        self._known: dict[bytes, Hosts] = {}
        self._waiting: deque[bytes] = deque()
        self._pending: dict[bytes, asyncio.Future[None]] = {}
        self._workers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure = ""

    async def resolve(self, wanted: Collection[bytes], glue: Mapping[bytes, Hosts]) -> dict[bytes, Hosts]:
        """Return the addresses of each name, those in ``glue`` as they are.

        Names that cannot be resolved, and never could, are left out. Raises OSError if that leaves no address.
        """
        if self._loop is not asyncio.get_running_loop():
            # What another event loop had under way ended with it.
            self._loop, self._workers = asyncio.get_running_loop(), 0
            self._waiting.clear()
            self._pending.clear()
        names = [name for name in wanted if name not in glue]
        new = [name for name in names if name not in self._known]
        missing = frozenset(names)
        turns = [name for name in self._known if name in missing][: max(0, REFRESHED - len(new))]
        if names:
            await self._ask(new + turns)
        self._known = {name: hosts for name, hosts in self._known.items() if name in missing}
        found = {**{name: self._known[name] for name in names if name in self._known}, **glue}
        hosts = {name: found[name] for name in wanted if name in found}
        if len(hosts) < len(wanted) and not any(hosts.values()):
            raise OSError(self._failure)
        return hosts

    async def _ask(self, names: Collection[bytes]) -> None:
        """Query DNS for names until each has an answer, or has failed."""
        for name in names:
            if name not in self._pending:
                self._pending[name] = asyncio.get_running_loop().create_future()
                self._waiting.append(name)
        pending = [self._pending[name] for name in names]
        room = min(MAX_QUERIES - self._workers, len(self._waiting))
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
                self._pending.pop(name).set_result(None)
