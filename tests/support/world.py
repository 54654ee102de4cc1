"""The balancer between clients and members that are scripts, on pipes: see ``tests.support.pipes``.

Whoever drives a world decides every byte and every order of events from outside the loop; ``finish`` brings it to
its end and ``tests.support.judge`` says what must not have happened.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from random import Random
from typing import Any

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.frontend.client_registry import ClientRegistry
from balancer.frontend.http1_connection import Http1Connection
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import HealthEvent
from balancer.members.probe import Verdict
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.pipes import Pipe, PipeLoop
from tests.support.reader import Message, Requests, Responses

MEMBERS = (Address("10.2.0.1", 80), Address("10.2.0.2", 80))

# In virtual seconds. The balancer's own limits for clients are constants of its front end.
RESPONSE_TIMEOUT = 5.0
# A client that has closed its side is gone by then (linger, half-closed, and a look once a second), and with it what
# was done for it at a member: not only once that member's time is up.
LEAVING = 3.0
# After a reset: what a member still gets to end its own direction of a tunnel.
LINGERING = 1.5


class Client:
    """One client connection. ``left``: the client has closed its side, or reset, before the balancer ended its own."""

    def __init__(self, pipe: Pipe, host: str) -> None:
        self.pipe = pipe
        self.host = host
        self.sent = bytearray()
        # What was sent, and what came back, read by the reference parser.
        self.asked = Requests()
        self.got = Responses(self.method)
        self.left = False

    def method(self, index: int) -> bytes:
        return self.asked.messages[index].method if index < len(self.asked.messages) else b"GET"

    def send(self, data: bytes) -> None:
        if not self.left:
            self.sent += data
            self.asked.feed(data)
            self.pipe.send(data)

    def leave(self, reset: bool = False) -> None:
        self.left = self.left or not self.pipe.ended
        if reset:
            self.pipe.reset()
        else:
            self.pipe.send_eof()


class Link:
    """One connection to a member. ``honest``: answered requests, of those that the member has seen whole."""

    def __init__(self, pipe: Pipe, member: Address) -> None:
        self.pipe = pipe
        self.member = member
        self.requests = Requests()
        self.answered = 0
        # The script has sent something of its own, so that it must answer everything.
        self.scripted = False
        self.left = False

    @property
    def waiting(self) -> bool:
        """Whether a request has begun that nothing was sent for yet."""
        begun = self.pipe.writes[-1][1] if self.pipe.writes else 0
        return bool(self.requests.messages) and len(self.pipe.delivered) == begun and not self.pipe.lost


class World:
    """``answering``: members answer by themselves. ``limit``: MAX_REQUESTS_PER_MEMBER. ``stats``: figures of it all."""

    def __init__(
        self,
        loop: PipeLoop,
        *,
        answering: bool = True,
        tls: bool = False,
        limit: int = 0,
        stats: Stats | None = None,
    ) -> None:
        self.loop = loop
        self.answering = answering
        self.tls = tls
        # Streams of events may have been ended, complete, by the balancer itself.
        self.going_away = False
        self.mood = "fine"  # or "refuses", "silent"
        self.trouble: list[str] = []
        self.clients: list[Client] = []
        self.links: list[Link] = []
        self._tasks: list[asyncio.Task[Any]] = []
        loop.dial = self._dial
        loop.set_exception_handler(self._raised)
        loop.set_task_factory(self._task)
        self._log = _Errors(self.trouble)
        self.balancer = LoadBalancer(
            Settings(
                resolve_interval=60,
                health_interval=60,
                queue_timeout=1,
                connect_timeout=0.5,
                response_timeout=RESPONSE_TIMEOUT,
                stream_idle_timeout=RESPONSE_TIMEOUT,
                max_requests_per_member=limit,
            ),
            resolve=self._resolve,
            probe=self._probe,
            clock=loop.time,
            rng=Random(0),
            stats=stats,
        )
        # The same request is the same to the byte wherever it comes.
        self.balancer.dispatcher._new_id = lambda: b"id"
        self.balancer.identity = "world"
        self.front = ClientRegistry(self.balancer.proxy, self.balancer.settings)

    def open(self) -> World:
        logging.getLogger().addHandler(self._log)
        self.loop.run_until_complete(self.balancer.__aenter__())
        self.loop.settle()
        while len(self.balancer.membership.available) < len(MEMBERS):
            self.loop.wait(0.01)
        return self

    # What clients do.

    def client(self) -> Client:
        host = f"10.1.0.{len(self.clients) + 1}"
        pipe = Pipe(self.loop, (host, 1024), lambda _, data: client.got.feed(data), tls=self.tls)
        client = Client(pipe, host)
        self.clients.append(client)

        def accept() -> None:
            place = self.front.places.take(host, self.loop.time())
            assert place
            pipe.connect(Http1Connection(self.front, place))

        self.loop.call_soon(accept)
        self.loop.turn()
        return client

    # What members do.

    def _dial(self, host: str, port: int) -> Pipe | None:
        if self.mood == "refuses":
            raise ConnectionRefusedError(111, "Connection refused")
        if self.mood == "silent":
            return None
        pipe = Pipe(self.loop, (host, port), lambda _, data: self._arrived(link, data))
        link = Link(pipe, Address(host, port))
        self.links.append(link)
        return pipe

    def _arrived(self, link: Link, data: bytes) -> None:
        link.requests.feed(data)
        if self.answering:
            self.loop.call_soon(self.answer, link)

    def answer(self, link: Link) -> None:
        """Answer, as an honest member does, what has come whole and has no answer yet."""
        whole = link.requests.whole
        while link.answered < len(whole) and not (link.scripted or link.left):
            request = whole[link.answered]
            link.answered += 1
            data, ends = honest(request)
            link.pipe.send(data)
            if ends:
                link.left = True
                link.pipe.send_eof()

    def answer_all(self) -> None:
        for link in self.links:
            self.answer(link)

    async def _resolve(self) -> Snapshot:
        answer = Answer("A", Outcome.FOUND, frozenset(map(Endpoint, MEMBERS)))
        return Snapshot((answer,), self.loop.time())

    async def _probe(self, address: Address) -> Verdict:
        if self.mood == "fine":
            return HealthEvent.PROBE_OK, "accepts connections"
        return HealthEvent.REFUSED, "connection refused"

    # The end.

    def settle(self) -> None:
        self.loop.settle()

    def peace(self) -> None:
        """From here on everybody behaves: reads, accepts, answers. Whatever has been asked for gets its answer."""
        self.mood = "fine"
        self.answering = True
        for link in self.links:
            link.pipe.take()
            if link.waiting:
                link.scripted = False
                link.answered = max(0, len(link.requests.messages) - 1)
            self.loop.call_soon(self.answer, link)
        for client in self.clients:
            client.pipe.take()
        self.loop.settle()

    def leave(self) -> None:
        """All clients leave, first by closing their side, then for good."""
        for client in self.clients:
            client.leave()
        self.loop.wait(LEAVING)
        for client in self.clients:
            client.leave(reset=True)
        self.loop.wait(LINGERING)
        if not all(it.pipe.lost and b"websocket" not in it.sent.lower() for it in self.clients):
            # Where reading is paused, for the sake of the request before, nobody can see a client leave; and one that
            # leaves during a WebSocket handshake is seen by a watch that goes by the real clock.
            self.loop.wait(2 * RESPONSE_TIMEOUT + 1)

    def close(self) -> None:
        logging.getLogger().removeHandler(self._log)
        self.loop.run_until_complete(self.balancer.__aexit__(None, None, None))
        self.loop.settle()
        if left := list(asyncio.all_tasks(self.loop)):
            self.trouble.append(f"tasks are left: {left}")
            for task in left:
                task.cancel()
            self.loop.settle()
        for task in self._tasks:
            # What nobody has asked a failed task for would be logged, sooner or later.
            if task.done() and not task.cancelled() and task._log_traceback:
                self.trouble.append(f"a task failed and nobody knows: {task.exception()!r}")
        self._tasks.clear()
        for pipe in [it.pipe for it in self.links] + [it.pipe for it in self.clients]:
            if not pipe.lost:
                self.trouble.append(f"a connection is left open: {pipe.get_extra_info('peername')}")
        # Timers that are still set belong to nobody any more.
        for timer in self.loop._scheduled:  # type: ignore[attr-defined]
            timer.cancel()

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        self._tasks.append(task)
        return task

    def _raised(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        who = type(context["protocol"]).__name__ if "protocol" in context else "the loop"
        self.trouble.append(f"{who}: {context['message']}: {context.get('exception')!r}")


def honest_text(request: Message) -> bytes:
    """What only this request can have for an answer."""
    return b"<%b %b %d %d>" % (request.method, request.target, len(request.body), zlib.crc32(request.body))


def honest(request: Message) -> tuple[bytes, bool]:
    """The response of an honest member, and whether the connection ends with it."""
    text = honest_text(request)
    shape = zlib.crc32(request.target) % 6
    length = b"content-length: %d\r\n\r\n" % len(text)
    if request.method == b"HEAD":
        return b"HTTP/1.1 200 OK\r\n" + length, False
    if shape == 0:
        half = len(text) // 2
        chunks = (b"%x;a=b\r\n%b\r\n" % (len(it), it) for it in (text[:half], text[half:]))
        end = b"0\r\nx-end: 1\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(chunks) + end, False
    if shape == 1:
        return b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + text, True
    if shape == 2:
        return b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n" + length + text, False
    return b"HTTP/1.1 200 OK\r\n" + length + text, False


class _Errors(logging.Handler):
    """Log lines that somebody would have to look at."""

    def __init__(self, trouble: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._trouble = trouble

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio":
            return  # Another loop's, of a test before: this one's has a handler of its own.
        # uvicorn's words for a WebSocket handshake that was refused, and for a response that its member broke off.
        if not record.getMessage().startswith("ASGI callable returned without completing"):
            self._trouble.append(f"logged: {record.getMessage()}")
