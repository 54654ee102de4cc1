"""A visit outlives a restart of Redis: it waits, and is counted once."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.redis import redis
from tests.support.wire import LIMIT, Connection, Member
from tests.support.workers import Worker, worker
from worker.counter import PATIENCE


class Way:
    """The way to Redis, which can be interrupted, and which can lose answers to what Redis has carried out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.entrance = Member(self._forward)
        self.lose_answers = False
        self.lost = 0
        # Answers pass while it is set, and ``held`` is set by the first one that does not.
        self.passes = asyncio.Event()
        self.passes.set()
        self.held = asyncio.Event()

    async def _forward(self, worker: Connection) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._back(reader, worker))
        try:
            while piece := await worker.reader.read(65536):
                writer.write(piece)
        finally:
            back.cancel()
            writer.close()

    async def _back(self, reader: asyncio.StreamReader, worker: Connection) -> None:
        while piece := await reader.read(65536):
            if self.lose_answers:
                self.lost += 1
                worker.close()
                return
            if not self.passes.is_set():
                self.held.set()
                await self.passes.wait()
            worker.writer.write(piece)

    @asynccontextmanager
    async def interrupted(self) -> AsyncIterator[None]:
        await self.entrance.stop()
        try:
            yield
        finally:
            await self.entrance.start_again()


@asynccontextmanager
async def counting() -> AsyncIterator[tuple[Way, Visits]]:
    async with redis() as port:
        way = Way(port)
        async with way.entrance, worker(way.entrance.address.port) as it:
            yield way, Visits(it)
            status, _, err = await it.stop()
            assert status == 0
            assert "Traceback" not in err


class Visits:
    """Requests to the worker, each on a connection of its own."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def __call__(self, request: bytes = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.worker.port)
        writer.write(request)
        async with asyncio.timeout(LIMIT):
            answer = await reader.read()
        writer.close()
        return answer

    async def record(self, name: bytes) -> int:
        """Record a name; the count that is told."""
        head = b"POST /record HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(name)
        return count(await self(head + name))


def count(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 200"), answer
    found = re.search(rb" (\d+) times\.\n$", answer)
    assert found, answer
    return int(found[1])


async def test_visits_wait_while_redis_restarts_and_none_is_counted_twice() -> None:
    async with counting() as (way, visit):
        assert [count(await visit()) for _ in range(3)] == [1, 2, 3]
        async with way.interrupted():
            waiting = [asyncio.create_task(visit()) for _ in range(150)]
            recording = [asyncio.create_task(visit.record(b"%d" % n)) for n in range(150)]
            await asyncio.sleep(1)
            assert not any(it.done() for it in [*waiting, *recording])
        assert sorted([count(it) for it in await asyncio.gather(*waiting)]) == list(range(4, 154))
        assert await asyncio.gather(*recording) == [1] * 150


async def test_lost_answer_skips_a_number_and_records_nothing_twice() -> None:
    async with counting() as (way, visit):
        assert count(await visit()) == 1
        assert await visit.record(b"a") == 1
        way.lose_answers = True
        waiting = [asyncio.create_task(visit()) for _ in range(5)]
        recording = [asyncio.create_task(visit.record(b"a")) for _ in range(5)]
        await asyncio.sleep(0.5)
        way.lose_answers = False
        numbers = [count(it) for it in await asyncio.gather(*waiting)]
        assert len(set(numbers)) == 5
        assert max(await asyncio.gather(*recording)) == 6
        assert way.lost > 2
        assert await visit.record(b"a") == 7


async def test_visit_outlives_a_pause_of_its_worker() -> None:
    async with counting() as (way, visit):
        assert count(await visit()) == 1
        way.passes.clear()
        waiting = asyncio.create_task(visit())
        await way.held.wait()
        visit.worker.signal(signal.SIGSTOP)
        way.passes.set()
        await asyncio.sleep(PATIENCE + 0.5)
        visit.worker.signal(signal.SIGCONT)
        assert count(await waiting) in {2, 3}  # Sent twice, it skips a number.


async def test_names_do_not_get_into_each_others_count() -> None:
    async with counting() as (_, visit):
        for name in (b"a", b"a b", b"a!", b"", b"\xff\n", b"aa"):
            assert await visit.record(name) == 1
        assert await visit.record(b"a") == 2


@pytest.mark.long
async def test_longer_absence_costs_each_visit_a_bounded_wait() -> None:
    async with counting() as (way, visit):
        assert count(await visit()) == 1
        async with way.interrupted():
            for _ in range(2):
                began = time.monotonic()
                answers = await asyncio.gather(*(visit() for _ in range(50)))
                assert 2.5 < time.monotonic() - began < 4
                assert all(it.startswith(b"HTTP/1.1 503") for it in answers)
                assert all(it.endswith(b"\r\n\r\nme cannot count: Redis is away\n") for it in answers)
        assert count(await visit()) == 2


async def test_visit_while_redis_hangs_is_answered_in_time() -> None:
    async def hang(connection: Connection) -> None:
        await connection.reader.read()

    async with Member(hang) as hanging, worker(hanging.address.port) as it:
        began = time.monotonic()
        assert (await it.get("/")).startswith(b"HTTP/1.1 503")
        assert time.monotonic() - began < 4.5
        assert 0 < len(hanging.connections) <= 4
        status, seconds, _ = await it.stop()
        assert status == 0
        assert seconds < 1.5
