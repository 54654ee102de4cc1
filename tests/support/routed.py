"""A balancer with several pools on loopback, and members that say their names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from balancer.config.settings import Settings
from balancer.dispatch.context import RequestRecord
from balancer.frontend.client_registry import ClientRegistry
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import State
from balancer.process.sockets import listen
from balancer.routing.parse import read
from balancer.routing.pools import Pools
from balancer.telemetry.observer import Observer
from balancer.telemetry.stats import Stats
from balancer.types import Address
from balancer.upstream.base import Timeouts
from tests.support import wire
from tests.support.scripted import ScriptedResolver
from tests.support.wire import Connection, Member, connected, eventually


def named(name: str, gate: asyncio.Event | None = None) -> wire.Script:
    """A member that says its name, on any number of connections; with a gate, once that is open."""

    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await connection.exactly(int(line.partition(b":")[2]))
            if gate:
                await gate.wait()
            body = b"" if head.startswith(b"HEAD") else name.encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name) + body)

    return script


class Recorder(Observer):
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def done(self, record: RequestRecord) -> None:
        self.records.append(record)


class Routed:
    """A balancer with routes. ``resolvers``: what DNS says of each alias; ``file``: where its routes are."""

    def __init__(self, balancer: Pools, address: Address, file: Path, resolvers: dict[str, ScriptedResolver]) -> None:
        self.pools = balancer
        self.address = address
        self.file = file
        self.resolvers = resolvers
        self.recorder = Recorder()

    @property
    def records(self) -> list[RequestRecord]:
        return self.recorder.records

    def client(self) -> AbstractAsyncContextManager[Connection]:
        return connected(self.address)

    async def ask(
        self, target: str = "/", host: str = "a", method: str = "GET", more: str = "", body: bytes = b""
    ) -> str:
        """The answer to one request on a connection of its own, to its end."""
        async with self.client() as client:
            head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"
            await client.send(head.encode("latin-1") + body)
            return (await client.to_end()).decode()

    async def name(self, target: str = "/", host: str = "a") -> str:
        """Who answers."""
        return (await self.ask(target, host)).rpartition("\r\n")[2]

    def pool(self, name: str) -> LoadBalancer:
        return {it.name: it for it in self.pools.current()}[name]

    async def reload(self, text: str) -> None:
        """Change the file, and wait until that has had its effect."""
        self.file.write_text(text)
        self.pools.reload()
        await eventually(lambda: self.pools._reloading is None)

    async def up(self) -> None:
        await eventually(
            lambda: (
                all(
                    member.state is State.UP for it in self.pools.current() for member in it.membership.members.values()
                )
                and all(it.membership.members for it in self.pools.current())
            )
        )


@asynccontextmanager
async def routed(
    folder: Path, text: str, wait: bool = True, members: dict[str, Member | Address] | None = None, **settings: Any
) -> AsyncIterator[Routed]:
    """A balancer with these routes. ``members`` by alias; where none are given, "one" and "two" have one each."""
    file = folder / "routes.toml"
    file.write_text(text)
    async with AsyncExitStack() as stack:
        if members is None:
            members = {it: await stack.enter_async_context(Member(named(it))) for it in ("one", "two")}
        addresses = {alias: it.address if isinstance(it, Member) else it for alias, it in members.items()}
        resolvers = {alias: ScriptedResolver(it) for alias, it in addresses.items()}
        effective = Settings(**{"routes": str(file), **wire.defaults, **settings})
        recorder = Recorder()

        def make(pool: Settings) -> LoadBalancer:
            limits = Timeouts(pool.connect_timeout, pool.response_timeout, pool.stream_idle_timeout)
            return LoadBalancer(
                pool, resolve=resolvers[pool.alias], upstream=wire.upstream_class(limits), observers=[recorder]
            )

        table = read(effective)
        assert table
        balancer = Pools(effective, table, make, observers=[recorder], stats=Stats())
        sock = listen("BIND", Address("127.0.0.1", 0))
        address = Address("127.0.0.1", sock.getsockname()[1])
        async with balancer:
            clients = ClientRegistry(balancer.proxy, effective) if wire.edge else None
            async with wire.listening(balancer, sock, clients):
                running = Routed(balancer, address, file, resolvers)
                running.recorder = recorder
                if wait:
                    await running.up()
                yield running


@asynccontextmanager
async def slow_one(folder: Path, gate: asyncio.Event) -> AsyncIterator[tuple[Member, Routed]]:
    """All goes to "one", whose member answers once the gate is open; "two" is there to go to."""
    async with (
        Member(named("slow", gate)) as slow,
        Member(named("two")) as two,
        routed(folder, "[one]\n", members={"one": slow, "two": two}) as running,
    ):
        yield slow, running


TWO = """
[one]
host = ["a", "*.a"]

[two]
path = "/two"
"""
