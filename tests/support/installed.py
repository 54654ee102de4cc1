"""``python -m tests.support.installed PYTHON BUILD``: try an installed balancer as a user does, for ``make dist``.

``PYTHON`` is the interpreter of the environment that the wheel is installed in, and ``BUILD`` how its version line
begins to describe the build. The commands run in an empty folder,
so that none of them finds the package in the checkout.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from tempfile import TemporaryDirectory

from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from balancer.version import __version__

LIMIT_SECONDS = 60.0


class Installed:
    """An environment in which the wheel is installed."""

    def __init__(self, python: Path, build: str, cwd: Path) -> None:
        self.build = build
        self._bin = python.parent
        self._cwd = cwd

    async def run(self, command: str, *arguments: str, **environ: str) -> str:
        """Run a command of the environment; returns its output. Raises AssertionError on another exit status than 0."""
        print(f"{command} {' '.join(arguments)}", flush=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BALANCER_", "PYTHON"))}
        process = await asyncio.create_subprocess_exec(
            self._bin / command, *arguments, cwd=self._cwd, env=inherited | environ, stdout=PIPE, stderr=STDOUT
        )
        async with asyncio.timeout(LIMIT_SECONDS):
            output = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"exit status {process.returncode}:\n{output}"
        return output


async def check_version(installed: Installed) -> None:
    assert (await installed.run("balancer", "--version")).startswith(f"{__version__} ({installed.build}")


async def check_files(installed: Installed) -> None:
    """Every installed file is in ``balancer/`` or in its metadata, but for the command."""
    listed = await installed.run("python", "-m", "pip", "show", "--files", "balancer")
    files = [line.strip() for line in listed.partition("Files:\n")[2].splitlines()]
    own = ("balancer/", f"balancer-{__version__}.dist-info/")
    assert [file for file in files if not file.startswith(own)] == ["../../../bin/balancer"]


async def check_check(installed: Installed) -> None:
    """``balancer check`` finds the member that DNS names, and exits with 0, since the member accepts connections."""
    zone = Zone()
    zone.records["apps"] = [("A", "127.0.0.1")]
    port = free_port()
    async with DnsServer(zone) as dns, await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        output = await installed.run(
            "balancer", "check", BALANCER_RESOLVER=str(dns.address), BALANCER_UPSTREAM_PORT=str(port)
        )
    assert f"127.0.0.1:{port}" in output, output


async def check_demo(installed: Installed) -> None:
    output = await installed.run("balancer", "demo", "--seconds", "5", "--port", str(free_port()))
    assert "answering: worker-1" in output and " 0 failed" in output, output


async def main(python: Path, build: str) -> None:
    with TemporaryDirectory() as folder:
        installed = Installed(python, build, Path(folder))
        for check in (check_version, check_files, check_check, check_demo):
            await check(installed)


if __name__ == "__main__":
    # Absolute, but not resolved: the interpreter of an environment is a link.
    asyncio.run(main(Path(sys.argv[1]).absolute(), sys.argv[2]))
