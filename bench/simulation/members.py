"""What the simulation makes up of the outside: containers with their queues, and connections to them.

A container has so many workers; whatever they cannot take at once waits in one queue, first come, first served. So
it is known when a request is sent when its answer will be there, and an exchange takes one event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum
from heapq import heapreplace
from typing import TYPE_CHECKING

from balancer.errors import ConnectFailed, ConnectionDied, ResponseTimeout, UpstreamError
from balancer.http.headers import Headers
from balancer.http.request import Request
from balancer.members.health import HealthEvent
from balancer.members.probe import Verdict
from balancer.types import Address
from balancer.upstream.base import PendingResponse, Upstream, UpstreamRequest
from balancer.upstream.connection_pool import KEEPALIVE_SECONDS

if TYPE_CHECKING:
    from bench.simulation.world import World

# The network between balancers and members, one way, in seconds.
DELAY = 0.00025
# A container that drains closes its listener once nobody has asked for so long, at the latest after so long (worker/).
QUIET, QUIET_MOST = 0.1, 3.0
# What Docker leaves it from SIGTERM to SIGKILL.
GRACE = 10.0
# From the end of a container's process until it has left DNS and its address answers nothing any more.
LINGERS = 0.1


class Life(Enum):
    STARTING = "listed in DNS, and refuses connections"
    SERVING = "serves"
    DRAINING = "serves, and says that it is about to go"
    CLOSED = "refuses connections, and finishes what it has"
    GONE = "its address answers nothing"


class Farewell(Enum):
    """What a container does when it is told to stop."""

    DRAINS = "its health path says 503, its answers close their connections, it serves until nobody asks (DESIGN 3.3)"
    CLOSES = "it closes its listener and idle connections at once, and finishes what it has, as most servers do"
    DIES = "it drops everything at once"


class Container:
    """What runs at an address. ``speed``: 1.0 takes the usual time for a request, 0.5 twice that.

    ``got``: requests that it was sent; ``due``: those that would have been its share.
    """

    def __init__(self, world: World, address: Address, speed: float, workers: int) -> None:
        self.address = address
        self.life = Life.STARTING
        self.got = 0
        self.due = 0.0
        # The world's turn from which on ``due`` is still to be counted.
        self.counted = 0.0
        self._world = world
        self._loop = world.loop
        self.speed = speed
        # When each worker will be done with what it has been given, the earliest first.
        self._free = [0.0] * workers
        self._last_arrival = 0.0
        self.exchanges: dict[Exchange, None] = {}

    @property
    def listens(self) -> bool:
        return self.life in (Life.SERVING, Life.DRAINING)

    def take(self, exchange: Exchange) -> None:
        """A request is on its way."""
        loop = self._loop
        now = loop.time()
        if not self.listens:
            loop.call_at(now + 2 * DELAY, exchange.fail, _died())
            return
        self._world.sent_to(self)
        exchange.arrives = self._last_arrival = now + DELAY
        done = max(exchange.arrives, self._free[0]) + self._world.service_time() / self.speed
        heapreplace(self._free, done)
        self.exchanges[exchange] = None
        limit = self._world.settings.response_timeout
        if done + DELAY > now + limit:
            # The member does the work all the same: it cannot see that nobody waits any more.
            exchange.timer = loop.call_at(now + limit, exchange.fail, ResponseTimeout("no response", sent=True))
        else:
            exchange.timer = loop.call_at(done + DELAY, exchange.answered)

    async def start(self, boot: float) -> None:
        """It is in DNS from now on, and listens ``boot`` seconds later."""
        self._world.containers[self.address] = self
        self._world.publish()
        await asyncio.sleep(boot)
        self._turn(Life.SERVING)

    async def stop(self, farewell: Farewell) -> None:
        """From the signal to stop until nothing is left of it."""
        began = self._loop.time()
        if farewell is Farewell.DRAINS:
            self._turn(Life.DRAINING)
            while True:
                closing = min(max(self._last_arrival, began) + QUIET, began + QUIET_MOST)
                if closing <= self._loop.time():
                    break
                await asyncio.sleep(closing - self._loop.time())
        self._turn(Life.CLOSED)
        now = self._loop.time()
        self._loop.call_at(now + DELAY, self._world.drop_idle, self.address)
        if farewell is not Farewell.DIES:
            self._break_off([exchange for exchange in self.exchanges if exchange.arrives > now])
            await asyncio.sleep(min(max(self._free) - now + 2 * DELAY, began + GRACE - now))
        self._break_off(list(self.exchanges))
        await asyncio.sleep(LINGERS)
        self._turn(Life.GONE)
        del self._world.containers[self.address]
        self._world.publish()

    def _break_off(self, exchanges: Iterable[Exchange]) -> None:
        now = self._loop.time()
        for exchange in exchanges:
            exchange.timer.cancel()
            self._loop.call_at(max(exchange.arrives, now) + DELAY, exchange.fail, _died())

    def _turn(self, life: Life) -> None:
        self._world.turns(self, self.life is Life.SERVING, life is Life.SERVING)
        self.life = life


class Exchange(PendingResponse):
    """A request at a member, and the response to it: what ``balancer.upstream.base`` calls a PendingResponse."""

    __slots__ = (
        "_container", "_fault", "_links", "_waiter", "arrives", "closes", "complete", "listener", "started", "timer",
    )  # fmt: skip
    status = 200
    timer: asyncio.TimerHandle
    listener: Callable[[], None] | None

    def __init__(self, links: Links, container: Container) -> None:
        self._links = links
        self._container = container
        self._fault: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.listener = None
        self.arrives = 0.0
        self.started = self.complete = self.closes = False
        container.take(self)

    @property
    def is_flowing(self) -> bool:
        return self.complete

    def answered(self) -> None:
        """The answer has arrived."""
        container = self._container
        del container.exchanges[self]
        self.started = self.complete = True
        self.closes = container.life is not Life.SERVING
        if not self.closes:
            self._links.idle_again(container.address)
        self._tell()

    def fail(self, fault: UpstreamError) -> None:
        """There will be no answer."""
        self._container.exchanges.pop(self, None)
        self._fault = fault
        self._tell()

    def _tell(self) -> None:
        if self.listener:
            self.listener()
        if self._waiter:
            self._waiter.set_result(None)

    async def wait_for_head(self) -> None:
        if not (self.complete or self._fault):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._fault:
            raise self._fault

    def take(self) -> bytes:
        return b"ok"

    async def wait_for_body(self, within: float) -> None:
        pass  # It is there with the head.

    async def read(self) -> tuple[bytes, bool]:
        return b"ok", False

    async def write(self, data: bytes) -> None:
        raise NotImplementedError("no member switches protocols")

    async def write_eof(self) -> None:
        raise NotImplementedError("no member switches protocols")

    async def close(self) -> None:
        pass


class Links(Upstream):
    """One balancer's connections to all members: what ``balancer.upstream.base`` calls an Upstream, and its probe."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        # Since when each idle connection is idle. The one used last is used next, as in ``balancer.upstream``.
        self._idle: dict[Address, list[float]] = {}

    def send_nowait(
        self,
        address: Address,
        request: Request,
        head: bytes,
        body: bytes,
        repeatable: bool,
        inform: Callable[[int, Headers], None],
    ) -> Exchange | None:
        return Exchange(self, self._world.containers[address]) if self._take_idle(address) else None

    async def send(self, address: Address, request: UpstreamRequest) -> Exchange:
        if request.fresh or not self._take_idle(address):
            await self._connect(address)
        exchange = Exchange(self, self._world.containers[address])
        await exchange.wait_for_head()
        return exchange

    async def probe(self, address: Address) -> Verdict:
        """GET of the health path, on a connection of its own; it is answered beside the queue, and at once."""
        try:
            await self._connect(address)
        except ConnectFailed as failure:
            return (HealthEvent.REFUSED if failure.refused else HealthEvent.UNREACHABLE), str(failure)
        draining = self._world.containers[address].life is Life.DRAINING
        await asyncio.sleep(2 * DELAY)
        return (HealthEvent.PROBE_DRAINING, "503") if draining else (HealthEvent.PROBE_OK, "200")

    def idle_again(self, address: Address) -> None:
        self._idle.setdefault(address, []).append(self._loop.time())

    def forget(self, address: Address) -> None:
        self._idle.pop(address, None)

    def on_member_answered(self, address: Address) -> None:
        pass

    def check_network(self, address: Address) -> None:
        # Members die or leave here, but never fall silent with a request that they have.
        pass

    async def close(self) -> None:
        pass

    def _take_idle(self, address: Address) -> bool:
        idle = self._idle.get(address)
        if not idle:
            return False
        if idle.pop() > self._loop.time() - KEEPALIVE_SECONDS:
            return True
        idle.clear()  # The others have been idle for longer.
        return False

    async def _connect(self, address: Address) -> None:
        if address not in self._world.containers:
            await asyncio.sleep(self._world.settings.connect_timeout)
            raise ConnectFailed("no connection in time")
        await asyncio.sleep(2 * DELAY)
        container = self._world.containers.get(address)
        if not (container and container.listens):
            raise ConnectFailed("connection refused", refused=True)


def _died() -> ConnectionDied:
    return ConnectionDied("the connection was closed", sent=True)
