"""Standard output and standard error of a command, whatever they lead to.

Rules:
* A reader that has left (``balancer check | head -1``) is no failure: what is left of the output has nowhere to go,
  and the exit status is the command's own. A command without an end, which only shows something, ends there.
* A command without an end does not wait for a reader: its requests would wait as well, and so would its end. What is
  not read waits in memory. At the end the command waits as long as the reader takes something every STALL_SECONDS.
  A terminal is waited for: pictures are for its own time.
* Where output is lost for another reason, such as a full device, one line on standard error has the reason, and the
  status is a failure.
* A descriptor that is closed at the start leads to the null device, so that no socket gets its number.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO, cast

from balancer.errors import FAILED
from balancer.telemetry.log_output import DescriptorOutput, LogOutput

# Seconds without progress of the reader after which a command that ends gives up the rest of its output.
STALL_SECONDS = 5.0


class Output(DescriptorOutput):
    """What a stream writes to. ``error``: why it can write no more; from then on it drops what comes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.error: OSError | None = None
        self._raises = False
        self._endless: LogOutput | None = None

    def never_wait(self) -> None:
        """Serve a command without an end: no write waits for a reader, and each raises the error, once there is one."""
        self._raises = True
        self._endless = None if self.isatty() else LogOutput(self._descriptor, "standard output")

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        size = len(data)
        if self._endless:
            self._endless.write(data)
            self.error = self.error or self._endless.error
        else:
            self._write_all(data)
        if self.error and self._raises:
            raise self.error
        return size

    def flush(self) -> None:
        """Write what has no end of a line yet as well."""
        if self._endless:
            self._endless.flush()

    def _write_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            while data and not self.error:
                data = data[self._write_some(data) :]
        except OSError as error:
            self.error = error

    def _write_some(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # Another program has made the pipe or the terminal so.
            select.select([], [self._descriptor], [])
            return 0

    def status(self, status: int) -> int:
        """Return the exit status of a command that would have this one; print why where it becomes a failure."""
        if self._endless:
            self._finish(self._endless)
        if not self.error or self.error.errno == errno.EPIPE:
            return status
        print(f"standard output cannot be written: {self.error.strerror}", file=sys.stderr)
        return status or FAILED

    def _finish(self, endless: LogOutput) -> None:
        stalled = False
        endless.flush()
        while not stalled and endless.channel.push():
            stalled = not endless.channel.wait(STALL_SECONDS)
        self.error = self.error or endless.error
        if stalled or (endless.dropped and not self.error):
            self.error = OSError(errno.EAGAIN, "it is not read")


@contextmanager
def command_output() -> Iterator[Output]:
    """Have ``sys.stdout`` and ``sys.stderr`` write by the rules above; yield what standard output writes to."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    out, sys.stdout = _stream(sys.stdout, 1)
    _, sys.stderr = _stream(sys.stderr, 2)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before


def _open_descriptors() -> None:
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _stream(before: TextIO | None, number: int) -> tuple[Output, TextIO]:
    """Return what a stream is replaced by; one in memory, such as a test's, stays as it is."""
    try:
        output = Output(before.fileno() if before else number)
    except (OSError, ValueError):
        assert before
        return Output(number), before
    if before:
        before.flush()
    encoding, errors = (before.encoding, before.errors) if before else ("utf-8", "backslashreplace")
    return output, io.TextIOWrapper(cast(BinaryIO, output), encoding, errors, line_buffering=True, write_through=True)
