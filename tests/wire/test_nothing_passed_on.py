"""A response of which nothing was passed on is no response: an idempotent request goes to another member."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balancer.dispatch import course
from tests.support.doors import Reply
from tests.support.ways import WAYS, Way
from tests.support.wire import LIMIT, OK, Connection, Member, Script, answer_all

_200 = b"HTTP/1.1 200 OK\r\n"
CHUNKED = _200 + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Fault:
    """What a member sends in place of a response. ``ends``: how it ends the connection behind it."""

    sent: bytes
    ends: str = "close"
    reason: str = "died"

    async def play(self, connection: Connection, in_pieces: bool) -> None:
        size = 7 if in_pieces else max(1, len(self.sent))
        for start in range(0, len(self.sent), size):
            await connection.send(self.sent[start : start + size])
            await asyncio.sleep(0.005 if in_pieces else 0)
        if self.ends == "reset":
            await asyncio.sleep(0.02)  # What is on its way arrives before a reset.
            connection.reset()
        elif self.ends == "stays":
            await connection.to_end()


FAULTS = {
    "nothing": Fault(b""),
    "reset": Fault(b"", "reset"),
    "garbage": Fault(b"SSH-2.0-OpenSSH\r\n\r\n", "stays", "not_http"),
    "half a status line": Fault(_200[:12]),
    "half a status line and a reset": Fault(_200[:12], "reset"),
    "a head without its end": Fault(_200 + b"Content-Length: 2\r\n"),
    "a head without its end and a reset": Fault(_200 + b"Content-Length: 2\r\n", "reset"),
    "a head": Fault(_200 + b"Content-Length: 2\r\n\r\n"),
    "a head and a reset": Fault(_200 + b"Content-Length: 2\r\n\r\n", "reset"),
    "a head of chunks": Fault(CHUNKED),
    "a head of chunks and a reset": Fault(CHUNKED, "reset"),
    "the size of a chunk": Fault(CHUNKED + b"2\r\n"),
    "an interim response": Fault(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a reset in a body without a length": Fault(_200 + b"Connection: close\r\n\r\n", "reset"),
    "another coding": Fault(_200 + b"Transfer-Encoding: gzip\r\n\r\nok", "stays", "not_http"),
    "a length that is none": Fault(_200 + b"Content-Length: x\r\n\r\nok", "stays", "not_http"),
    "a chunk without a size": Fault(CHUNKED + b"xyz\r\n", "stays", "not_http"),
}
# What arrives behind a piece of the body, in one read with it. httpx hands that piece on before it looks further.
BEHIND_A_PIECE = {
    "a chunk, then no size": Fault(CHUNKED + b"2\r\nok\r\nxyz\r\n", "stays", "not_http"),
    "a chunk that is too long": Fault(CHUNKED + b"2\r\nokxyz", "stays", "not_http"),
}

every_way = pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])
native_ways = pytest.mark.parametrize(
    "way", [pytest.param(way, id=name) for name, way in WAYS.items() if not way.httpx]
)
in_one_and_in_pieces = pytest.mark.parametrize("in_pieces", [False, True], ids=["one read", "pieces"])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head waits longer for its body than a busy machine takes to notice that the connection has ended."""
    monkeypatch.setattr(course, "HEAD_DELAY", LIMIT)


def faulty(fault: Fault, in_pieces: bool) -> Script:
    """A member that answers ``/first``, so that a connection to it is idle, and fails everything else."""

    async def script(connection: Connection) -> None:
        while (await connection.head()).startswith(b"GET /first "):
            await connection.send(OK)
        await fault.play(connection, in_pieces)

    return script


async def check_repeated(way: Way, folder: Path, fault: Fault, in_pieces: bool) -> None:
    async with Member(faulty(fault, in_pieces)) as bad, Member() as good, way.open(folder, bad, good) as opened:
        # With idle connections at both, the next request is sent without a task; those after it find none at ``bad``.
        for target in (b"/first", b"/first", b"/", b"/", b"/", b"/"):
            assert await opened.ask(target=target) == Reply(200)
        failed = [attempt for record in opened.records for attempt in record.attempts]
        assert {(attempt.member, attempt.reason) for attempt in failed} == {(bad.address, fault.reason)}
        assert len(failed) == b"".join(bad.received).count(b"GET / ") > 1


@every_way
@in_one_and_in_pieces
@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in FAULTS.items()])
async def test_get_is_repeated_elsewhere(way: Way, fault: Fault, in_pieces: bool, tmp_path: Path) -> None:
    await check_repeated(way, tmp_path, fault, in_pieces)


@native_ways
@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in BEHIND_A_PIECE.items()])
async def test_get_is_repeated_elsewhere_where_a_piece_and_the_fault_come_together(
    way: Way, fault: Fault, tmp_path: Path
) -> None:
    await check_repeated(way, tmp_path, fault, in_pieces=False)


@every_way
@pytest.mark.parametrize("name", ["half a status line", "a head", "garbage"])
async def test_put_is_repeated_elsewhere_with_its_body(way: Way, name: str, tmp_path: Path) -> None:
    async def fail(connection: Connection) -> None:
        await connection.until(b"body")
        await FAULTS[name].play(connection, in_pieces=False)

    async with Member(fail) as bad, Member(answer_all) as good, way.open(tmp_path, bad, good) as opened:
        for _ in range(2):
            assert await opened.ask(method=b"PUT", body=b"body") == Reply(200)
        assert any(record.attempts for record in opened.records)
        assert b"".join(good.received).count(b"body") == 2


@every_way
@in_one_and_in_pieces
@pytest.mark.parametrize("name", ["half a status line", "a head", "garbage"])
async def test_post_is_not_repeated_with_a_key_or_without(way: Way, name: str, in_pieces: bool, tmp_path: Path) -> None:
    fault = FAULTS[name]
    status: dict[str, Any] = {"retry_status": frozenset({502})}
    keys: Sequence[Sequence[tuple[bytes, bytes]]] = ((), ((b"Idempotency-Key", b"1"),))

    async def fail(connection: Connection) -> None:
        await connection.until(b"body")
        await fault.play(connection, in_pieces)

    async with Member(fail) as one, Member(fail) as two, way.open(tmp_path, one, two, **status) as opened:
        token = "bad_response" if fault.reason == "not_http" else "member_failed"
        for fields in keys:
            assert await opened.ask(method=b"POST", body=b"body", fields=fields) == Reply(502, token)
        assert b"".join(one.received + two.received).count(b"body") == len(keys)
