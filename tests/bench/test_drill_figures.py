"""What the drill makes its figures with. No engine is needed: it is not there that they are counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from math import inf

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from balancer.demo.system import free_port
from bench.drill import overload, websocket
from bench.drill.load import Outcome
from bench.drill.overload import Answer, figures, kept
from bench.drill.phases import PHASES, Phase, nothing
from bench.drill.readiness import Life, gap
from bench.drill.report import Row
from bench.drill.rolling import judge
from bench.drill.run import unexcused
from bench.drill.websocket import Crowd, problems


@pytest.mark.parametrize(
    ("lives", "expected"),
    [
        ([], 10.0),
        ([Life("a", 0.0)], 0.0),
        ([Life("a", 0.0, 4.0), Life("b", 6.5)], 2.5),
        ([Life("a", 0.0, 4.0), Life("b", 3.0, 5.0), Life("b", 7.0)], 2.0),
        ([Life("a", 0.0, 4.0), Life("b", inf), Life("c", 4.5)], 0.5),
        ([Life("a", 0.0, 4.0)], 6.0),
        ([Life("a", 0.0, 20.0), Life("b", 1.0, 2.0)], 0.0),
        ([Life("a", 0.0, 4.0), Life("b", 12.0)], 6.0),
    ],
)
def test_gap_is_the_longest_time_without_a_worker(lives: list[Life], expected: float) -> None:
    assert gap(reversed(lives), 0.0, 10.0) == expected


def row(failures: Mapping[str, int] | None = None, gap: float = 0.0, longest: float = 0.0, **others: float) -> Row:
    get, twice, missing = others.get("get", longest), int(others.get("twice", 0)), int(others.get("missing", 0))
    return Row("it", 1, failures or {}, gap, longest, get, twice, missing)


@pytest.mark.parametrize(
    ("found", "excuses", "words"),
    [
        (row(), False, ""),
        (row({"GET 502 member_failed": 1}), True, "1 times GET 502"),
        (row({"POST 502 member_failed": 1}), False, "1 times POST 502"),
        (row({"POST 502 member_failed": 1}), True, ""),
        (row({"POST 503 no_member": 1}), True, "1 times POST 503"),
        (row(twice=1), True, "ran twice"),
        (row(missing=1), True, "are missing"),
        (row(gap=2.0, longest=2.4), False, ""),
        (row(gap=2.0, longest=2.6), False, "a request waited 2.60 s"),
        (row(longest=5.0, get=0.4), True, ""),
        (row(longest=5.0, get=0.6), True, "a GET waited 0.60 s"),
    ],
)
def test_only_a_post_on_a_member_that_was_cut_off_is_excused(found: Row, excuses: bool, words: str) -> None:
    verdict = unexcused([found], [Phase("it", nothing, excuses=excuses)])
    assert len(verdict) == bool(words)
    assert words in "".join(verdict)


def test_every_phase_that_takes_all_workers_away_has_to_end_half_a_second_after_the_gap() -> None:
    limits = {it.name: it.limit for it in PHASES}
    assert limits["force-recreate"] == limits["scale 3 to 1"] == limits["kill -9 of one"] == 0.5
    assert (limits["pause of one, 5 s"], limits["disconnect of one, 5 s"]) == (7.0, 4.0)


def test_rolling_restart_is_judged_by_what_workers_recorded() -> None:
    outcomes = [
        Outcome("GET", 0.0, 0.5, "a", ""),
        Outcome("POST", 0.0, 0.1, "a", "", "once"),
        Outcome("POST", 0.0, 0.1, "a", "", "twice"),
        Outcome("POST", 0.0, 0.1, "a", "", "never"),
        Outcome("POST", 0.0, 0.1, "", "502 member_failed", "failed"),
    ]
    rolled = judge(outcomes, {"once": 1, "twice": 2}, 3, 1.0)
    assert (rolled.twice, rolled.missing, rolled.failures) == (1, 1, {"POST 502 member_failed": 1})
    assert (rolled.p50, rolled.longest, rolled.lost) == (0.1, 0.5, True)


class Echoes:
    """A WebSocket server in place of the whole project: connections belong to the named workers in turn."""

    def __init__(self) -> None:
        self.names = ["one", "two", "three"]
        self.here: dict[ServerConnection, str] = {}
        self._given = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server: Server
        async with serve(self._serve, "127.0.0.1", 0, process_response=self._name) as server:
            yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/echo"

    def on(self, name: str) -> list[ServerConnection]:
        return [connection for connection, who in self.here.items() if who == name]

    def _name(self, connection: ServerConnection, request: Request, response: Response) -> Response:
        who = self.names[self._given % len(self.names)]
        self._given += 1
        self.here[connection] = who
        headers = Headers(response.headers)
        headers["x-worker"] = who
        return Response(response.status_code, response.reason_phrase, headers, response.body)

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            async for message in connection:
                await connection.send(message)
        finally:
            del self.here[connection]


async def test_websocket_that_is_told_to_leave_is_no_problem_and_comes_back_elsewhere() -> None:
    async with (echoes := Echoes()).serving() as url:
        crowd = Crowd(url)
        async with crowd.running():
            await crowd.join(30)
            assert crowd.spread() == {"one": 10, "two": 10, "three": 10}
            echoes.names.remove("two")
            await asyncio.gather(*(it.close(1001) for it in echoes.on("two")))
            async with asyncio.timeout(5):
                while crowd.spread() != {"one": 15, "three": 15}:
                    await asyncio.sleep(0.01)
            assert problems(crowd.in_flight, crowd.refusals, {"two"}) == []
        assert Counter(it.code for it in crowd.in_flight if it.end) == {1001: 10}
        assert problems(crowd.in_flight, crowd.refusals, set()) == [
            "10 times on a worker that stayed: closed with 1001"
        ]
        assert not crowd.open


async def test_websocket_that_is_reset_or_left_hanging_or_told_lies_is_a_problem() -> None:
    async with (echoes := Echoes()).serving() as url:
        crowd = Crowd(url)
        async with crowd.running():
            await crowd.join(3)
            echoes.names = ["four"]  # Whoever comes back.
            for connection in echoes.on("one"):
                connection.transport.abort()
            for connection in echoes.on("two"):
                await connection.send("nobody asked")
            async with asyncio.timeout(5):
                while sum(bool(it.end) for it in crowd.in_flight) < 2:
                    await asyncio.sleep(0.01)
            found = problems(crowd.in_flight, crowd.refusals, {"one", "three"})
    assert "1 times on a worker that left: reset" in found
    assert "1 times still open on a worker that is gone" in found
    assert any("on a worker that stayed: sent" in it and "received 'nobody asked'" in it for it in found)


async def test_handshake_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PATIENCE", 0.5)
    crowd = Crowd(f"ws://127.0.0.1:{free_port()}/echo")
    with pytest.raises(ExceptionGroup):
        async with crowd.running():
            await crowd.join(1)
    assert any("handshake failed" in it for it in problems(crowd.in_flight, crowd.refusals, set()))


def test_goodput_counts_what_came_in_time_and_after_the_warm_up() -> None:
    answers = [
        Answer("200", 0.1, 0.5),
        Answer("200", 0.1, 1.5),
        Answer("200", 0.1, 2.5),
        Answer("200", overload.PATIENCE + 1, 2.5),
        Answer("503 queue_full", 0.01, 2.0),
        Answer("200", 0.1, 4.0),
    ]
    level = figures(1.0, answers, 0.0, 3.0, 1.0)
    assert (level.goodput, level.refused, level.others) == (1.0, [0.01], {"503 queue_full": 1})
    assert kept([level, level]) == 1.0


async def test_members_that_are_given_no_more_than_they_can_do_reach_their_capacity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overload, "LOADS", (0.5,))
    began = time.monotonic()
    (level,), most = await overload.measure(length=2.0, warm_up=0.5)
    assert time.monotonic() - began < 20
    assert level.goodput > 0.3 * overload.THREADS.capacity
    assert 0 < most < 100
    assert set(level.others) == set()
