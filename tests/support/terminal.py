"""Commands on a pseudo-terminal, and the screens that a person would have seen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import sys
import termios
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pyte

from tests.support.wire import LIMIT

# Where rich begins each picture: the upper left corner.
HOME = b"\x1b[H"


class Terminal:
    """A terminal of so many cells that ``process`` writes to; everything that it wrote is in ``written``."""

    def __init__(self, width: int, height: int) -> None:
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        self.resize(width, height)
        self.process: Process
        self.written = b""

    def resize(self, width: int, height: int) -> None:
        """Programs find out when they ask next."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.width, self.height = width, height

    @property
    def pictures(self) -> list[bytes]:
        """The whole ones so far, the latest at the end."""
        return self.written.split(HOME)[1:-1]

    @property
    def rest(self) -> str:
        """What came after the beginning of the latest picture."""
        return self.written.split(HOME)[-1].decode()

    async def shows(self, condition: Callable[[str], object]) -> str:
        """Wait for a picture from now on that fulfils the condition; its text."""
        seen = len(self.pictures)
        async with asyncio.timeout(LIMIT):
            while True:
                new = self.pictures[seen:]
                for picture in new:
                    if condition(text := screen(picture, self.width, self.height)[0]):
                        return text
                seen += len(new)
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        """The exit status, once everything is written."""
        async with asyncio.timeout(LIMIT):
            status = await self.process.wait()
        self._read()
        return status

    def _read(self) -> None:
        try:
            while piece := os.read(self._master, 65536):
                self.written += piece
        except OSError:
            pass  # Nothing more for now.

    @classmethod
    @asynccontextmanager
    async def running(cls, *arguments: str, width: int = 80, height: int = 24) -> AsyncIterator[Terminal]:
        """``balancer`` with these arguments on a terminal; it is killed at the end if it still runs."""
        terminal = cls(width, height)
        slave = terminal._slave
        # The size is asked of the terminal unless these say otherwise.
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        terminal.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "balancer", *arguments),
            env=environ | {"TERM": "xterm-256color"}, stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        loop.add_reader(terminal._master, terminal._read)
        try:
            yield terminal
        finally:
            loop.remove_reader(terminal._master)
            if terminal.process.returncode is None:
                terminal.process.kill()
                await terminal.process.wait()
            os.close(terminal._master)
            os.close(slave)


def screen(picture: bytes, width: int, height: int) -> tuple[str, int]:
    """What a terminal of this size shows of a picture, and how many lines went out at its top."""
    shown = pyte.HistoryScreen(width, height, history=1000)
    pyte.ByteStream(shown).feed(HOME + picture)
    return "\n".join(it.rstrip() for it in shown.display), len(shown.history.top)
