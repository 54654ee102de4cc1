"""Stop without losing a request: a drain for any ASGI application that uvicorn serves.

``drain.run(app, host="0.0.0.0", port=80)`` takes the place of ``uvicorn.run``. On SIGTERM or SIGINT:

1. the health path answers 503, and every response carries ``Connection: close``, so that a
   balancer takes its requests elsewhere;
2. the listener stays open until no request has come for QUIET_SECONDS, QUIET_LIMIT_SECONDS at most; uvicorn by itself
   closes it first thing, while clients are still on their way;
3. then what never ends by itself is ended so that the client notices and comes back to another worker:
   server-sent events after a whole event and with a complete body, WebSockets with code 1012;
4. what else is in flight is finished, until LIMIT_SECONDS after the signal: what is going on even then
   is cut off. The process exits with status 0, before Docker kills it after ten seconds.

A second signal skips to step 3, a third cuts off what is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.1
QUIET_LIMIT_SECONDS = 3.0
# For the rest of an event that is half sent, and for the clients' part of the closing handshake of WebSockets.
END_SECONDS = 1.5
LIMIT_SECONDS = 8.0
# After LIMIT_SECONDS, for applications to notice that they were cut off, and to end.
NOTICE_SECONDS = 0.5
# Seconds of pause after each piece that an application sends in vain, so that other tasks have their turns.
DROP_SECONDS = 0.01
# Seconds between two checks whether there is anything left to wait for.
POLL_SECONDS = 0.01
# "Service restart": browsers and libraries connect again.
CLOSE_CODE = 1012

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class EventStream:
    """The ``send`` of a response of server-sent events, which can be ended from outside the application."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._sent = b"\n\n"  # the last bytes of the body, enough to see whether an event is complete
        self._ending = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        async with self._turn:
            if self.ended:
                await asyncio.sleep(DROP_SECONDS)
            elif message["type"] == "http.response.body":
                await self._pass_on(message.get("body", b""), message.get("more_body", False))
            else:
                await self._send(message)

    async def end(self) -> None:
        """Complete the body after a whole event; to the application, its client has then left."""
        self._ending = True
        async with self._turn:
            await self._pass_on(b"", more_body=True)
        if not self.ended:
            await asyncio.sleep(END_SECONDS)
            async with self._turn:
                # Clients drop half an event at the end (HTML Standard, 9.2.6).
                await self._pass_on(b"", more_body=False)

    async def _pass_on(self, body: bytes, more_body: bool) -> None:
        if self.ended:
            return
        if self._ending and (size := end_of_event(self._sent, body)) is not None:
            body, more_body = body[:size], False
        self._sent = (self._sent + body)[-4:]
        self.ended = not more_body
        await self._send({"type": "http.response.body", "body": body, "more_body": more_body})


# An event ends with an empty line; lines end with CR LF, LF or CR (HTML Standard, 9.2.5).
_EMPTY_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


def end_of_event(sent: bytes, body: bytes) -> int | None:
    """Return the first place in ``body`` where no event is incomplete, if ``sent`` came before it, or None."""
    data = sent + body
    for start in range(len(sent) + 1):
        if (found := _EMPTY_LINE.search(data, start)) and found.end() >= len(sent):
            return found.end() - len(sent)
    return None


class WebSocket:
    """The ``send`` of a WebSocket, which can be closed from outside the application."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._closed = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        async with self._turn:
            if not self.ended:
                self._closed = message["type"] == "websocket.close"
                await self._send(message)
            elif message["type"] == "websocket.send":
                raise ConnectionAbortedError("the WebSocket was closed: the server stops")

    async def end(self) -> None:
        """Begin the closing handshake; uvicorn handles the client's part of it."""
        async with self._turn:
            if not self._closed:
                self.ended = True
                try:
                    await self._send({"type": "websocket.close", "code": CLOSE_CODE, "reason": "the server stops"})
                except OSError:
                    pass  # the client has left


class Drain:
    """Middleware that announces the coming end to every client, once ``draining`` is set."""

    def __init__(self, app: App, health_path: str = "/healthz") -> None:
        self._app = app
        self._health_path = health_path
        self._streams: set[EventStream | WebSocket] = set()
        self._ending: set[asyncio.Task[None]] | None = None
        self.draining = False
        self.cut_off = False
        self.last_request = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901 - the life of one request, in order
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        stream: EventStream | WebSocket | None = WebSocket(send) if scope["type"] == "websocket" else None

        async def send_with_notice(message: Message) -> None:
            nonlocal stream
            if self.cut_off:
                await asyncio.sleep(DROP_SECONDS)
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if is_event_stream(headers):
                    stream = EventStream(send)
                if self.draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await (stream or send)(message)
            if stream and message["type"] in ("http.response.start", "websocket.accept"):
                self._streams.add(stream)
                if self._ending is not None:
                    self._ending.add(asyncio.create_task(stream.end()))

        if scope["path"] != self._health_path:
            self.last_request = time.monotonic()
        elif self.draining:
            await send_with_notice(
                {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": b"draining\n"})
            return
        try:
            await self._app(scope, receive, send_with_notice)
        except asyncio.CancelledError:
            if not self.cut_off:
                raise
        except Exception as error:
            if stream is None or not stream.ended:
                raise
            log.warning("%s failed after its end: %r", scope["path"], error)
        finally:
            if stream:
                self._streams.discard(stream)

    async def wait_until_quiet(self) -> None:
        """Begin to drain; return once clients have had their chance to notice."""
        self.draining = True
        self.last_request = time.monotonic()
        limit = self.last_request + QUIET_LIMIT_SECONDS
        while (left := min(self.last_request + QUIET_SECONDS, limit) - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def end_streams(self) -> None:
        """End server-sent events and WebSockets; return when that is done, after END_SECONDS at most."""
        self.draining = True
        self._ending = {asyncio.create_task(stream.end()) for stream in self._streams}
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_SECONDS)


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response is server-sent events whose ends can be found: they are not compressed."""
    found = {name.lower(): value for name, value in headers}
    return found.get(b"content-type", b"").startswith(b"text/event-stream") and b"content-encoding" not in found


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on the first signal and exits with 0.

    By itself, uvicorn closes the listener at once, and waits without a limit for what is in
    flight. In the end it dies of the signal (exit status 143).
    """

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have SIGTERM and SIGINT begin the drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        yield

    def _signalled(self) -> None:
        loop = asyncio.get_running_loop()
        if self._draining is None:
            self._draining = loop.create_task(self._drain_and_exit())
            loop.call_later(LIMIT_SECONDS, self._cut_off)
            # Threads (those of plain functions that serve requests) cannot be cut off, and Python waits for them.
            last_resort = threading.Timer(LIMIT_SECONDS + 2 * NOTICE_SECONDS, os._exit, (0,))
            last_resort.daemon = True
            last_resort.start()
        elif not self.should_exit:
            self.should_exit = True
        else:
            self._cut_off()

    async def _drain_and_exit(self) -> None:
        await self._drain.wait_until_quiet()
        self.should_exit = True

    async def main_loop(self) -> None:
        """Run until it is time to exit."""
        # uvicorn checks ten times a second whether to exit. While no other worker takes requests, clients wait for
        # that.
        ticks = 0
        while not await self.on_tick(ticks % 10):
            await asyncio.sleep(POLL_SECONDS if self._draining else 0.1)
            ticks += 1

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish connections and streams, then stop the application."""
        # A client that is to connect again must not come back here.
        for server in self.servers:
            server.close()
        until = time.monotonic() + END_SECONDS
        await self._drain.end_streams()
        # uvicorn would close WebSockets without waiting for the client's part of the handshake. With something from the
        # client yet unread the kernel then sends a reset, which takes the close code along.
        while self._has_websockets() and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
        # As uvicorn does here, without its tenths of a second.
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(POLL_SECONDS)
        await self.lifespan.shutdown()

    def _has_websockets(self) -> bool:
        kind = self.config.ws_protocol_class
        return kind is not None and any(isinstance(connection, kind) for connection in self.server_state.connections)

    def _cut_off(self) -> None:
        self._drain.cut_off = True
        connections = list(self.server_state.connections)
        words = "1 connection is" if len(connections) == 1 else f"{len(connections)} connections are"
        log.warning("the time to finish is over: %s cut off", words)
        for connection in connections:
            connection.transport.abort()
        asyncio.get_running_loop().call_later(NOTICE_SECONDS, self._cancel)

    def _cancel(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()


def run(app: App, *, host: str, port: int, health_path: str = "/healthz", **options: Any) -> int:
    """Serve ``app`` until a signal, then drain; return the exit status. ``options`` go to ``uvicorn.Config``."""
    drain = Drain(app, health_path)
    settings: dict[str, Any] = {"access_log": False, "log_level": "warning"} | options
    server = DrainingServer(uvicorn.Config(drain, host=host, port=port, **settings), drain)
    server.run()
    return 0 if server.started else 1
