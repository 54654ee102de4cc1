"""Asks members whether they can take requests, all the time, off the path of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from random import Random

from balancer.dispatch import Clock
from balancer.errors import OURS
from balancer.health import URGENT_INTERVAL, Event, State, next_probe
from balancer.membership import Member, Membership
from balancer.settings import Address, Settings

# How many probes of a member may be under way. A container is in DNS before its network is set up, and the
# connection that is asked for too early hangs for a second; the next one, asked for a tenth of a second
# later, may be there at once.
OVERLAP = 10

# The finest step in which probes are scheduled, in seconds.
TICK = 0.02

# An event of the member's life, or None where nothing was learnt of it, and words for it.
Verdict = tuple[Event | None, str]
Probe = Callable[[Address], Awaitable[Verdict]]


def make_probe(settings: Settings) -> Probe:
    """A probe as the settings want it: HTTP where HEALTH_PATH is set, else a TCP connect."""
    path, limit = settings.health_path, settings.connect_timeout

    async def probe(address: Address) -> Verdict:
        try:
            async with asyncio.timeout(limit):
                reader, writer = await asyncio.open_connection(address.host, address.port)
        except (OSError, TimeoutError) as error:
            if error.errno in OURS:
                return None, _words(error)
            refused = isinstance(error, ConnectionRefusedError)
            return (Event.REFUSED if refused else Event.UNREACHABLE), _words(error)
        try:
            if path is None:
                return Event.PROBE_OK, "accepts connections"
            async with asyncio.timeout(limit):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                return _judge(path, await reader.readline())
        except (OSError, TimeoutError, ValueError) as error:
            return Event.PROBE_FAILED, f"GET {path}: {_words(error)}"
        finally:
            writer.transport.abort()  # close now; nothing is left to flush

    return probe


def _judge(path: str, status_line: bytes) -> Verdict:
    """What a member's answer to ``GET path`` says: 2xx is up, 503 is draining, the rest is a failure."""
    parts = status_line.split(maxsplit=2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return Event.PROBE_FAILED, f"GET {path}: not an HTTP answer"
    status = int(parts[1])
    words = f"GET {path}: {status}"
    if 200 <= status <= 299:
        return Event.PROBE_OK, words
    return (Event.PROBE_DRAINING if status == 503 else Event.PROBE_FAILED), words


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return str(error) or type(error).__name__


class Prober:
    """Probes each member when it is due. ``asks_path``: a probe can tell more than that connections are accepted."""

    def __init__(
        self, probe: Probe, membership: Membership, interval: float, clock: Clock, rng: Random, asks_path: bool
    ) -> None:
        self._probe = probe
        self._membership = membership
        self._interval = interval
        self._clock = clock
        self._rng = rng
        self._asks_path = asks_path
        self._hurry = asyncio.Event()

    def hurry(self, members: Iterable[Member]) -> None:
        """Something happened to these members: probe them as soon as URGENT_INTERVAL since the last probe allows."""
        now = self._clock()
        for member in members:
            member.probe_at = min(member.probe_at, max(now, member.probed_at + URGENT_INTERVAL))
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._hurry.clear()
                now = self._clock()
                self._membership.warm_up(now)
                for member in self._membership.members.values():
                    if member.probe_at <= now and (not member.probing or self._may_probe(member)):
                        spare = self._spare(member)
                        if not spare:
                            member.probes += 1
                            member.probing += 1
                            probes.create_task(self._visit(member, member.probes))
                        member.answered = False
                        member.probe_at = now + self._delay(member)
                await asyncio.sleep(TICK)
                members = self._membership.members.values()
                due = min((it.probe_at for it in members if not it.probing or self._may_probe(it)), default=None)
                try:
                    async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                        await self._hurry.wait()
                except TimeoutError:
                    pass

    def _may_probe(self, member: Member) -> bool:
        hurry = member.state is State.JOINING or not self._membership.available
        return member.probing < (OVERLAP if hurry else 1)

    def _delay(self, member: Member) -> float:
        urgent = not self._membership.available
        return next_probe(member.state, member.probe_failures, self._interval, urgent, self._rng)

    def _spare(self, member: Member) -> bool:
        """Whether a probe would say nothing new: a member that answers requests accepts connections."""
        return member.answered and member.state is State.UP and not self._asks_path

    async def _visit(self, member: Member, number: int) -> None:
        event, reason = await self._probe(member.address)
        now = self._clock()
        member.probing -= 1
        if number < member.heard:
            return  # A later one has told more.
        member.heard = number
        member.probed_at = now
        if event is None:
            return
        member.probe_failures = 0 if event is Event.PROBE_OK else member.probe_failures + 1
        before = member.state
        self._membership.observe(member, event, now, reason)
        next_at = now + self._delay(member)
        member.probe_at = next_at if member.state is not before else min(member.probe_at, next_at)
        self._hurry.set()
