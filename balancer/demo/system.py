"""The parts of the demo: a DNS server in this process; Redis, the workers and the balancer as processes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import AsyncExitStack
from importlib.util import find_spec

from balancer.demo.dns_server import DnsServer, Zone

ALIAS = "apps"
# Network of workers with addresses of their own: 127.0.1.1, 127.0.1.2, …
WORKER_NETWORK = "127.0.1."
# The package ``worker/`` under the name that an installation of the balancer gives it (setup.py).
WORKER_MODULE = "balancer.demo.worker"
# Limits in seconds for a process to start and to stop.
START_LIMIT = 15.0
STOP_LIMIT = 10.0

_FAKE_REDIS = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer.allow_reuse_address = True
TcpFakeServer(("127.0.0.1", int(sys.argv[1]))).serve_forever()
"""


class DemoError(Exception):
    """The demo cannot run; the message has the reason."""


class System:
    """The running system; use it within ``async with``. Leaving the context stops every process.

    ``own_addresses``: each worker gets a loopback address; otherwise a port, and SRV records in DNS.
    ``admin_port``: that of the status page; a free one unless given.
    """

    def __init__(self, port: int, own_addresses: bool | None = None, admin_port: int | None = None) -> None:
        self.port = port
        self.admin_port = admin_port or free_port()
        self.own_addresses = has_loopback_network() if own_addresses is None else own_addresses
        self.workers: list[str] = []
        self._zone = Zone()
        self._zone.records[ALIAS] = []
        self._dns = DnsServer(self._zone)
        self._redis_port = free_port()
        self._worker_port = free_port(WORKER_NETWORK + "1" if self.own_addresses else "127.0.0.1")
        self._processes: dict[str, Process] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._started = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> System:
        require_packages()
        redis = shutil.which("redis-server")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._dns)
            stack.push_async_callback(self._stop_all)
            if redis:
                quiet = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--loglevel", "warning")
                await self._start("redis", redis, "--port", str(self._redis_port), *quiet)
            else:
                await self._start("redis", sys.executable, "-c", _FAKE_REDIS, str(self._redis_port))
            await self._start(
                "balancer", sys.executable, "-m", "balancer", "serve",
                BALANCER_ALIAS=ALIAS,
                BALANCER_RESOLVER=str(self._dns.address),
                BALANCER_DNS_RECORD="a" if self.own_addresses else "srv",
                BALANCER_UPSTREAM_PORT=str(self._worker_port),
                BALANCER_BIND=f"127.0.0.1:{self.port}",
                BALANCER_ADMIN_BIND=f"127.0.0.1:{self.admin_port}",
                BALANCER_HEALTH_PATH="/healthz",
                BALANCER_ACCESS_LOG="off",
            )  # fmt: skip
            await self._listening("redis", "127.0.0.1", self._redis_port)
            # Another program may answer on the data port. The balancer opens this one after it, or ends.
            await self._listening("balancer", "127.0.0.1", self.admin_port)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    async def scale(self, count: int) -> None:
        """Start or stop workers until ``count`` of them run. The newest goes first."""
        stopping = [self.workers.pop() for _ in range(len(self.workers) - count)]
        starting = [self._new_worker() for _ in range(count - len(self.workers))]
        await asyncio.gather(
            *(self._start_worker(name) for name in starting), *(self._stop_worker(name) for name in stopping)
        )

    def _new_worker(self) -> str:
        self._started += 1
        name = f"worker-{self._started}"
        self.workers.append(name)
        taken = {host for host, _ in self._places.values()}
        hosts = (f"{WORKER_NETWORK}{number}" for number in range(1, 255))
        if self.own_addresses:
            self._places[name] = (next(host for host in hosts if host not in taken), self._worker_port)
        else:
            self._places[name] = ("127.0.0.1", free_port())
        return name

    async def _start_worker(self, name: str) -> None:
        host, port = self._places[name]
        self._publish()  # Like Docker: the name is there before the process listens.
        await self._start(
            name, sys.executable, "-m", WORKER_MODULE,
            HOST=host, PORT=str(port), HOSTNAME=name, HOST_REDIS="127.0.0.1", PORT_REDIS=str(self._redis_port),
        )  # fmt: skip
        await self._listening(name, host, port)

    async def _stop_worker(self, name: str) -> None:
        await self._stop(name)
        del self._places[name]
        self._publish()  # Like Docker: the name goes only after the process is gone.

    def _publish(self) -> None:
        if self.own_addresses:
            self._zone.records[ALIAS] = [("A", host) for host, _ in self._places.values()]
            return
        self._zone.records[ALIAS] = [("SRV", f"0 1 {port} {name}.{ALIAS}.") for name, (_, port) in self._places.items()]
        for name, (host, _) in self._places.items():
            self._zone.records[f"{name}.{ALIAS}"] = [("A", host)]

    async def _start(self, name: str, *command: str, **environ: str) -> None:
        # A session of its own keeps Ctrl-C from reaching it: the demo stops its processes itself, in order.
        self._processes[name] = await asyncio.create_subprocess_exec(
            *command,
            env={key: value for key, value in os.environ.items() if not key.startswith("BALANCER_")} | environ,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            start_new_session=True,
        )

    async def _listening(self, name: str, host: str, port: int) -> None:
        """Wait until the process accepts connections. Raises DemoError with its last line of output if it does not."""
        process = self._processes[name]
        try:
            async with asyncio.timeout(START_LIMIT):
                while process.returncode is None:
                    try:
                        _, writer = await asyncio.open_connection(host, port)
                    except OSError:
                        await asyncio.sleep(0.05)
                    else:
                        writer.close()
                        return
        except TimeoutError:
            raise DemoError(f"{name} did not listen on {host}:{port} within {START_LIMIT:g} s") from None
        assert process.stderr
        words = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise DemoError(f"{name} ended: {words[-1] if words else f'exit status {process.returncode}'}")

    async def _stop(self, name: str) -> None:
        process = self._processes.pop(name)
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.communicate()

    async def _stop_all(self) -> None:
        # The balancer first, so that no request is on its way to a worker that stops.
        for names in (["balancer"], self.workers, ["redis"]):
            await asyncio.gather(*(self._stop(name) for name in names if name in self._processes))


def require_packages() -> None:
    """Raise DemoError unless the packages are installed that come with the extra ``demo``."""
    for name in ("redis",) if shutil.which("redis-server") else ("redis", "fakeredis"):
        if not find_spec(name):
            raise DemoError(f"the package {name} is missing: pip install 'balancer[demo]'")


def free_port(*hosts: str) -> int:
    """Return a port that is free on each of these addresses (by default 127.0.0.1), for TCP and for UDP.

    Below 32768: from there up Linux gives ports to sockets that name none, between this call and the port's use. No
    other process, nor a later call in this one, gets the port from here before this process ends.
    """
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        if all(_is_free(host, port) for host in hosts or ("127.0.0.1",)) and _reserve(port):
            return port
    raise OSError(f"no free port on {', '.join(hosts)}")


def preferred_port(port: int) -> int:
    """Return this port of 127.0.0.1 if a process can listen on it and none has reserved it, otherwise a free one."""
    try:
        # A server may take a port whose last connections wait for their end, which a plain bind cannot.
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return free_port()
    return port if _reserve(port) else free_port()


def _reserve(port: int) -> bool:
    """Keep a port from other callers until this process ends; return whether it was not reserved before.

    The mark is an abstract Unix socket (unix(7)), which Linux alone has. Elsewhere nothing is reserved.
    """
    if sys.platform != "linux":
        return True
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0balancer-port-{port}")
    except OSError:
        mark.close()
        return False
    mark.detach()  # It stays open as long as the process lives.
    return True


def _is_free(host: str, port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.bind((host, port))
    except OSError:
        return False
    return True


def has_loopback_network() -> bool:
    """Whether all of 127.0.0.0/8 is this machine (Linux), and not 127.0.0.1 alone."""
    return _is_free(WORKER_NETWORK + "1", 0)
