"""What clients cost that are idle, slow or malicious, or take a very large answer: memory, and what others wait.

All figures are the resident memory of the candidate's processes, read from outside. Memory of the
kernel (socket buffers) is not in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from bench.crowd import RAMP_SECONDS, SOURCES
from bench.loads import LOADS, Load, Sample
from bench.processes import Address, BenchError, Server, pinned
from bench.upstreams import MIB

IDLE = "idle"
SLOW = "slow-readers"
HUGE = "big-body"
CROWD = "crowd"

SETTLE_SECONDS = 3.0
SLOW_SECONDS = 8.0
SLOW_BYTES_PER_SECOND = 64 * 1024
# Small, so that the answer waits in the proxy and not in the client's kernel.
SLOW_RECEIVE_BUFFER = 64 * 1024
FAST_MIB_PER_SECOND = 10

# Requests beside idle clients, and beside a crowd; those that come new are served last if anybody is neglected.
BESIDE_IDLE = Load("beside-idle", "GET of 43 bytes, 2000/s", 32, rate=2000)
BESIDE_CROWD = Load("beside-crowd", "GET of 43 bytes, 200/s, each on a new connection", 500, rate=200, fresh=True)
BESIDE_SECONDS = 10
# Half-sent heads, slow bodies, slow readers.
HEADS, BODIES, READERS = 2000, 1000, 500
# Requests go on for so many seconds when the crowd has left.
AFTER_SECONDS = 10


def warm_up(server: Server, address: Address, core: int) -> None:
    """Memory that a process takes once, on its first requests, is not a client's."""
    next(load for load in LOADS if load.name == "get-32").measure(server, address, 2, core)
    time.sleep(1)


def idle_clients(server: Server, address: Address, core: int, count: int) -> dict[str, Any]:
    """``count`` connections that each made one request and stay open; what others wait without and with them."""
    return asyncio.run(_idle_clients(server, address, core, count))


async def _idle_clients(server: Server, address: Address, core: int, count: int) -> dict[str, Any]:
    alone = BESIDE_IDLE.measure(server, address, BESIDE_SECONDS, core)
    before = server.memory_kib()
    open_connections: list[socket.socket] = []
    try:
        for number in range(count):
            sock = await _request(address, "/", source=SOURCES[number % len(SOURCES)])
            open_connections.append(sock)
            await _read_answer(sock)
        await asyncio.sleep(SETTLE_SECONDS)
        during = server.memory_kib()
        beside = BESIDE_IDLE.measure(server, address, BESIDE_SECONDS, core)
        closed = sum(_is_closed(sock) for sock in open_connections)
        if closed:
            raise BenchError(f"{closed} of {count} idle connections were closed by the other side")
    finally:
        for sock in open_connections:
            sock.close()
    await asyncio.sleep(SETTLE_SECONDS)
    return {
        "clients": count,
        "before_kib": before,
        "during_kib": during,
        "after_kib": server.memory_kib(),
        "kib_per_client": (during - before) / count,
        "load": BESIDE_IDLE.description,
        "alone": _latency(alone),
        "beside": _latency(beside),
    }


def slow_readers(server: Server, address: Address, _core: int, count: int) -> dict[str, Any]:
    """``count`` clients that each read a 16 MiB answer at 64 KiB/s."""
    return asyncio.run(_slow_readers(server, address, count))


async def _slow_readers(server: Server, address: Address, count: int) -> dict[str, Any]:
    before = server.memory_kib()
    total = 0

    async def read_slowly() -> None:
        nonlocal total
        loop = asyncio.get_running_loop()
        sock = await _request(address, "/16m", SLOW_RECEIVE_BUFFER)
        try:
            while data := await loop.sock_recv(sock, SLOW_BYTES_PER_SECOND // 4):
                total += len(data)
                await asyncio.sleep(0.25)
            raise BenchError("a slow reader's answer ended early")
        finally:
            sock.close()

    async with _sampled_memory(server) as peak:
        readers = asyncio.gather(*(read_slowly() for _ in range(count)))
        done, _ = await asyncio.wait([readers], timeout=SLOW_SECONDS)
        if done:
            await readers
        readers.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await readers
    await asyncio.sleep(SETTLE_SECONDS)
    return {
        "clients": count,
        "seconds": SLOW_SECONDS,
        "read_mib": total / MIB,
        "before_kib": before,
        "peak_kib": peak[0],
        "after_kib": server.memory_kib(),
        "kib_per_client": (peak[0] - before) / count,
    }


def huge_body(server: Server, address: Address, _core: int, mib: int) -> dict[str, Any]:
    """One answer, of which ``mib`` MiB are read at 10 MiB/s."""
    return asyncio.run(_huge_body(server, address, mib))


async def _huge_body(server: Server, address: Address, mib: int) -> dict[str, Any]:
    before = server.memory_kib()
    loop = asyncio.get_running_loop()
    started = time.monotonic()
    received = 0
    async with _sampled_memory(server) as peak:
        sock = await _request(address, "/1g")
        try:
            while received < mib * MIB:
                data = await loop.sock_recv(sock, 256 * 1024)
                if not data:
                    raise BenchError(f"the answer ended after {received} bytes")
                received += len(data)
                ahead = started + received / (FAST_MIB_PER_SECOND * MIB) - time.monotonic()
                if ahead > 0:
                    await asyncio.sleep(ahead)
        finally:
            sock.close()
    seconds = time.monotonic() - started
    await asyncio.sleep(SETTLE_SECONDS)
    return {
        "mib": received / MIB,
        "seconds": seconds,
        "before_kib": before,
        "peak_kib": peak[0],
        "after_kib": server.memory_kib(),
        "growth_mib": (peak[0] - before) / 1024,
    }


def crowd(server: Server, address: Address, core: int, seconds: int) -> dict[str, Any]:
    """Requests at a modest rate alone, beside a crowd of all that is slow for so many seconds, and after it."""
    return asyncio.run(_crowd(server, address, core, seconds))


async def _crowd(server: Server, address: Address, core: int, seconds: int) -> dict[str, Any]:
    alone = BESIDE_CROWD.measure(server, address, BESIDE_SECONDS, core)
    before = server.memory_kib()
    async with _sampled_memory(server, 0.5) as peak:
        with _crowding(address, core) as clients:
            await asyncio.sleep(RAMP_SECONDS)
            beside = await asyncio.to_thread(BESIDE_CROWD.measure, server, address, seconds, core)
            told = _dismiss(clients)
        after = await asyncio.to_thread(BESIDE_CROWD.measure, server, address, AFTER_SECONDS, core)
    return {
        "heads": HEADS,
        "bodies": BODIES,
        "readers": READERS,
        "seconds": seconds,
        "crowd": told,
        "load": BESIDE_CROWD.description,
        "alone": _latency(alone),
        "beside": _latency(beside),
        "later": _latency(after),
        "before_kib": before,
        "peak_kib": peak[0],
        "after_kib": server.memory_kib(),
        "after_seconds": AFTER_SECONDS,
    }


@contextmanager
def _crowding(address: Address, core: int) -> Iterator[subprocess.Popen[str]]:
    numbers = [str(number) for number in (address.port, HEADS, BODIES, READERS)]
    argv = pinned(core, [sys.executable, "-m", "bench.crowd", address.host, *numbers])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _dismiss(clients: subprocess.Popen[str]) -> dict[str, Any]:
    """End the crowd; what it tells of how it fared."""
    clients.terminate()
    out, err = clients.communicate(timeout=30)
    if not out.startswith("{"):
        raise BenchError(f"the crowd did not run: {err[-500:]}")
    told: dict[str, Any] = json.loads(out)
    return told


def _latency(sample: Sample) -> dict[str, Any]:
    return {
        "requests": sample.requests,
        "p50_ms": sample.p50_ms,
        "p99_ms": sample.p99_ms,
        "max_ms": sample.max_ms,
        "errors": sample.errors,
    }


async def _request(address: Address, path: str, receive_buffer: int = 0, source: str = "") -> socket.socket:
    """A non-blocking connection on which a request has been sent."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            sock.bind((source, 0))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    except BaseException:
        sock.close()
        raise
    return sock


async def _read_answer(sock: socket.socket) -> None:
    """The head and the body of an answer whose length is in the head or that ends with a last chunk."""
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        data += await asyncio.wait_for(loop.sock_recv(sock, 65536), 30)
        head, end, body = data.partition(b"\r\n\r\n")
        if not end:
            continue
        if not head.startswith(b"HTTP/1.1 200 "):
            raise BenchError(f"an idle client was answered {head.splitlines()[0]!r}")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = fields.get(b"content-length")
        if len(body) >= int(length) if length else body.endswith(b"0\r\n\r\n"):
            return


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@asynccontextmanager
async def _sampled_memory(server: Server, seconds: float = 0.1) -> AsyncIterator[list[int]]:
    """The largest resident memory within the block, looked at every so many seconds."""
    peak = [server.memory_kib()]

    async def sample() -> None:
        while True:
            await asyncio.sleep(seconds)
            peak[0] = max(peak[0], server.memory_kib())

    task = asyncio.create_task(sample())
    try:
        yield peak
    finally:
        task.cancel()
