"""Uploads without pause for some seconds: ``python -m bench.uploader HOST PORT PATH MIB CONNECTIONS SECONDS``.

wrk holds one request in memory and cannot say how much of it was written. This sends each request
to its end, so that the figures have no half request in them. Prints one line of JSON, as wrk.lua does.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

CHUNK = memoryview(bytes(1024 * 1024))
TIMEOUT = 60.0


class Uploader(threading.Thread):
    def __init__(self, host: str, port: int, path: str, mib: int, deadline: float) -> None:
        super().__init__()
        self._address = (host, port)
        self._mib = mib
        self._deadline = deadline
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {mib * len(CHUNK)}\r\n\r\n"
        ).encode()
        self.latencies: list[float] = []
        self.errors = {"connect": 0, "broken": 0, "status": 0}

    def run(self) -> None:
        sock: socket.socket | None = None
        while (started := time.monotonic()) < self._deadline:
            try:
                if sock is None:
                    sock = socket.create_connection(self._address, TIMEOUT)
            except OSError:
                self.errors["connect"] += 1
                time.sleep(0.1)
                continue
            try:
                keep = self._upload(sock)
                self.latencies.append(time.monotonic() - started)
            except (OSError, ValueError):
                self.errors["broken"] += 1
                keep = False
            if not keep:
                sock.close()
                sock = None
        if sock:
            sock.close()

    def _upload(self, sock: socket.socket) -> bool:
        """Send one body, read the answer; true if the connection may be used again."""
        sock.sendall(self._head)
        for _ in range(self._mib):
            sock.sendall(CHUNK)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive(sock)
        head, _, body = data.partition(b"\r\n\r\n")
        if head.split(b" ", 2)[1] != b"200":
            self.errors["status"] += 1
            return False
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        if b"content-length" not in fields:
            while not body.endswith(b"0\r\n\r\n"):
                body += self._receive(sock)
        else:
            while len(body) < int(fields[b"content-length"]):
                body += self._receive(sock)
        return fields.get(b"connection", b"").lower() != b"close"

    def _receive(self, sock: socket.socket) -> bytes:
        data = sock.recv(65536)
        if not data:
            raise ConnectionResetError
        return data


def main() -> None:
    host, port, path, mib, connections, seconds = sys.argv[1:]
    started = time.monotonic()
    uploaders = [Uploader(host, int(port), path, int(mib), started + float(seconds)) for _ in range(int(connections))]
    for uploader in uploaders:
        uploader.start()
    for uploader in uploaders:
        uploader.join()
    latencies = sorted(latency for uploader in uploaders for latency in uploader.latencies)
    errors: dict[str, int] = {}
    for uploader in uploaders:
        for kind, number in uploader.errors.items():
            errors[kind] = errors.get(kind, 0) + number
    print(
        json.dumps(
            {
                "requests": len(latencies),
                "bytes": len(latencies) * int(mib) * len(CHUNK),
                "seconds": time.monotonic() - started,
                "p50_ms": _percentile(latencies, 0.50) * 1000,
                "p99_ms": _percentile(latencies, 0.99) * 1000,
                "errors": errors,
            }
        )
    )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


if __name__ == "__main__":
    main()
