"""Members that answer in time while the balancer's own loop is late, in turns too short to be a standstill."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from balancer.config.settings import Settings
from balancer.loop_time import LATE_SECONDS
from balancer.members.health import HealthEvent, State
from balancer.members.probe import make_probe
from balancer.types import Address
from tests.support.messages import LAST_GET
from tests.support.wire import OK, balance

TURN_SECONDS = 0.3
assert TURN_SECONDS < LATE_SECONDS


class Threaded:
    """A member on threads of its own, which answers after ``delay`` seconds, whatever the test's loop does."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname())
        self._ends = threading.Event()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._connections.append(connection)
            if self._ends.is_set():
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while connection.recv(65536) and not self._ends.wait(self._delay):
                connection.sendall(OK)
        except OSError:
            pass

    def close(self) -> None:
        self._ends.set()
        socket.create_connection(self.address).close()
        self._threads[0].join()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in [*self._connections, self._listener]:
            connection.close()


@contextmanager
def threaded(delay: float = 0.0) -> Iterator[Threaded]:
    member = Threaded(delay)
    try:
        yield member
    finally:
        member.close()


@contextmanager
def late(seconds: float) -> Iterator[None]:
    """Keep each turn of the event loop busy for so long."""
    loop, ends = asyncio.get_running_loop(), False

    def drag() -> None:
        if not ends:
            time.sleep(seconds)
            loop.call_soon(drag)

    drag()
    try:
        yield
    finally:
        ends = True


@pytest.mark.parametrize("path", ["/healthz", None])
async def test_probe_of_a_member_that_answers_at_once_succeeds_in_a_late_loop(path: str | None) -> None:
    with threaded() as member, late(TURN_SECONDS):
        settings = Settings(upstream_port=member.address.port, health_path=path, connect_timeout=0.2)
        event, words = await make_probe(settings)(member.address)
        assert event is HealthEvent.PROBE_OK, words


async def test_time_out_of_a_probe_counts_no_turn_for_more_than_a_tenth_of_a_second() -> None:
    # In a loop that is in time, the answer would come too late; in this one it takes three or four turns.
    with threaded(delay=0.8) as member, late(TURN_SECONDS):
        settings = Settings(upstream_port=member.address.port, health_path="/healthz", health_timeout=0.5)
        event, words = await make_probe(settings)(member.address)
        assert event is HealthEvent.PROBE_OK, words


async def test_probe_of_a_hung_member_ends_in_a_late_loop() -> None:
    with threaded(delay=3.0) as member, late(0.2):
        settings = Settings(upstream_port=member.address.port, health_path="/healthz", health_timeout=0.2)
        event, _ = await make_probe(settings)(member.address)
        assert event is HealthEvent.PROBE_UNANSWERED


async def test_member_that_answers_at_once_changes_no_state_in_a_late_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # A probe takes four turns.
    monkeypatch.setattr("balancer.members.probe_scheduler.LATE_SECONDS", 2 * TURN_SECONDS)
    with threaded() as member:
        async with balance(member.address, health_path="/healthz", health_interval=0.2, connect_timeout=0.2) as running:
            states = set()
            with late(TURN_SECONDS):
                for _ in range(20):
                    states |= {it.state for it in running.balancer.membership.members.values()}
                    await asyncio.sleep(0)
            assert states == {State.UP}
            assert (await running.exchange(LAST_GET)).endswith(b"ok")
