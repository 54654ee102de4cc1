"""One random schedule: the outside of a balancer on a virtual clock, with what holds after every turn of the loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.context import RequestContext, RequestRecord
from balancer.dispatch.interfaces import DirectSink, Sink
from balancer.dispatch.retry import IDEMPOTENT
from balancer.errors import ClientGone, ConnectFailed, ConnectionDied, ResponseTimeout, TruncatedResponse
from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.probe import Verdict
from balancer.telemetry.observer import Observer
from balancer.types import Address
from balancer.upstream.base import PendingResponse, Upstream, UpstreamRequest, UpstreamResponse
from tests.support.virtual import SteppedLoop

# Virtual seconds in which things happen; then the world is at peace, and everything must come to its end.
TROUBLE = 2.5


PATIENCE = 1.0


METHODS = ["GET", "GET", "HEAD", "PUT", "POST", "POST", "PATCH"]


MOODS = ["fine", "fine", "fine", "refuses", "unreachable", "hangs", "drains", "closes", "drops"]


@dataclass
class Container:
    """What runs at an address: its mood, and the exchanges that it has under way."""

    mood: str
    exchanges: set[asyncio.Future[str]] = field(default_factory=set)

    def turn(self, mood: str) -> None:
        self.mood = mood
        if mood in ("refuses", "unreachable"):
            self.break_off("died")

    def break_off(self, how: str) -> None:
        for exchange in self.exchanges:
            _settle(exchange, how)


def _settle(exchange: asyncio.Future[str], how: str) -> None:
    if not exchange.done():
        exchange.set_result(how)


class World(Observer, Upstream):
    """The outside of one schedule; is the balancer's upstream, resolver and probe."""

    def __init__(self, seed: int, loop: SteppedLoop) -> None:
        self.rng = rng = Random(seed)
        self.loop = loop
        self.trouble = True
        self.containers: dict[Address, Container] = {}
        # Who is in DNS, with SRV's priority.
        self.listed: dict[Address, int] = {}
        self.in_flight: dict[bytes, asyncio.Future[None]] = {}
        self.written: Counter[bytes] = Counter()
        self.finished: Counter[bytes] = Counter()
        self.started: Counter[bytes] = Counter()
        # Requests that each member has been given so far.
        self.requests: dict[Member, int] = {}
        self.fault: AssertionError | None = None
        self.limit = rng.choice([0, 0, 1, 2])
        self.settings = Settings(
            resolve_interval=0.3,
            health_interval=0.3,
            queue_timeout=rng.choice([0.0, 0.3, PATIENCE]),
            queue_max=rng.choice([0, 2, 100]),
            connect_timeout=0.2,
            health_timeout=0.3,
            response_timeout=PATIENCE,
            retries=rng.choice([0, 2, 5]),
            retry_status=rng.choice([frozenset(), frozenset({503})]),
            max_requests_per_member=self.limit,
            policy=rng.choice(["round_robin", "least_requests", "random", "hash"]),
            sticky_cookie=rng.choice([None, "member"]),
            slow_start=rng.choice([0.0, 1.0]),
            health_path=rng.choice([None, "/healthz"]),
            health_rise=rng.choice([1, 1, 3]),
        )
        self.balancer = LoadBalancer(
            self.settings, upstream=self, resolve=self.resolve, probe=self.probe, observers=[self],
            clock=loop.time, rng=Random(seed), **self.plug_ins(),
        )  # fmt: skip

    def plug_ins(self) -> dict[str, Any]:
        """What else the balancer is made with."""
        return {}

    # What must never be.

    def check(self) -> None:
        if self.fault:
            raise self.fault
        members = self.balancer.membership
        for member in members.members.values():
            assert member.in_flight >= 0
            assert not self.limit or member.in_flight <= self.limit
        if self.balancer.dispatcher.queue:
            free = [it for it in members.available if self.balancer.dispatcher.admission.has_slot(it)]
            assert not free, "somebody waits while a member is free"

    def follow(self) -> None:
        """Look at the members that have got a request in the step before."""
        for member in {*self.requests, *self.balancer.membership.members.values()}:
            if member.requests > self.requests.get(member, 0):
                self.requests[member] = member.requests
                try:
                    self.occupy(member)
                except AssertionError as error:
                    self.fault = self.fault or error  # The loop would only log it.

    def occupy(self, member: Member) -> None:
        assert member.state in (State.UP, State.SUSPECT) or (member.state is State.DOWN and member.down_by_requests)
        assert self.balancer.membership.members.get(member.address) is member, "a member that left was chosen"
        if self.in_flight and self.rng.random() < 0.05:
            # The worst moment to leave: between being given a member and learning of it.
            self.rng.choice(list(self.in_flight.values())).cancel()

    def done(self, record: RequestRecord) -> None:
        self.finished[record.request.target] += 1

    # The seams.

    def send_nowait(
        self, address: Address, request: Request, head: bytes, body: bytes, repeatable: bool, inform: Any
    ) -> PendingResponse | None:
        container = self.containers.get(address)
        if container is None or container.mood in ("refuses", "unreachable") or self.rng.random() < 0.3:
            return None
        self.written[request.target] += 1
        return _Pending(self, container, UpstreamRequest(request.method, request.target, [], repeatable=True))

    async def send(self, address: Address, request: UpstreamRequest) -> UpstreamResponse:
        container = self.containers.get(address)
        mood = container.mood if container else "unreachable"
        await self.pause(0.01)
        if mood == "refuses":
            raise ConnectFailed("refused", refused=True)
        if container is None or mood == "unreachable" or container.mood == "unreachable":
            await asyncio.sleep(self.settings.connect_timeout)
            raise ConnectFailed("unreachable")
        if mood == "drops" and self.rng.random() < 0.3:
            raise ConnectionDied("closed before it was used", sent=False)
        if request.body:
            while await request.body.read():
                pass
        self.written[request.target] += 1
        return await self.answer(container, request)

    async def answer(self, container: Container, request: UpstreamRequest) -> UpstreamResponse:
        exchange: asyncio.Future[str] = self.loop.create_future()
        container.exchanges.add(exchange)
        if container.mood not in ("hangs", "refuses", "unreachable"):
            how = "dropped" if container.mood == "drops" and self.rng.random() < 0.5 else "answered"
            self.loop.call_later(self.rng.expovariate(20), _settle, exchange, how)
        try:
            async with asyncio.timeout(self.settings.response_timeout):
                how = await exchange
        except TimeoutError:
            raise ResponseTimeout("no response", sent=True) from None
        finally:
            container.exchanges.discard(exchange)
        if how != "answered":
            raise ConnectionDied(how, sent=True)
        return _Response(self, closes=container.mood in ("closes", "drains"))

    def forget(self, address: Address) -> None:
        pass

    def on_member_answered(self, address: Address) -> None:
        pass

    def check_network(self, address: Address) -> None:
        container = self.containers.get(address)
        if container and container.mood == "unreachable":
            for exchange in container.exchanges:
                self.loop.call_later(0.1, _settle, exchange, "the network is silent")

    async def close(self) -> None:
        pass

    async def resolve(self) -> Snapshot:
        await self.pause(0.05)
        lie = self.rng.random() if self.trouble else 1.0
        if lie < 0.1:
            answer = Answer("A", Outcome.UNKNOWN, rcode="SERVFAIL")
        elif lie < 0.2 or not self.listed:
            answer = Answer("A", Outcome.EMPTY, rcode="NXDOMAIN")
        else:
            answer = Answer("A", Outcome.FOUND, frozenset(map(Endpoint, self.listed, self.listed.values())))
        return Snapshot((answer,), self.loop.time())

    async def probe(self, address: Address) -> Verdict:
        await self.pause(0.02)
        container = self.containers.get(address)
        match container.mood if container else "unreachable":
            case "refuses":
                return HealthEvent.REFUSED, "refused"
            case "unreachable":
                await asyncio.sleep(self.settings.connect_timeout)
                return HealthEvent.UNREACHABLE, "unreachable"
            case "hangs" if self.settings.health_path:
                await asyncio.sleep(self.settings.health_timeout)
                return HealthEvent.PROBE_UNANSWERED, "silent"
            case "drains" if self.settings.health_path:
                return HealthEvent.PROBE_DRAINING, "503"
        return HealthEvent.PROBE_OK, "ok"

    async def pause(self, most: float) -> None:
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.random() * most)

    # What happens.

    async def live(self) -> None:
        for number in range(self.rng.randint(0, 3)):
            self.start(Address(f"10.0.0.{number}", 80))
        async with self.balancer, asyncio.TaskGroup() as clients:
            for number in range(self.rng.randint(1, 14)):
                clients.create_task(self.client(b"/%d" % number))
            while self.loop.time() < self.ends - PATIENCE:
                await asyncio.sleep(self.rng.random() * 0.4)
                self.happen()
            self.trouble = False
            for container in self.containers.values():
                container.turn("fine")
        # At peace, nothing of the trouble is left.
        members = self.balancer.membership.members.values()
        assert all(it.in_flight == 0 for it in members)
        assert len(self.balancer.dispatcher.queue) == 0
        for target, count in self.finished.items():
            assert count == 1, f"{target!r} ended {count} times"

    @property
    def ends(self) -> float:
        return self.began + TROUBLE + PATIENCE

    began = 0.0

    def start(self, address: Address) -> None:
        self.containers[address] = Container(self.rng.choice(MOODS))
        self.listed[address] = 0

    def happen(self) -> None:
        address = Address(f"10.0.0.{self.rng.randrange(5)}", 80)
        container = self.containers.get(address)
        if self.rng.random() < 0.1 and (member := self.balancer.members.get(address)):
            if member.ejection:
                self.balancer.restore(member)
            else:
                self.balancer.eject(member, self.rng.random())
        if container is None:
            self.start(address)
        elif self.rng.random() < 0.25:
            container.break_off("died")
            del self.containers[address]
            self.listed.pop(address, None)
        elif self.rng.random() < 0.15:
            if self.listed.pop(address, None) is None:
                self.listed[address] = 0
        elif self.rng.random() < 0.4 and address in self.listed:
            self.listed[address] ^= 1
        else:
            container.turn(self.rng.choice(MOODS))

    async def client(self, target: bytes) -> None:
        rng = self.rng
        await asyncio.sleep(rng.random() * TROUBLE)
        method = rng.choice(METHODS)
        body = _Body(self, rng.randint(1, 4)) if method not in ("GET", "HEAD") else None
        headers: Headers = [(b"cookie", b"member=%x" % rng.getrandbits(64))] if rng.random() < 0.3 else []
        if has_key := rng.random() < 0.3:
            headers.append((b"idempotency-key", b"1"))
        request = Request(method, target, headers, f"192.0.2.{rng.randrange(9)}", body=body)
        sink: _Sink
        if body is None and rng.random() < 0.5:
            sink = direct = _DirectSink(self, target, self.balancer.dispatcher.begin(request))
            visit = asyncio.ensure_future(direct.serve())
        else:
            sink = _Sink(self, target)
            visit = asyncio.ensure_future(self.balancer.dispatcher.handle(request, sink))
        self.in_flight[target] = visit
        visit.add_done_callback(lambda _: self.in_flight.pop(target))
        if rng.random() < 0.15:
            self.loop.call_later(rng.random() * PATIENCE, visit.cancel)
        try:
            await visit
        except (TruncatedResponse, ClientGone, asyncio.CancelledError):
            pass
        else:
            assert sink.ended, "a request came to its end without a response"
        assert visit.done()
        assert self.finished[target] == 1
        may_run_twice = method in IDEMPOTENT or (has_key and self.settings.retry_status)
        assert self.written[target] <= (1 + self.settings.retries if may_run_twice else 1), "a request ran twice"


class _Body:
    trailers = NO_FIELDS

    def __init__(self, world: World, pieces: int) -> None:
        self._world = world
        self._pieces = pieces

    @property
    def ended(self) -> bool:
        return not self._pieces

    async def read(self) -> bytes:
        await self._world.pause(0.05)
        if self._world.rng.random() < 0.02:
            raise ClientGone
        if not self._pieces:
            return b""
        self._pieces -= 1
        return bytes(self._world.rng.choice([1, 40_000]))


class _Response(UpstreamResponse):
    upgrade = b""
    trailers = NO_FIELDS

    def __init__(self, world: World, closes: bool) -> None:
        self.status = 503 if world.rng.random() < 0.1 else 200
        self.headers: Headers = [(b"retry-after", b"%d" % world.rng.randint(0, 2))] if self.status == 503 else []
        self.closes = closes
        self._world = world
        self._pieces = world.rng.randint(0, 3)

    async def wait_for_body(self, within: float) -> None:
        await self._world.pause(within)
        if self._world.rng.random() < 0.02:
            raise ConnectionDied("died behind the head", sent=True)

    async def read(self) -> tuple[bytes, bool]:
        await self._world.pause(0.05)
        if self._world.rng.random() < 0.02:
            raise TruncatedResponse("died in mid-body")
        self._pieces -= 1
        return b"x", self._pieces > 0

    async def write(self, data: bytes) -> None:
        raise AssertionError("nobody switched protocols")

    async def write_eof(self) -> None:
        raise AssertionError("nobody switched protocols")

    async def close(self) -> None:
        pass

    def drop(self) -> None:
        assert self.status in self._world.settings.retry_status


class _Pending(_Response, PendingResponse):
    """A response to a request that was sent at once. It may come whole, in parts, or not."""

    def __init__(self, world: World, container: Container, request: UpstreamRequest) -> None:
        super().__init__(world, closes=False)
        self.listener: Callable[[], None] | None = None
        self.complete = self.started = self._flows = False
        self._answering = world.loop.create_task(world.answer(container, request))
        self._answering.add_done_callback(self._arrived)

    def _arrived(self, answering: asyncio.Task[UpstreamResponse]) -> None:
        if not answering.cancelled() and answering.exception() is None:
            self.closes = answering.result().closes
            self.started = True
            self._go_on(0.5)
        elif self.listener:
            self.listener()

    def _go_on(self, ends: float) -> None:
        """A piece of the body, which is the last with this probability; another one follows, or a task reads on."""
        rng = self._world.rng
        self.complete = rng.random() < ends
        self._flows = not self.complete and rng.random() < 0.7
        if self._flows:
            self._world.loop.call_later(rng.random() * 0.05, self._go_on, 0.8)
        if self.listener:
            self.listener()

    @property
    def is_flowing(self) -> bool:
        return self.complete or self._flows

    def take(self) -> bytes:
        return b"x"

    async def wait_for_head(self) -> None:
        await self._answering


class _Sink(Sink):
    def __init__(self, world: World, target: bytes) -> None:
        self._world = world
        self._target = target
        self.ended = False

    def send_interim(self, status: int, headers: Headers) -> None:
        raise AssertionError("no member sends interim responses")

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        self._world.started[self._target] += 1
        assert self._world.started[self._target] == 1, "two responses to one request"
        await self._world.pause(0.02)

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None:
        assert not self.ended
        if self._world.rng.random() < 0.02:
            raise ClientGone
        await self._world.pause(0.02)
        self.ended = not more

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Any) -> None:
        raise AssertionError("nobody asked for that")


class _DirectSink(_Sink, DirectSink):
    """A client of the front end that needs no task for a request, as long as nothing has to be waited for."""

    def __init__(self, world: World, target: bytes, context: RequestContext) -> None:
        super().__init__(world, target)
        self._context = context
        self._over: asyncio.Future[None] = world.loop.create_future()
        self._task: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        if not self._world.balancer.dispatcher.try_send_nowait(self._context, self, b""):
            self.continue_in_task()
        try:
            await asyncio.shield(self._over)
        except asyncio.CancelledError:
            if self._task is None and not self._over.done():
                self._context.stop_listening()
                self.continue_in_task()
            if self._task:
                self._world.loop.call_soon(self._task.cancel)
            await asyncio.wait([self._over])
            if not self.ended:
                raise

    def on_response_progress(self) -> None:
        self._world.balancer.dispatcher.on_response_progress(self._context, self)
        if self.ended:
            self._over.set_result(None)

    @property
    def is_writable(self) -> bool:
        return self._world.rng.random() < 0.9

    def answer(self, response: PendingResponse, body: bytes) -> None:
        self.begin_response(response)
        self.pass_on(body, False, NO_FIELDS)

    def begin_response(self, response: PendingResponse) -> None:
        self._world.started[self._target] += 1
        assert self._world.started[self._target] == 1, "two responses to one request"

    def pass_on(self, data: bytes, more: bool, trailers: Headers) -> None:
        assert not self._over.done() and self._task is None and not self.ended
        self.ended = not more

    def continue_in_task(self) -> None:
        assert self._task is None
        self._task = self._world.loop.create_task(self._world.balancer.dispatcher.run(self._context, self))
        self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._over.cancel()
        elif error := task.exception():
            self._over.set_exception(error)
        else:
            self._over.set_result(None)


def run(seed: int, loop: SteppedLoop, make: Callable[[int, SteppedLoop], World] = World) -> World:
    world = make(seed, loop)
    world.began = loop.time()
    loop.after_each = world.check
    loop.after_step = world.follow
    loop.run_until_complete(world.live())
    assert not asyncio.all_tasks(loop)
    return world
