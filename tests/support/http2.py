"""HTTP/2 from both ends: a member that says what it was asked, and a client that sends what a test wants sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

from balancer.types import Address
from tests.support.wire import LIMIT, Connection


@asynccontextmanager
async def serve_http2() -> AsyncIterator[Address]:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    connection.initiate_connection()
    try:
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    fields = dict(event.headers or [])
                    text = b"HTTP/2 %b %b for %b" % (fields[b":method"], fields[b":path"], fields[b":authority"])
                    assert event.stream_id
                    status = (
                        fields[b":path"].removeprefix(b"/status/")[:3] if b"/status/" in fields[b":path"] else b"200"
                    )
                    connection.send_headers(event.stream_id, [(b":status", status)])
                    connection.send_data(event.stream_id, text, end_stream=True)
            writer.write(connection.data_to_send())
    except ConnectionError:
        pass
    finally:
        writer.close()


@dataclass
class Answer:
    """What a client has got of a response. ``reset``: the code with which the server broke it off."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    informational: list[int] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None


class Http2Client:
    """A client on a connection of its own that shows each frame's doing. ``window``: what it lets a server send."""

    def __init__(self, connection: Connection, window: int = 1 << 20) -> None:
        self.connection = connection
        self.answers: dict[int, Answer] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.settings: dict[int, int] = {}
        # Whether it makes room again for what it has read, and whether the server has its settings.
        self.acknowledges = True
        self.acknowledged = False
        self.ended = False
        # Bytes of bodies.
        self.sent = 0
        # What is wrong is for the server to find.
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        # The package ends everything at a GOAWAY, but RFC 9113 section 6.8 has the streams under way go on.
        machine, opened = self.h2.state_machine, h2.connection.ConnectionState.CLIENT_OPEN
        goaway = h2.connection.ConnectionInputs.RECV_GOAWAY
        machine._transitions = machine._transitions | {(opened, goaway): (None, opened)}
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        if window > 65535:
            self.h2.increment_flow_control_window(window)

    async def begin(self) -> None:
        """Send what a connection begins with, and wait until it is in force."""
        await self.flush()
        while not self.acknowledged and not self.ended:
            await self.read()

    async def flush(self) -> None:
        await self.connection.send(self.h2.data_to_send())

    async def ask(
        self, *fields: tuple[bytes, bytes], method: bytes = b"GET", path: bytes = b"/", end: bool = True
    ) -> int:
        """Send a request's head; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", b"a"), (b":path", path)]
        return await self.ask_raw([*head, *fields], end, stream)

    async def ask_raw(self, fields: list[tuple[bytes, bytes]], end: bool = True, stream: int = 0) -> int:
        stream = stream or self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, fields, end_stream=end)
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Send a body, as the server makes room for it, until it breaks the stream off."""
        answer = self.answers[stream]
        left = memoryview(data)
        while left and answer.reset is None:
            size = min(len(left), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if size:
                self.h2.send_data(stream, bytes(left[:size]), end_stream=end and size == len(left))
                self.sent += size
                left = left[size:]
                await self.flush()
            else:
                await self.read()

    async def answer(self, stream: int) -> Answer:
        """The whole answer, or what there is of one that was broken off."""
        answer = self.answers[stream]
        while not answer.ended and answer.reset is None and not self.ended:
            await self.read()
        return answer

    async def get(self, path: str) -> Answer:
        return await self.answer(await self.ask(path=path.encode()))

    async def read(self) -> None:  # noqa: C901 - one case for each kind of event
        """Take in what the server has sent since the last time, or wait for something."""
        async with asyncio.timeout(LIMIT):
            try:
                data = await self.connection.reader.read(65536)
            except ConnectionError:
                data = b""
        if not data:
            self.ended = True
            return
        for event in self.h2.receive_data(data):
            stream: int | None = getattr(event, "stream_id", None)
            answer = self.answers.get(stream or 0, Answer())
            match event:
                case h2.events.RemoteSettingsChanged():
                    self.settings |= {int(it.setting): it.new_value for it in event.changed_settings.values()}
                case h2.events.SettingsAcknowledged():
                    self.acknowledged = bool(event.changed_settings) or self.acknowledged
                case h2.events.InformationalResponseReceived():
                    answer.informational.append(int(dict(event.headers)[b":status"]))
                case h2.events.ResponseReceived():
                    answer.status = int(dict(event.headers)[b":status"])
                    answer.headers = [pair for pair in event.headers if not pair[0].startswith(b":")]
                case h2.events.DataReceived():
                    answer.body += event.data
                    if self.acknowledges and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    answer.ended = True
                case h2.events.StreamReset():
                    answer.reset = int(event.error_code)
                case h2.events.ConnectionTerminated():
                    self.goaway = event
        try:
            await self.flush()
        except ConnectionError:
            self.ended = True

    def told_to_go(self) -> bool:
        return self.goaway is not None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something has become true, or the server closes."""
        while not condition() and not self.ended:
            await self.read()
