"""ClientRegistry that keep a server busy with nothing: ``python -m bench.crowd HOST PORT HEADS BODIES READERS``.

HEADS send a request head a byte at a time and never end it, BODIES an upload, READERS read a large answer, all as
slowly as below. Whoever is cut off comes again, so there are always that many. Runs until SIGTERM; prints one line of
JSON then: how often each kind has connected, and how it was cut off (a status, ``closed`` or ``refused``).

They come from several addresses, for one has ports for 28,000 connections only, the closed ones of the last minute
included, and so that none of them is the address of the requests that are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import uvloop

from bench.upstreams import MIB

# All have come after so many seconds.
RAMP_SECONDS = 5.0
# Before somebody who was cut off, or refused, comes again.
PAUSE_SECONDS = 0.5
# A byte of a head, and a piece of a body, every so many seconds; a piece of a body.
HEAD_SECONDS = 3.0
BODY_SECONDS = 1.0
BODY_PIECE = 64
# A piece of an answer every so many seconds.
READ_SECONDS = 1.0
READ_PIECE = 4096
# Small, so that the answer waits in the proxy and not in the client's kernel.
RECEIVE_BUFFER = 16 * 1024
SOURCES = [f"127.0.1.{number}" for number in range(1, 51)]

_rng = random.Random(1)


class Crowd:
    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._host = f"Host: {host}:{port}\r\n".encode()
        self.fates: dict[str, Counter[str]] = {}
        self.connected: Counter[str] = Counter()

    async def head(self, sock: socket.socket) -> str:
        await _send(sock, b"GET / HTTP/1.1\r\n%bX-Slow: " % self._host)
        return await _drip(sock, b"x", HEAD_SECONDS, 2**63)

    async def body(self, sock: socket.socket) -> str:
        await _send(sock, b"POST /upload HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (self._host, MIB))
        return await _drip(sock, bytes(BODY_PIECE), BODY_SECONDS, MIB // BODY_PIECE)

    async def reader(self, sock: socket.socket) -> str:
        await _send(sock, b"GET /16m HTTP/1.1\r\n%b\r\n" % self._host)
        loop = asyncio.get_running_loop()
        piece = first = await loop.sock_recv(sock, READ_PIECE)
        if not first.startswith(b"HTTP/1.1 200"):
            return _fate(first)
        while piece:
            await asyncio.sleep(READ_SECONDS)
            piece = await loop.sock_recv(sock, READ_PIECE)
        return "closed"

    async def again_and_again(self, kind: str, visit: Callable[[socket.socket], Awaitable[str]]) -> None:
        """One place in the crowd."""
        await asyncio.sleep(RAMP_SECONDS * _rng.random())
        fates = self.fates.setdefault(kind, Counter())
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                sock.bind((_rng.choice(SOURCES), 0))
                try:
                    await loop.sock_connect(sock, self._address)
                except OSError:
                    fates["refused"] += 1
                else:
                    self.connected[kind] += 1
                    try:
                        fates[await visit(sock)] += 1
                    except OSError:
                        fates["closed"] += 1
            await asyncio.sleep(PAUSE_SECONDS)


# From linux/in.h: the port is chosen at connect, among those that are free towards that server.
_BIND_ADDRESS_NO_PORT = 24


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _drip(sock: socket.socket, piece: bytes, seconds: float, count: int) -> str:
    """Send a piece now and then until the other side has had enough, or everything; returns what it said."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        with contextlib.suppress(TimeoutError):
            return _fate(await asyncio.wait_for(loop.sock_recv(sock, 4096), seconds))
        await loop.sock_sendall(sock, piece)
    return _fate(await loop.sock_recv(sock, 4096))


def _fate(answer: bytes) -> str:
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed"


async def run(host: str, port: int, counts: dict[str, int]) -> Crowd:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    crowd = Crowd(host, port)
    visits = {"heads": crowd.head, "bodies": crowd.body, "readers": crowd.reader}
    places = [
        asyncio.create_task(crowd.again_and_again(kind, visits[kind]))
        for kind, count in counts.items()
        for _ in range(count)
    ]
    stopped = asyncio.create_task(stop.wait())
    # A place ends by an error alone.
    done, _ = await asyncio.wait([stopped, *places], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return crowd


def main() -> None:
    host, port, heads, bodies, readers = sys.argv[1:]
    counts = {"heads": int(heads), "bodies": int(bodies), "readers": int(readers)}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        crowd = runner.run(run(host, int(port), counts))
        print(json.dumps({"connected": crowd.connected, "fates": crowd.fates}), flush=True)


if __name__ == "__main__":
    main()
