"""The access log: a line for every finished request, a JSON object or words for people at a terminal."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TextIO

from balancer.dispatch.context import ID_MAX, RequestRecord
from balancer.telemetry.observer import Observer
from balancer.types import Address
from balancer.words import counted

# Lines are written together: one write for each request would cost more than making its line.
FLUSH_SECONDS = 0.2
# Characters that may wait to be written: a client's target may make a line of a hundred thousand.
WAITING_MAX = 256 * 1024

# Returns a line for a record and a reading of the wall clock.
Format = Callable[[RequestRecord, float], str]

# For terminals: colours of the classes of statuses.
_COLOURS = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}
_PLAIN = "\x1b[0m"

# A string as JSON, in ASCII.
_quote: Final = json.encoder.encode_basestring_ascii

# Compiled code calls ``str.format`` for a format of an f-string, which takes longer than all the rest of a line: hence
# times by the millisecond, of which many lines have the same, and decimal places by a table.
_HUNDREDTHS: Final = tuple(f".{number:02d}" for number in range(100))


@lru_cache(maxsize=16)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


@lru_cache(maxsize=16)
def _time(milliseconds: int) -> str:
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}+00:00"


_member: Final = lru_cache(maxsize=4096)(Address.__str__)


def _milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds with two decimal places."""
    hundredths = int(seconds * 100_000 + 0.5)
    return f"{hundredths // 100}{_HUNDREDTHS[hundredths % 100]}"


def as_json(record: RequestRecord, wall_clock: float) -> str:
    """Return a JSON object. Times are ISO 8601 in UTC, durations milliseconds, bytes those of the response's body.

    ``pool``, ``attempts``, ``queued_ms``, ``error`` and ``reason`` are there only where they have a value.
    Built by hand, because ``json.dumps`` of a dictionary takes several times as long; values from outside are
    quoted.
    """
    request = record.request
    member = record.member
    line = (
        f'{{"time":"{_time(int(wall_clock * 1000))}",'
        f'"client":{_quote(request.client)},"method":{_quote(request.method)},'
        f'"target":{_quote(request.target.decode("latin-1"))},'
        f'"status":{record.status},"bytes":{record.body_bytes},"duration_ms":{_milliseconds(record.duration)},'
        f'"member":"{_member(member) if member else ""}","request_id":'
        f"{_quote(record.id[:ID_MAX].decode('latin-1'))}"
    )
    if record.pool:
        line += f',"pool":{_quote(record.pool)}'
    if record.attempts:
        line += f',"attempts":{json.dumps([str(attempt) for attempt in record.attempts])}'
    if record.queued:
        line += f',"queued_ms":{_milliseconds(record.queued)}'
    if record.error:
        line += f',"error":"{record.error}"'
    if record.reason:
        line += f',"reason":{_quote(record.reason)}'
    return line + "}"


def as_text(record: RequestRecord, wall_clock: float, coloured: bool = False) -> str:
    """Return a line for people, in local time; errors stand at its end."""
    request = record.request
    target = request.target.decode("latin-1")
    colour = _COLOURS.get(record.status // 100, "") if coloured else ""
    line = (
        f"{time.strftime('%H:%M:%S', time.localtime(wall_clock))} {colour}{record.status}{_PLAIN if colour else ''} "
        f"{request.method} {target if target.isprintable() else _quote(target)} "
        f"{record.duration * 1000:.1f} ms, {counted(record.body_bytes, 'byte')} from {record.member or 'no member'} "
        f"to {request.client or 'a local client'}"
    )
    if record.queued:
        line += f", queued {record.queued * 1000:.0f} ms"
    if record.error:
        line += f", {record.error}"
    if record.reason:
        line += f": {record.reason}"
    if record.attempts:
        line += f" (failed: {'; '.join(map(str, record.attempts))})"
    return line


class AccessLog(Observer):
    """Collects lines and writes them to ``stream`` a few times a second, many at once; ``flush`` writes the rest."""

    def __init__(self, stream: TextIO, render: Format = as_json) -> None:
        self._stream = stream
        self._render = render
        self._lines: list[str] = []
        self._waiting = 0

    def done(self, record: RequestRecord) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        line = self._render(record, time.time())
        self._lines.append(line)
        self._waiting += len(line)
        if self._waiting > WAITING_MAX:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        lines, self._lines, self._waiting = self._lines, [], 0
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
