"""The bounds that need time: how long a candidate puts up with a client, measured side by side."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.processes import Address
from bench.strictness.client import Client
from tests.support.hostile import GET, POST

# How long is watched: longer than any limit that the balancer has.
WATCH = 90.0

Probe = Callable[[Address], Awaitable[str]]

# What is documented where nothing is measured, or where WATCH is not long enough, by (bound, candidate).
DOCUMENTED = {
    ("an idle connection", "caddy"): "[idle_timeout](https://caddyserver.com/docs/caddyfile/options#timeouts): 5 min",
}


async def measure(address: Address) -> dict[str, str]:
    """What a candidate does about each bound that can be measured."""
    cells = await asyncio.gather(*(probe(address) for probe in PROBES.values()))
    return dict(zip(PROBES, cells, strict=True))


async def _until_cut(address: Address, begun: bytes, trickle: bytes = b"", answered: bool = False) -> str:
    """Send something, then ``trickle`` every second, and wait for the candidate to end it."""
    client = await Client.connect(address)
    client.send(begun)
    if answered:
        while not client.received.endswith(b"ok") and await client.more(5):
            pass
    start, seen = time.monotonic(), len(client.received)
    last = start
    try:
        while (now := time.monotonic()) < start + WATCH:
            if trickle and now > last + 1:
                client.send(trickle)
                last = now
            await client.more(0.25)
            if client.ended or len(client.received) > seen:
                status = re.match(rb"HTTP/1\.[01] (\d{3})", client.received[seen:])
                said = status[1].decode() if status else "closes" if client.ended else "answers"
                return f"{said} after {time.monotonic() - start:.0f} s"
    finally:
        client.close()
    return f"open after {WATCH:.0f} s"


async def _not_reading(address: Address) -> str:
    """Ask for more than all buffers hold and read none of it, until the candidate's process closes the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, GET.replace(b"GET /", b"GET /flood"))
        client = Address(*sock.getsockname())
        await asyncio.sleep(1)
        start = time.monotonic()
        while time.monotonic() < start + WATCH:
            if not _established(address, client):
                return f"closes after {time.monotonic() - start + 1:.0f} s"
            await asyncio.sleep(0.5)
    return f"open after {WATCH:.0f} s"


def _established(server: Address, client: Address) -> bool:
    """Whether a process still has the server's end: the client cannot see a close behind what it has not read."""
    wanted = (_hexadecimal(server), _hexadecimal(client))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (words[1], words[2]) == wanted:
            return words[3] == "01" and words[9] != "0"
    return False


def _hexadecimal(address: Address) -> str:
    return f"{socket.inet_aton(address.host)[::-1].hex().upper()}:{address.port:04X}"


PROBES: dict[str, Probe] = {
    "a connection without a byte": lambda address: _until_cut(address, b""),
    "a head that stops": lambda address: _until_cut(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: "),
    "a head that trickles in": lambda address: _until_cut(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x"),
    "an idle connection": lambda address: _until_cut(address, GET, answered=True),
    "a body that stops": lambda address: _until_cut(address, POST + b"Content-Length: 9\r\n\r\nabc"),
    "a client that does not read": _not_reading,
}
