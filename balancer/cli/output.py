"""Standard output and standard error of a command, whatever they lead to.

Rules:
* A reader that has left (``balancer check | head -1``) is no failure: what is left of the output has nowhere to go,
  and the exit status is the command's own. A command without an end, which only shows something, ends there.
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


class Output(io.RawIOBase):
    """What a stream writes to. ``error``: why it can write no more; from then on it drops what comes.

    ``raises``: whether each write raises that error, for commands that do not end by themselves.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None
        self.raises = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        size = len(data)
        try:
            while data and not self.error:
                data = data[self._write_some(data) :]
        except OSError as error:
            self.error = error
        if self.error and self.raises:
            raise self.error
        return size

    def _write_some(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # Another program has made the pipe or the terminal so.
            select.select([], [self._descriptor], [])
            return 0

    def status(self, status: int) -> int:
        """Return the exit status of a command that would have this one; print why where it becomes a failure."""
        if not self.error or self.error.errno == errno.EPIPE:
            return status
        print(f"standard output cannot be written: {self.error.strerror}", file=sys.stderr)
        return status or FAILED


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
