"""``balancer serve`` as a process of its own, over members that a DNS server of the test names."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from balancer.types import Address, UnixSocket
from tests.support.wire import LIMIT, Connection, Member, connected


class Serving:
    """A running process. ``bind`` is where its clients connect."""

    def __init__(self, process: Process, bind: str) -> None:
        self.process = process
        self.bind = bind
        self.port = 0 if bind.startswith("unix:") else int(bind.rpartition(":")[2])

    def client(self, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[Connection]:
        if self.bind.startswith("unix:"):
            return connected(UnixSocket(self.bind.removeprefix("unix:")), tls)
        host = self.bind.rpartition(":")[0].strip("[]")
        return connected(Address({"::": "::1"}.get(host, host), self.port), tls)

    async def logged(self, text: str) -> None:
        """Wait until a line with ``text`` has been written to standard error."""
        assert self.process.stderr
        async with asyncio.timeout(LIMIT):
            while text.encode() not in (line := await self.process.stderr.readline()):
                assert line, f"it ended without {text!r}"

    async def stop(self) -> tuple[int | None, str, str]:
        """Exit status, standard output and the rest of standard error, after SIGTERM."""
        self.process.terminate()
        async with asyncio.timeout(2 * LIMIT):
            out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()

    async def listening(self) -> None:
        async with asyncio.timeout(LIMIT):
            while self.process.returncode is None:
                try:
                    async with self.client():
                        return
                except OSError:
                    await asyncio.sleep(0.02)
        raise AssertionError(f"it ended: {(await self.process.communicate())[1].decode()}")


@asynccontextmanager
async def serving(
    member: Member,
    bind: str = "",
    others: Sequence[Member] = (),
    aliases: Sequence[str] = ("apps",),
    admin: str = "off",
    out: Any = PIPE,
    err: Any = PIPE,
    **settings: str,
) -> AsyncIterator[Serving]:
    """A balancer whose settings are given by the names of their fields.

    ``others``: members on the same port. ``aliases``: what DNS knows them all by. ``admin``: where its admin port is.
    ``out``, ``err``: its standard output and standard error.
    """
    zone = Zone()
    zone.records |= {name: [("A", it.address.host) for it in (member, *others)] for name in aliases}
    bind = bind or f"127.0.0.1:{free_port()}"
    async with DnsServer(zone) as server:
        environ = {f"BALANCER_{name.upper()}": value for name, value in settings.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "balancer", "serve", f"--bind={bind}", f"--admin-bind={admin}",
            f"--upstream-port={member.address.port}", f"--resolver={server.address}",
            env=os.environ | environ, stdout=out, stderr=err,
        )  # fmt: skip
        serve = Serving(process, bind)
        try:
            await serve.listening()
            yield serve
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
