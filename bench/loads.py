"""The loads: what is sent, with what, and what one measurement of it gives."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import traffic
from bench.doors import PLAIN, Door
from bench.peers import program
from bench.processes import Address, BenchError, Server, busy_seconds, fetch, pinned
from bench.upstreams import ANSWER, BODIES, LARGE_MIB, MIB

# More than any candidate takes for one request under the largest load.
TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Sample:
    """One measurement of one candidate; ``foreign_seconds`` is what others used of its core meanwhile."""

    requests: int
    mib: float
    seconds: float
    cpu_seconds: float
    foreign_seconds: float
    p50_ms: float
    p99_ms: float
    # Of a load with a rate: the slowest request, and how late requests were sent through the generator's own fault.
    max_ms: float = 0.0
    late_p99_ms: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """``body`` and ``answer`` are the sizes of the bodies in bytes; ``per_mib``: CPU time is told per MiB.

    ``rate``: requests a second, come what may, with latency from when each was due; without one, a closed loop.
    ``fresh``: each on a connection of its own. ``distinct``: no two requests are the same. ``traffic``: the kind of
    requests in traffic.py that is sent, to ``paths`` with answers of these sizes instead of to ``path``.
    ``streams``: so many at a time on each connection, by HTTP/2.
    """

    name: str
    description: str
    connections: int
    path: str = "/"
    method: str = "GET"
    body: int = 0
    answer: int = len(ANSWER)
    per_mib: bool = False
    rate: float = 0.0
    fresh: bool = False
    distinct: bool = False
    traffic: str = ""
    paths: Mapping[str, int] = field(default_factory=dict)
    door: Door = PLAIN
    streams: int = 0

    def verify(self, address: Address) -> None:
        """One request by itself to each path; BenchError unless the whole answer comes back."""
        for path, answer in (self.paths or {self.path: self.answer}).items():
            status, length = fetch(address, self.method, path, self._example_body(), tls=self.door.tls)
            if (status, length) != (200, answer):
                raise BenchError(f"{self.method} {path} gives status {status} and {length} bytes, not {answer}")

    def measure(self, server: Server, address: Address, seconds: int, core: int) -> Sample:
        """Run the load on ``core`` for so many seconds and take the server's CPU time before and after."""
        with self._command(address, seconds) as argv:
            before, busy_before, began = server.cpu_seconds(), busy_seconds(server.core), time.monotonic()
            done = subprocess.run(
                pinned(core, argv),
                capture_output=True,
                text=True,
                timeout=seconds + 4 * TIMEOUT_SECONDS,
            )
            cpu = server.cpu_seconds() - before
        # The generator also takes time to start.
        foreign = max(0.0, busy_seconds(server.core) - busy_before - cpu) / (time.monotonic() - began)
        line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), None)
        if done.returncode or line is None:
            raise BenchError(f"the load did not run: {done.stdout[-500:]}{done.stderr[-500:]}")
        figures = json.loads(line)
        if not server.alive():
            raise BenchError("it has died")
        return Sample(
            requests=figures["requests"],
            mib=figures["bytes"] / MIB,
            seconds=figures["seconds"],
            cpu_seconds=cpu,
            foreign_seconds=foreign * figures["seconds"],
            p50_ms=figures["p50_ms"],
            p99_ms=figures["p99_ms"],
            max_ms=figures.get("max_ms", 0.0),
            late_p99_ms=figures.get("late_p99_ms", 0.0),
            errors={kind: number for kind, number in figures["errors"].items() if number},
        )

    @contextmanager
    def _command(self, address: Address, seconds: int) -> Iterator[list[str]]:
        """The generator's command line, while what it reads is there."""
        if self.rate:
            yield self._paced(address, seconds)
        elif self.streams:
            yield self._h2load(address, seconds)
        elif self.body > MIB:
            yield self._upload(address, seconds)
        elif self.traffic:
            with tempfile.NamedTemporaryFile(prefix="bench-templates-") as file:
                file.write(traffic.written(traffic.templates(self.traffic, str(address))))
                file.flush()
                yield self._wrk(address, seconds, "templates", file.name, str(traffic.start()))
        else:
            yield self._wrk(address, seconds, *(["distinct"] if self.distinct else []))

    def _wrk(self, address: Address, seconds: int, *arguments: str) -> list[str]:
        return [
            program("wrk"),
            "--threads=1",
            f"--connections={self.connections}",
            f"--duration={seconds}s",
            f"--timeout={TIMEOUT_SECONDS}s",
            "--latency",
            f"--script={Path(__file__).parent / 'wrk.lua'}",
            f"{'https' if self.door.tls else 'http'}://{address}{self.path}",
            "--",
            self.method,
            str(self.body),
            *arguments,
        ]

    def _example_body(self) -> bytes | None:
        return b"{}" + bytes(self.body - 2) if self.body else None

    def _h2load(self, address: Address, seconds: int) -> list[str]:
        numbers = [str(number) for number in (address.port, self.connections, self.streams, seconds, traffic.start())]
        return [sys.executable, "-m", "bench.h2", address.host, *numbers, self.traffic]

    def _upload(self, address: Address, seconds: int) -> list[str]:
        target = [address.host, str(address.port), self.path]
        numbers = [str(self.body // MIB), str(self.connections), str(seconds)]
        return [sys.executable, "-m", "bench.uploader", *target, *numbers]

    def _paced(self, address: Address, seconds: int) -> list[str]:
        target = [address.host, str(address.port), self.path]
        numbers = [str(self.rate), str(seconds), str(self.connections)]
        kind = [f"{self.traffic}={traffic.start()}"] if self.traffic else ["fresh"] if self.fresh else []
        return [sys.executable, "-m", "bench.pacer", *target, *numbers, *kind]


def _get(connections: int) -> Load:
    plural = "s" if connections > 1 else ""
    return Load(f"get-{connections}", f"GET of 43 bytes, {connections} keep-alive connection{plural}", connections)


def _post(name: str, size: int) -> Load:
    return Load(name, f"POST of {size // 1024} KiB JSON, 32 connections", 32, path="/json", method="POST", body=size)


PAGES = {f"/browser/{name}/page": size for name, size in BODIES.items()}


def _browser(connections: int) -> Load:
    return Load(
        f"browser-{connections}",
        f"GET as browsers send it, ten headers with a cookie, no two alike, {connections} keep-alive connections; "
        "responses of nine headers, four of which differ each time, and 43 bytes, 4 KiB and 64 KiB by turns",
        connections,
        traffic="browser",
        paths=PAGES,
    )


LOADS = [
    _browser(32),
    _browser(256),
    Load(
        "browser-small-32",
        "browser-32 with bodies of 43 bytes alone: what heads cost",
        32,
        traffic="small",
        path="/browser/43/page",
    ),
    Load(
        "api-post-32",
        f"POST of {traffic.API_BODY} bytes of JSON with a bearer token, no two alike, 32 keep-alive connections",
        32,
        traffic="api",
        method="POST",
        body=traffic.API_BODY,
        path="/api/orders/1",
    ),
    replace(
        _browser(32),
        name="proxied-32",
        description="browser-32 from a trusted proxy, with X-Forwarded-For, -Proto and -Host and X-Request-ID, each of "
        "them another every time but the host and scheme; candidates heed them and pass them on",
        traffic="proxied",
        door=Door(trusted=True),
    ),
    replace(
        _browser(32), name="tls-32", description="browser-32 over TLS, connections kept alive", door=Door(tls=True)
    ),
    replace(
        _browser(8),
        name="h2-32",
        description="GET by HTTP/2 over TLS, 8 connections with 4 requests at a time; targets and responses as in "
        "browser-32, the other headers the same for all requests of a measurement",
        door=Door(tls=True, http2=True),
        streams=4,
    ),
    _get(1),
    _get(32),
    _get(256),
    Load(
        "distinct-32",
        "GET of 43 bytes, 32 keep-alive connections, no two request or response heads the same",
        32,
        path="/distinct",
        distinct=True,
    ),
    _post("post-1k", 1024),
    _post("post-64k", 65536),
    Load("download-16m", "GET of 16 MiB, 4 connections", 4, path="/16m", answer=LARGE_MIB * MIB, per_mib=True),
    Load(
        "upload-16m",
        "POST of 16 MiB, 4 connections",
        4,
        path="/upload",
        method="POST",
        body=LARGE_MIB * MIB,
        per_mib=True,
    ),
]
