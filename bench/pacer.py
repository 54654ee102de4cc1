"""Requests at a fixed rate, whatever becomes of those before them.

``python -m bench.pacer HOST PORT PATH RATE SECONDS CONNECTIONS [fresh | KIND=NUMBER]``. Prints one line of JSON,
as wrk.lua does. With a ``KIND`` of traffic.py it sends such requests, from the ``NUMBER`` on, instead of GET for
``PATH``.

A request's latency counts from when it was due, not from when it was sent: a closed loop such as wrk's sends less to
a server that stalls, and so leaves out of its figures what everybody else would have waited (coordinated omission).
Requests are due at random (a Poisson process, as of many independent users), at the same times in every run. They go
out in turn on the connection that has been idle longest; with ``fresh`` each has a connection of its own, and
CONNECTIONS is how many may be open at a time.

There is no event loop between this and the kernel, and no clock of milliseconds: at 15,000 requests a second the
generator would measure itself. ``late_p99_ms`` says how late it was itself, with a connection at hand.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import random
import select
import socket
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from bench import traffic

# Seconds that answers may take once the last request is due.
PATIENCE = 10.0
LAST_CHUNK = b"\r\n0\r\n\r\n"

_libc = ctypes.CDLL(None, use_errno=True)
_ABSOLUTE = 1


class Timer:
    """A descriptor that becomes readable at a reading of ``time.monotonic``. (``os`` has it from Python 3.13 on.)"""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, when: float) -> None:
        seconds = int(when)
        _libc.timerfd_settime(self.fd, _ABSOLUTE, struct.pack("4q", 0, 0, seconds, int((when - seconds) * 1e9)), None)


class Connection:
    """What one request at a time makes use of: when that was due, and what has come of its answer.

    ``missing``: so many bytes of the answer have not come; None before its length is known, -1 if it comes in chunks.
    ``size`` have, of which ``data`` are kept: the head, and of chunks all.
    """

    __slots__ = ("connected", "data", "due", "missing", "size", "sock")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.connected = False
        self.due = 0.0
        self.renew()

    def renew(self) -> None:
        """Expect another answer."""
        self.data = b""
        self.missing: int | None = None
        self.size = 0

    def take(self, piece: bytes) -> bool:
        """Whether the answer is complete with this piece of it. It has a length, or comes in chunks."""
        self.size += len(piece)
        if self.missing is None:
            self.data += piece
            head, end, body = self.data.partition(b"\r\n\r\n")
            if not end:
                return False
            length = head.lower().partition(b"\r\ncontent-length:")[2]
            self.missing = int(length.partition(b"\r\n")[0]) - len(body) if length else -1
        elif self.missing > 0:
            self.missing -= len(piece)
        else:
            self.data += piece
        return self.missing == 0 or (self.missing < 0 and self.data.endswith(LAST_CHUNK))


class Pacer:
    """``requests``: what is sent, one after the other."""

    def __init__(
        self, host: str, port: int, requests: Iterator[bytes], rate: float, connections: int, fresh: bool
    ) -> None:
        self._address = (host, port)
        self._rate = rate
        self._fresh = fresh
        self._requests = requests
        self._epoll = select.epoll()
        self._idle = deque(Connection() for _ in range(connections))
        self._busy: dict[int, Connection] = {}
        self._latencies = array("d")
        self._lateness = array("d")
        self._bytes = 0
        self._errors = {"connect": 0, "broken": 0, "status": 0, "timeout": 0}

    def run(self, seconds: float) -> dict[str, Any]:
        """Send for so many seconds, wait for the answers; the figures."""
        rng = random.Random(1)
        timer = Timer()
        self._epoll.register(timer.fd, select.EPOLLIN)
        if not self._fresh:
            self._warm_up()
        # When the requests were due that found no connection idle.
        waiting: deque[float] = deque()
        idle, clock = self._idle, time.monotonic
        started = upcoming = clock()
        end = started + seconds
        while (now := clock()) < end + PATIENCE:
            while upcoming <= now and upcoming < end:
                if idle:
                    self._lateness.append(now - upcoming)
                waiting.append(upcoming)
                upcoming += rng.expovariate(self._rate)
            while waiting and idle:
                self._send(idle.popleft(), waiting.popleft())
            if now >= end and not waiting and not self._busy:
                break
            timer.set(upcoming if upcoming < end else end if now < end else now + 0.1)
            for fd, _ in self._epoll.poll():
                if fd != timer.fd:
                    self._ready(fd)
        unanswered = [*waiting, *(connection.due for connection in self._busy.values())]
        for connection in (*self._busy.values(), *idle):
            if connection.sock:
                self._close(connection)
        self._epoll.close()
        os.close(timer.fd)
        latencies = sorted([*self._latencies, *(now - due for due in unanswered)])
        return {
            "requests": len(self._latencies),
            "bytes": self._bytes,
            "seconds": now - started,
            "p50_ms": percentile(latencies, 0.50) * 1000,
            "p99_ms": percentile(latencies, 0.99) * 1000,
            "max_ms": percentile(latencies, 1) * 1000,
            "late_p99_ms": percentile(sorted(self._lateness), 0.99) * 1000,
            "errors": self._errors | {"timeout": len(unanswered)},
        }

    def _warm_up(self) -> None:
        """A request on every connection, so that opening them, here and towards members, is not in the figures."""
        for _ in range(len(self._idle)):
            self._send(self._idle.popleft(), time.monotonic())
        deadline = time.monotonic() + PATIENCE
        while self._busy and time.monotonic() < deadline:
            for fd, _ in self._epoll.poll(1):
                self._ready(fd)
        self._latencies = array("d")
        self._bytes = 0

    def _send(self, connection: Connection, due: float) -> None:
        connection.due = due
        if connection.sock is None:
            sock = connection.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._busy[sock.fileno()] = connection
            sock.connect_ex(self._address)  # What comes of it, the socket says once it is writable.
            self._epoll.register(sock.fileno(), select.EPOLLOUT)
            return
        self._busy[connection.sock.fileno()] = connection
        try:
            connection.sock.send(next(self._requests))
        except OSError:
            self._fail(connection, "broken")

    def _ready(self, fd: int) -> None:
        connection = self._busy.get(fd)
        if connection is None:  # The server has closed a connection that nobody used.
            idle = next(connection for connection in self._idle if connection.sock and connection.sock.fileno() == fd)
            self._close(idle)
            return
        sock = connection.sock
        assert sock
        if not connection.connected:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._fail(connection, "connect")
                return
            connection.connected = True
            self._epoll.modify(fd, select.EPOLLIN)
            sock.send(next(self._requests))
            return
        try:
            piece = sock.recv(65536)
        except OSError:
            piece = b""
        if not piece:
            self._fail(connection, "broken")
            return
        if not connection.take(piece):
            return
        if not connection.data.startswith(b"HTTP/1.1 200 "):
            self._fail(connection, "status")
            return
        self._latencies.append(time.monotonic() - connection.due)
        self._bytes += connection.size
        connection.renew()
        del self._busy[fd]
        if self._fresh:
            self._close(connection)
        self._idle.append(connection)

    def _fail(self, connection: Connection, kind: str) -> None:
        self._errors[kind] += 1
        assert connection.sock
        del self._busy[connection.sock.fileno()]
        self._close(connection)
        self._idle.append(connection)

    def _close(self, connection: Connection) -> None:
        assert connection.sock
        connection.sock.close()
        connection.sock, connection.connected = None, False
        connection.renew()


def repeated(host: str, path: str, fresh: bool) -> Iterator[bytes]:
    """The same GET again and again."""
    close = "Connection: close\r\n" if fresh else ""
    return itertools.repeat(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n".encode())


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    host, port, path, rate, seconds, connections, *kind = sys.argv[1:]
    gc.disable()
    fresh = kind == ["fresh"]
    if kind and not fresh:
        name, _, first = kind[0].partition("=")
        requests = traffic.requests(name, f"{host}:{port}", int(first))
    else:
        requests = repeated(f"{host}:{port}", path, fresh)
    pacer = Pacer(host, int(port), requests, float(rate), int(connections), fresh)
    print(json.dumps(pacer.run(float(seconds))))


if __name__ == "__main__":
    main()
