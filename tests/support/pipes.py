"""Connections without sockets: a transport for the balancer's protocols whose other end is in the test's hands.

With ``PipeLoop`` nothing waits and nothing touches the network, so that a whole exchange takes about a
millisecond, and every order of events can be had. A ``Pipe`` keeps to what asyncio's own transports do:
bytes are delivered from the loop, one piece a turn, none while reading is paused or after ``close``; a
write that the peer does not take is buffered and pauses the protocol; a reset is noticed only while
something is read or written.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.virtual import VirtualLoop

Wire = bytes | Exception | None  # what travels to the balancer: bytes, a reset, or (None) the end

# Whoever needs more turns of the loop, without any time that passes, goes in circles.
TURNS_MAX = 10_000

# What was written when, across all pipes.
_stamps = itertools.count()


class _Socket:
    """What ``balancer.upstream.tcp`` and uvicorn ask; this kernel tells nothing of what was acknowledged."""

    def __init__(self, peername: tuple[str, int]) -> None:
        self.getpeername = lambda: peername
        self.getsockname = lambda: ("10.0.0.1", 80)

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockopt(self, *_: object) -> bytes:
        raise OSError("not a socket")


class Pipe(asyncio.Transport):
    """The balancer's end of a connection. ``received`` is what the other end, the peer, has taken of its bytes.

    ``on_received`` is told of every piece that the peer takes. Writing is paused as soon as the peer leaves a single
    byte: the hardest case, and one that needs no megabytes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peername: tuple[str, int],
        on_received: Callable[[Pipe, bytes], None] = lambda pipe, data: None,
        *,
        tls: bool = False,
    ) -> None:
        super().__init__(
            {"peername": peername, "sockname": ("10.0.0.1", 80), "socket": _Socket(peername), "sslcontext": tls or None}
        )
        self._loop = loop
        self._tls = tls
        self._on_received = on_received
        self._protocol: asyncio.BaseProtocol
        # To the balancer: what is on its way, and what was delivered.
        self._inbox: deque[Wire] = deque()
        self._reading = True
        self._due = False
        self.delivered = bytearray()
        self.eof_delivered = False
        self.reset_delivered = False
        # From the balancer. For each write: where in the stream, how much had been delivered by then, and a stamp.
        self.writes: list[tuple[int, int, int]] = []
        self.received = bytearray()
        self._unsent = bytearray()
        self._lost_unread = b""
        self._taking = True
        self._writing_paused = False
        # How the balancer ended its side: not at all, "eof" (in order), or "reset".
        self._eof_wanted = False
        self.ended = ""
        self._closing = False
        self._losing = False
        self.lost = False

    # The peer.

    def send(self, data: bytes) -> None:
        if data:
            self._put(data)

    def send_eof(self) -> None:
        self._put(None)

    def reset(self) -> None:
        self._put(ConnectionResetError(104, "Connection reset by peer"))

    def stop_taking(self) -> None:
        self._taking = False

    @property
    def unread(self) -> bytes:
        """What was sent there and not taken, nor ever will be once the pipe is closed."""
        return bytes(self._unsent) or self._lost_unread

    def take(self) -> None:
        """Take what there is, and what comes from now on."""
        self._taking = True
        if self._unsent and not self._losing:
            data = bytes(self._unsent)
            self._unsent.clear()
            self._receive(data)
        self._loop.call_soon(self._flushed)

    # asyncio's transport.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof_wanted:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._losing or not data:
            return
        if any(isinstance(it, Exception) for it in self._inbox):
            self._lose(ConnectionResetError(104, "Connection reset by peer"))
            return
        self.writes.append((len(self.received) + len(self._unsent), len(self.delivered), next(_stamps)))
        if self._taking and not self._unsent:
            self._receive(bytes(data))
            return
        self._unsent += data
        if not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return not self._tls

    def write_eof(self) -> None:
        if self._tls:
            raise NotImplementedError
        if not (self._closing or self._eof_wanted):
            self._eof_wanted = True
            self._ended_in_order()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._ended_in_order()
            if not self._unsent:
                self._lose(None)

    def abort(self) -> None:
        if not self._losing:
            self.ended = self.ended or "reset"
            self._lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._deliver_soon()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    # Between the two.

    def connect(self, protocol: asyncio.BaseProtocol) -> None:
        """Give this end to a protocol."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._deliver_soon()

    def _put(self, item: Wire) -> None:
        self._inbox.append(item)
        self._deliver_soon()

    def _deliver_soon(self) -> None:
        if not self._due and self._inbox and self.is_reading():
            self._due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._due = False
        if not self._inbox or not self.is_reading() or self._losing:
            return
        item = self._inbox.popleft()
        try:
            if isinstance(item, bytes):
                self._deliver_bytes(item)
            elif item is None:
                self.eof_delivered = True
                if not self._protocol.eof_received():  # type: ignore[attr-defined]
                    self.close()
            else:
                self.reset_delivered = True
                self._lose(item)
        except Exception as error:
            self._loop.call_exception_handler({"message": "raised", "exception": error, "protocol": self._protocol})
            self._lose(error)
        self._deliver_soon()

    def _deliver_bytes(self, data: bytes) -> None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            buffer = protocol.get_buffer(-1)
            count = min(len(data), len(buffer))  # type: ignore[arg-type]
            buffer[:count] = data[:count]  # type: ignore[index]
            if data[count:]:
                self._inbox.appendleft(data[count:])
            self.delivered += data[:count]
            protocol.buffer_updated(count)
        else:
            self.delivered += data
            protocol.data_received(data)  # type: ignore[attr-defined]

    def _receive(self, data: bytes) -> None:
        self.received += data
        self._on_received(self, data)

    def _flushed(self) -> None:
        """The peer has taken everything."""
        if self._unsent or self._losing:
            return
        if self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()
        self._ended_in_order()
        if self._closing:
            self._lose(None)

    def _ended_in_order(self) -> None:
        if (self._closing or self._eof_wanted) and not self._unsent:
            self.ended = self.ended or "eof"

    def _lose(self, error: Exception | None) -> None:
        if not self._losing:
            self._losing = self._closing = True
            self._lost_unread = bytes(self._unsent)
            self._unsent.clear()
            self._inbox.clear()
            self.ended = self.ended or "reset"
            self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        self.lost = True
        self._protocol.connection_lost(error)


class PipeLoop(VirtualLoop):
    """A loop on which ``create_connection`` gives pipes: ``dial`` makes one, raises OSError, or (None) stays silent."""

    def __init__(self) -> None:
        super().__init__()
        self.dial: Callable[[str, int], Pipe | None] = lambda host, port: None

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        await asyncio.sleep(0)
        pipe = self.dial(host, port)
        if pipe is None:
            return await self.create_future()
        protocol = protocol_factory()
        pipe.connect(protocol)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pipe.close()
            raise
        return pipe, protocol

    def settle(self) -> None:
        """Run everything that is ready, and what that makes ready; no time passes."""
        ready: deque[object] = self._ready  # type: ignore[attr-defined]
        turns = iter(range(TURNS_MAX))

        def look() -> None:
            if not ready or next(turns, None) is None:
                self.stop()
            else:
                self.call_soon(look)

        self.call_soon(look)
        self.run_forever()
        assert not ready, "the loop never comes to rest"

    def turn(self) -> None:
        """Run what is ready now, once."""
        self.call_soon(self.stop)
        self.run_forever()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.call_later(seconds, self.stop)
        self.run_forever()
        self.settle()
