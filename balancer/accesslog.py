"""One JSON object a line for every finished request."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TextIO

from balancer.observer import Observer
from balancer.record import Record

# Lines are written together: one write for each request would cost more than making its line.
FLUSH_SECONDS = 0.2


def entry(record: Record, wall_clock: float) -> dict[str, object]:
    """What the log says of a request. Times are ISO 8601 in UTC, durations milliseconds, bytes those of the body."""
    request = record.request
    line: dict[str, object] = {
        "time": datetime.fromtimestamp(wall_clock, UTC).isoformat(timespec="milliseconds"),
        "client": request.client,
        "method": request.method,
        "target": request.target.decode("latin-1"),
        "status": record.status,
        "bytes": record.body_bytes,
        "duration_ms": round(record.duration * 1000, 2),
        "member": str(record.member) if record.member else "",
    }
    if record.tries:
        line["tries"] = [str(it) for it in record.tries]
    if record.held:
        line["held_ms"] = round(record.held * 1000, 2)
    if record.error:
        line["error"] = record.error
    return line


class AccessLog(Observer):
    """Collects lines and writes them to ``stream`` a few times a second; ``flush`` writes the rest."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []

    def done(self, record: Record) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        self._lines.append(json.dumps(entry(record, time.time()), separators=(",", ":")))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
