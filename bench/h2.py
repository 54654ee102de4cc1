"""h2load with the targets of browsers, and its figures as wrk.lua prints them.

``python -m bench.h2 HOST PORT CONNECTIONS STREAMS SECONDS NUMBER KIND``: requests of the ``KIND`` of traffic.py from
the ``NUMBER`` on. h2load takes many targets and one set of headers: those of one request.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import traffic
from bench.pacer import percentile
from bench.peers import program

# h2load begins anew with the first when it has sent all of them.
TARGETS = 20_000
# Headers that HTTP/2 has in another form, or forbids.
_LEFT = ("host", "connection")


def command(address: str, kind: str, first: int, numbers: tuple[int, int, int], directory: Path) -> list[str]:
    """h2load's arguments, of which some are files in ``directory``."""
    connections, streams, seconds = numbers
    requests = [request.decode() for request in itertools.islice(traffic.requests(kind, address, first), TARGETS)]
    targets = directory / "targets"
    targets.write_text("".join(f"https://{address}{request.split(' ', 2)[1]}\n" for request in requests))
    lines = requests[0].split("\r\n\r\n", 1)[0].split("\r\n")[1:]
    headers = [line for line in lines if line.split(":", 1)[0].lower() not in _LEFT]
    return [
        program("h2load"),
        "--threads=1",
        f"--clients={connections}",
        f"--max-concurrent-streams={streams}",
        f"--duration={seconds}",
        "--warm-up-time=0",
        f"--input-file={targets}",
        f"--log-file={directory / 'log'}",
        *(f"--header={line.lower().split(':', 1)[0]}:{line.split(':', 1)[1]}" for line in headers),
    ]


def figures(said: str, log: Iterable[str], seconds: int) -> dict[str, Any]:
    """What h2load printed, and its log: when each request began, its status, and its microseconds."""
    waits = sorted(int(line.split("\t")[2]) for line in log)
    counts = _numbers(said, r"^requests: (.*)$")
    statuses = _numbers(said, r"^status codes: (.*)$")
    received = re.search(r"^traffic: \S+ \((\d+)\) total", said, re.MULTILINE)
    return {
        "requests": counts["succeeded"],
        "bytes": int(received[1]) if received else 0,
        "seconds": float(seconds),
        "p50_ms": percentile(waits, 0.50) / 1000,
        "p99_ms": percentile(waits, 0.99) / 1000,
        "errors": {
            "broken": counts["errored"],
            "timeout": counts["timeout"],
            "status": sum(number for name, number in statuses.items() if name != "2xx"),
        },
    }


def _numbers(said: str, line: str) -> dict[str, int]:
    """``12 succeeded, 0 failed`` by its words."""
    found = re.search(line, said, re.MULTILINE)
    if not found:
        raise ValueError(f"h2load said: {said[-500:]}")
    return {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", found[1])}


def main() -> None:
    host, *numbers, kind = sys.argv[1:]
    port, connections, streams, seconds, first = map(int, numbers)
    with tempfile.TemporaryDirectory(prefix="bench-h2-") as name:
        directory = Path(name)
        argv = command(f"{host}:{port}", kind, first, (connections, streams, seconds), directory)
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"h2load failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        with (directory / "log").open() as log:
            print(json.dumps(figures(done.stdout, log, seconds)))


if __name__ == "__main__":
    main()
