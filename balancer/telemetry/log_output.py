"""Standard output and standard error of ``balancer serve``: what is written there never makes a process wait.

Rules:
* A pipe that is not read, a terminal that is stopped and a socket whose peer is slow do not block. Lines that they do
  not take wait in memory, WAITING_MAX bytes of each stream; then lines are dropped and counted.
* A line that has begun to leave leaves whole, and lines keep their order. Where other processes write to the same
  place, ``write_turn`` keeps their lines apart.
* Where lines cannot be written at all (a full disk, a reader that has left), they are dropped and counted as well.
* One line in the balancer's log says how many were dropped, and why, once in REPORT_SECONDS at most.
* Nothing here raises. Whatever a plug-in or a library prints goes the same way.

``serve`` imports this before it listens; hence without asyncio and logging, which take their time.
"""

from __future__ import annotations

import io
import os
import socket
import stat
import sys
import time
from _thread import RLock
from collections import deque
from collections.abc import Callable
from select import POLLOUT, poll
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from balancer.telemetry.write_turn import TURN_SECONDS, WriteTurn

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

# Bytes of a stream that may wait for its reader: a third of a second of the lines of 20,000 requests a second.
WAITING_MAX = 2 * 2**20
# Seconds between two reports of dropped lines, and between two looks at what waits.
REPORT_SECONDS = 60.0
TICK_SECONDS = 1.0
# Seconds that a process that ends leaves a slow reader for the last lines.
FINISH_SECONDS = 0.5


class Channel:
    """The other side of a stream: pipe, file, terminal. Two streams to the same one share it: lines stay whole."""

    def __init__(self, descriptor: int) -> None:
        self._target, self._send, self.close = _open(descriptor)
        self._turn = WriteTurn(self._target)
        # Parts of streams in their order, each with its stream; none of them is empty.
        self._parts: deque[tuple[LogOutput, bytes]] = deque()
        self._waiting = 0
        # Other threads write as well, and so may a finalizer in the midst of a write.
        self._lock = RLock()
        self._sending = self._full = False
        self._loop: AbstractEventLoop | None = None
        self._next_try: TimerHandle | None = None
        self.watching = False

    def put(self, stream: LogOutput, data: bytes) -> None:
        """Write these bytes as soon as the other side takes them, or drop them."""
        with self._lock:
            if self._waiting + len(data) > WAITING_MAX and self.push() and self._waiting + len(data) > WAITING_MAX:
                stream.drop(data, "it is not read")
                return
            self._parts.append((stream, data))
            self._waiting += len(data)
            self.push()

    def push(self) -> bool:
        """Write what waits, as far as the other side takes it; return whether something still waits."""
        with self._lock:
            if self._sending:
                return True
            self._sending, self._full = True, False
            try:
                while self._parts:
                    if not self._turn.take():
                        self._soon(self._begin_to_wait)
                        break
                    self._send_first()
            except BlockingIOError:
                self._full = True
                self._turn.give_back()
                if not self.watching:
                    self._soon(self._begin_to_watch)
            except OSError as error:
                for stream, data in self._parts:
                    stream.error = error
                    stream.drop(data, error.strerror or str(error))
                self._parts.clear()
                self._waiting = 0
                self._turn.end()
            finally:
                self._sending = False
            return bool(self._parts)

    def _send_first(self) -> None:
        """Send the first part with the turn to write, which the other side may take in part alone."""
        stream, data = self._parts[0]
        if self._turn.torn():
            data = b"\n" + data
        sent = self._send(data)
        self._waiting += len(data) - len(self._parts.popleft()[1]) - sent
        midway = False
        if sent < len(data):
            midway = data[sent - 1 : sent] != b"\n"
            # The turn is kept for the rest of the line, and not for the lines behind it.
            end = data.find(b"\n", sent) + 1 or len(data) if midway else sent
            self._parts.extendleft((stream, piece) for piece in (data[end:], data[sent:end]) if piece)
        self._turn.end(midway)

    def attach(self, loop: AbstractEventLoop | None) -> None:
        """Have what waits written by this event loop as soon as the other side takes more; None: no longer."""
        if self._loop and self.watching:
            self._loop.remove_writer(self._target)
            self.watching = False
        if self._next_try:
            self._next_try.cancel()
            self._next_try = None
        self._loop = loop

    def _soon(self, do: Callable[[], None]) -> None:
        if self._loop:
            self._loop.call_soon_threadsafe(do)

    def _begin_to_watch(self) -> None:
        if self._loop and not self.watching and self._parts:
            self.watching = True
            self._loop.add_writer(self._target, self._on_writable)

    def _on_writable(self) -> None:
        if self._loop and not (self.push() and self._full):
            self._loop.remove_writer(self._target)
            self.watching = False

    def _begin_to_wait(self) -> None:
        if self._loop and not self._next_try and self._parts:
            self._next_try = self._loop.call_later(TURN_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._next_try = None
        self.push()

    def finish(self, seconds: float) -> None:
        """Write what waits, and wait for the other side for so many seconds."""
        deadline = time.monotonic() + seconds
        while self.push() and (left := deadline - time.monotonic()) > 0:
            self.wait(left)

    def wait(self, seconds: float) -> bool:
        """Wait until the other side takes more; return whether it does within so many seconds."""
        deadline = time.monotonic() + seconds
        with self._lock:
            if not self._turn.wait(seconds):
                return False
        poller = poll()
        poller.register(self._target, POLLOUT)
        return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def forget(self) -> None:
        """Begin anew after a fork: what waits is the parent's to write."""
        self._lock = RLock()
        self._parts.clear()
        self._waiting = 0
        self._sending = False
        self._turn.midway = False


class DescriptorOutput(io.RawIOBase):
    """A stream to a descriptor; subclasses write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


class LogOutput(DescriptorOutput):
    """A stream to a descriptor. ``dropped``: lines so far. ``label``: its name in a report. ``error``: its last.

    ``channel``: that of another stream to the same place.
    """

    def __init__(self, descriptor: int, label: str, channel: Channel | None = None) -> None:
        super().__init__(descriptor)
        self.label = label
        self.dropped = 0
        self.error: OSError | None = None
        self.channel = channel or Channel(descriptor)
        self._owns_channel = channel is None
        self._why = ""
        self._unfinished = b""
        self._unreported = 0
        self._reported_at = float("-inf")

    def close(self) -> None:
        if not self.closed:
            self.flush()
            if self._owns_channel:
                self.channel.close()
        super().close()

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        # A line of more than 8 KiB comes in several writes; what has no end yet waits for it, or for a flush.
        whole, self._unfinished = self._unfinished + data, b""
        if whole[-1:] != b"\n" and len(whole) <= WAITING_MAX:
            end = whole.rfind(b"\n") + 1
            whole, self._unfinished = whole[:end], whole[end:]
        if whole:
            self.channel.put(self, whole)
        return len(data)

    def flush(self) -> None:
        """Write what has no end yet as well."""
        rest, self._unfinished = self._unfinished, b""
        if rest:
            self.channel.put(self, rest)

    def drop(self, data: bytes, why: str) -> None:
        """Count what cannot be written."""
        lines = data.count(b"\n")
        self.dropped += lines
        self._unreported += lines
        self._why = why

    def report(self, now: float, log_output: LogOutput, every: float = REPORT_SECONDS) -> bool:
        """Log how many lines were dropped, ``every`` so many seconds; return whether a report is still to come.

        ``log_output``: where the log goes, which must have room for the line.
        """
        if not self._unreported:
            return False
        if now - self._reported_at >= every and not log_output.channel.push():
            from logging import getLogger

            count, self._unreported = self._unreported, 0
            before, words = log_output.dropped, "line" if count == 1 else "lines"
            getLogger(__name__).warning("%d %s of %s dropped: %s", count, words, self.label, self._why)
            if log_output.dropped > before:  # The report has gone the same way.
                self._unreported += count
            self._reported_at = now
        return self._unreported > 0

    def forget(self) -> None:
        """Begin anew after a fork."""
        self.channel.forget()
        self._unfinished = b""
        self._unreported = self.dropped = 0


def _open(descriptor: int) -> tuple[int, Callable[[bytes], int], Callable[[], None]]:
    """Return a descriptor that leads to the same place, a function that writes there and never waits, and its end.

    The descriptor itself may be shared with a shell or another program, which a flag on it would disturb; opened
    anew, it has flags of its own.
    """
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(kind):
        sock = socket.socket(fileno=os.dup(descriptor))
        return sock.fileno(), lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.close
    target = descriptor
    if stat.S_ISFIFO(kind) or os.isatty(descriptor):
        try:
            target = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # of another user, without its reader, or where there is no /proc
            if stat.S_ISFIFO(kind):
                os.set_blocking(descriptor, False)
    return target, lambda data: os.write(target, data), lambda: os.close(target) if target != descriptor else None


# Standard output and standard error of this process.
_installed: list[LogOutput] = []


def install() -> None:
    """Have ``sys.stdout`` and ``sys.stderr`` write without a wait; those of a test, in memory, stay as they are."""
    try:
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):
        return
    first = LogOutput(out, "standard output")
    same = os.path.sameopenfile(out, err)
    outputs = [first, LogOutput(err, "standard error", first.channel if same else None)]
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = (
        _stream(before, output) for before, output in zip((sys.stdout, sys.stderr), outputs, strict=True)
    )
    _installed[:] = outputs


def _stream(before: TextIO, output: LogOutput) -> TextIO:
    # A line is one write: parts of it must not be dropped by themselves.
    return io.TextIOWrapper(cast(BinaryIO, output), before.encoding, "backslashreplace", line_buffering=True)


def tick() -> bool:
    """Write what waits, and report what was dropped; return whether there is more to do in TICK_SECONDS."""
    now = time.monotonic()
    waits = [output.channel.push() for output in _installed]
    owed = [output.report(now, _installed[-1]) for output in _installed]
    return any(waits) or any(owed)


async def keep_ticking() -> None:
    """Call ``tick`` until cancelled, and write what waits as soon as it can be."""
    import asyncio

    loop = asyncio.get_running_loop()
    for output in _installed:
        output.channel.attach(loop)
    try:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            tick()
    finally:
        for output in _installed:
            output.channel.attach(None)


def finish() -> None:
    """Write the last lines of this process, and what it has still to report."""
    sys.stdout.flush()
    sys.stderr.flush()
    for output in _installed:
        output.channel.finish(FINISH_SECONDS)
        output.report(time.monotonic(), _installed[-1], every=0.0)


def dropped_lines() -> dict[str, int]:
    """Return the lines that this process has dropped, by stream."""
    counts = [output.dropped for output in _installed] or [0, 0]
    return dict(zip(("stdout", "stderr"), counts, strict=True))


def _forget() -> None:
    for output in _installed:
        output.forget()


os.register_at_fork(after_in_child=_forget)
