"""One attack for a bounded time: ``python -m bench.abuse.attack NAME HOST PORT SECONDS COUNT``.

COUNT places make visits one after the other, each on a connection of its own, so that there are always that many. Says
``ready`` once every place has begun, and prints one line of JSON, the ``Tally``, after SECONDS or at SIGTERM. Only
addresses of loopback are attacked, from an address of loopback that no honest client has.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from bench.abuse.honest import client_context
from bench.command import raise_file_limit

SOURCE = "127.0.0.2"
# No run lasts longer, whatever is asked for, nor has more places.
MOST_SECONDS, MOST_PLACES = 120.0, 2000
# Before a place that was cut off begins again, and until all places have begun, in seconds.
PAUSE_SECONDS = 0.05
READY_SECONDS = 5.0
# How far one place is behind another at the start, in seconds: a backlog is not what is attacked.
STAGGER_SECONDS = 0.001


# How an answer begins that is a refusal.
REFUSALS = tuple(b"HTTP/1.%d %d" % (minor, kind) for minor in (0, 1) for kind in (4, 5))


@dataclass
class Tally:
    """What the attack came to.

    ``ended``: visits that the other side ended, by closing or by an error, and streams that it reset. ``refused``:
    answers of 4xx and 5xx, and connections that did not come about.
    """

    visits: int = 0
    ended: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Wire:
    """A connection of an attacker."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally, number: int, host: str
    ) -> None:
        self.reader = reader
        self.tally = tally
        # Which visit this is, and whom it visits.
        self.number = number
        self.host = host.encode()
        self._writer = writer

    @property
    def transport(self) -> Any:
        """uvloop's transports are no asyncio.Transport."""
        return self._writer.transport

    async def send(self, data: bytes) -> None:
        """Returns once there is room for more."""
        if self.transport.is_closing():
            raise EOFError
        self._writer.write(data)
        await self._writer.drain()
        self.tally.sent_bytes += len(data)
        # drain() returns at once where there is room, and others have to have their turn.
        await asyncio.sleep(0)

    async def read(self) -> bytes:
        """What has come; EOFError if the other side has closed."""
        data = await self.reader.read(65536)
        self.tally.received_bytes += len(data)
        if not data:
            raise EOFError
        self.tally.refused += data.startswith(REFUSALS)
        return data

    @asynccontextmanager
    async def discarding(self, *, stubborn: bool = False) -> AsyncIterator[None]:
        """Read and forget meanwhile; the connection ends where the other side closes, unless ``stubborn``."""
        task = asyncio.create_task(self._discard(stubborn))
        try:
            yield
        finally:
            task.cancel()

    async def _discard(self, stubborn: bool) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                await self.read()
        if not stubborn:
            self.transport.abort()


Visit = Callable[[Wire], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """``visit``: what one connection does, until it is cut off. ``tls``: the protocol that it offers, if it has TLS.

    ``small``: it has the smallest receive buffer. ``once``: a place that was cut off does not come again.
    """

    visit: Visit
    tls: str = ""
    small: bool = False
    once: bool = False


class Attackers:
    def __init__(self, attack: Attack, host: str, port: int) -> None:
        self.tally = Tally()
        self._attack = attack
        self._address = (host, port)
        self._begun = 0
        self._context = client_context(attack.tls) if attack.tls else None

    async def run(self, seconds: float, count: int) -> Tally:
        """Attack for so many seconds, or until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        places = [asyncio.create_task(self._place(number)) for number in range(count)]
        waiting = asyncio.create_task(stop.wait())
        for _ in range(int(READY_SECONDS / 0.02)):
            if self._begun >= count:
                break
            await asyncio.sleep(0.02)
        print("ready", flush=True)
        await asyncio.wait([waiting], timeout=seconds)
        for task in (waiting, *places):
            task.cancel()
        for outcome in await asyncio.gather(*places, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return self.tally

    async def _place(self, number: int) -> None:
        await asyncio.sleep(number * STAGGER_SECONDS)
        first = True
        while first or not self._attack.once:
            try:
                wire = await self._connect()
            except OSError:
                # Also when the handshake of TLS was cut off.
                self.tally.refused += 1
            else:
                self._begun += first
                try:
                    await self._attack.visit(wire)
                except (OSError, EOFError):
                    self.tally.ended += 1
                finally:
                    wire.transport.abort()
            first = False
            await asyncio.sleep(PAUSE_SECONDS)

    async def _connect(self) -> Wire:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._attack.small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind((SOURCE, 0))
            await asyncio.get_running_loop().sock_connect(sock, self._address)
            host = self._address[0]
            streams = await asyncio.open_connection(
                sock=sock, ssl=self._context, server_hostname=host if self._context else None
            )
        except BaseException:
            sock.close()
            raise
        self.tally.visits += 1
        return Wire(*streams, self.tally, self.tally.visits, host)


def main() -> None:
    from bench.abuse.attacks import ATTACKS

    name, host, port, seconds, count = sys.argv[1:]
    if not ipaddress.ip_address(host).is_loopback:
        raise SystemExit(f"{host} is not on loopback")
    # The honest clients and the members share the core: what they wait for is not to be the attacker.
    os.nice(10)
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        attackers = Attackers(ATTACKS[name], host, int(port))
        tally = runner.run(attackers.run(min(float(seconds), MOST_SECONDS), min(int(count), MOST_PLACES)))
        print(json.dumps(asdict(tally)), flush=True)


if __name__ == "__main__":
    main()
