"""A world whose client speaks HTTP/2, and what must not have happened in it."""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn

from balancer.frontend.http2_connection import Http2Connection
from tests.support.http2_reader import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    Fields,
    Response,
    ServerFrames,
)
from tests.support.judge import Seen, leaks, requests_seen
from tests.support.pipes import Pipe, PipeLoop
from tests.support.world import LEAVING, LINGERING, RESPONSE_TIMEOUT, World

# What zttp lets a client have under way, and bytes that may wait for one that reads nothing: the windows of all of its
# streams together are 64 KiB, and frames that need an answer are not read once something waits.
STREAMS_MAX = 128
UNSENT_MAX = 512 * 1024


class Http2Client:
    """A connection of HTTP/2 whose frames are made by hand."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.left = False
        self.got = ServerFrames()
        self.protocol: Http2Connection
        # Methods and targets of the requests that were made of lines, by stream; None where there were two.
        self.asked: dict[int, tuple[bytes, bytes] | None] = {}
        # Whether nothing else was sent: no field block and no frame that was not made of a piece.
        self.made = True
        # Bodies, and streams that have ended.
        self.bodies: dict[int, bytes] = {}
        self.closed: set[int] = set()
        self._sent = b""
        self._at = len(PREFACE)
        # Streams whose head has been sent whole, and those that the client has reset.
        self.begun: set[int] = set()
        self.cancelled: set[int] = set()

    def send(self, data: bytes) -> None:
        if not self.left and data:
            self._sent += data
            self._note_streams()
            self.pipe.send(data)

    def ask(self, stream: int, fields: Fields) -> None:
        """Note a request that is about to be sent."""
        known = dict(fields)
        request = known.get(b":method", b""), known.get(b":path", b"")
        self.asked[stream] = None if stream in self.asked else request

    def leave(self, reset: bool = False) -> None:
        self.left = self.left or not self.pipe.ended
        if reset:
            self.pipe.reset()
        else:
            self.pipe.send_eof()

    def _note_streams(self) -> None:
        """Note the streams that what was sent opens."""
        while len(self._sent) >= self._at + 9:
            head = self._sent[self._at : self._at + 9]
            if len(self._sent) < self._at + 9 + int.from_bytes(head[:3]):
                return
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF
            self.got.asked.add(stream)
            payload = self._sent[self._at + 9 : self._at + 9 + int.from_bytes(head[:3])]
            if kind == DATA and stream not in self.closed:
                self.bodies[stream] = self.bodies.get(stream, b"") + payload
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.closed.add(stream)
            if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS:
                self.begun.add(stream)
            elif kind == RST_STREAM:
                self.cancelled.add(stream)
            self._at += 9 + int.from_bytes(head[:3])

    def unanswered(self) -> set[int]:
        """Return the streams that still wait for an end, on a connection that has none."""
        if self.left or self.pipe.ended or self.got.goaway:
            return set()
        done = {stream for stream, response in self.got.responses.items() if response.ended or response.reset}
        return self.begun - self.cancelled - done


class Http2World(World):
    """``http2_client`` makes the one client that there is."""

    def __init__(self, loop: PipeLoop, *, answering: bool = True) -> None:
        super().__init__(loop, answering=answering, tls=True)
        self._config = uvicorn.Config(
            self.balancer, interface="asgi3", lifespan="off", log_config=None, proxy_headers=False,
            server_header=False, date_header=False, ws="none",
        )  # fmt: skip
        self._config.load()
        self.http2: Http2Client

    def http2_client(self) -> Http2Client:
        pipe = Pipe(self.loop, ("10.1.0.1", 1024), lambda _, data: self.http2.got.feed(data), tls=True)
        self.http2 = client = Http2Client(pipe)

        def accept() -> None:
            place = self.front.places.take("10.1.0.1", self.loop.time())
            assert place
            client.protocol = Http2Connection(self.front, self._config, place)
            pipe.connect(client.protocol)

        self.loop.call_soon(accept)
        self.loop.turn()
        return client

    def member_says(self, data: bytes, ends: bool) -> None:
        """Have the member that was written to last send this."""
        links = [it for it in self.links if it.pipe.writes and not it.pipe.lost and not it.left]
        if not links:
            return
        link = max(links, key=lambda it: it.pipe.writes[-1][2])
        link.scripted = True
        link.pipe.send(data)
        if ends:
            link.left = True
            link.pipe.send_eof()


def finish(world: Http2World) -> list[str]:
    """Bring a world to its end. Everything that must not be, in words."""
    found: list[str] = []
    client = world.http2
    world.peace()
    client.pipe.take()
    world.settle()
    for _ in range(4):
        if client.unanswered():
            world.loop.wait(2 * RESPONSE_TIMEOUT + 1)
    if streams := client.unanswered():
        found.append(f"a request has no answer and no end; {streams}")
    client.leave()
    world.loop.wait(LEAVING)
    client.leave(reset=True)
    world.loop.wait(LINGERING)
    if not client.pipe.lost:
        world.loop.wait(2 * RESPONSE_TIMEOUT + 1)
    found += leaks(world)
    world.close()
    if not client.pipe.lost:
        found.append("the connection of the client is left open")
    found += world.trouble + client.got.faults
    seen = requests_seen(world, found)
    for it in seen:
        if len(it.request.values(b"host")) != 1:
            found.append(f"a member got a request without one Host: {it.request}")
        if client.made and not any(_is_sent(it, client, stream) for stream in client.asked):
            found.append(f"a member got a request that was not sent; {it.request}")
    for stream, request in client.asked.items():
        response = client.got.responses.get(stream)
        if request and response and response.status and not response.value(b"x-balancer-error"):
            found += _faults(request, response, seen)
    return found


def _is_sent(seen: Seen, client: Http2Client, stream: int) -> bool:
    """Whether what a member saw may be the request of this stream."""
    request, asked, body = seen.request, client.asked[stream], client.bodies.get(stream, b"")
    if asked is None:
        return True
    if (request.method, request.target) != asked:
        return False
    # Of a body with a length, nobody can tell before its end that more is to come.
    whole = request.values(b"content-length") or (request.body == body and stream in client.closed)
    return body.startswith(request.body) and (not request.complete or bool(whole))


def _faults(request: tuple[bytes, bytes], response: Response, seen: Sequence[Seen]) -> list[str]:
    """What is wrong with a response as the one that a member gave to this very request."""
    mine = [it for it in seen if (it.request.method, it.request.target) == request]
    if not mine:
        return [f"got a response to what no member saw; {request} {response}"]
    if not any(_fits(response, it) for it in mine):
        return [f"got another response than its member gave; {request} {response}"]
    return []


def _fits(response: Response, seen: Seen) -> bool:
    answer = seen.answer
    if answer.error or not answer.messages:
        return bool(answer.error)  # The reference parser is stricter there.
    given = answer.messages[0]
    if response.ended and not response.reset and not given.complete:
        return False
    return response.status == given.status and given.body.startswith(response.body)
