"""The allowance of a drill follows what a bare request to a worker takes."""

from __future__ import annotations

import pytest

from bench.drill import yardstick
from bench.drill.yardstick import STEPS, Yardstick
from tests.support.compose import Compose
from tests.support.wire import Connection, Member, eventually, keep_answering


class OneWorker(Compose):
    """A project with a worker on loopback; no engine is asked."""

    def __init__(self) -> None:
        pass

    async def containers(self, service: str) -> list[str]:
        return [service]

    async def address(self, container: str) -> str:
        return "127.0.0.1"


def test_slack_is_a_multiple_of_what_nearly_all_bare_requests_take() -> None:
    measured = Yardstick(OneWorker())
    assert measured.slack == 0
    measured.seconds = [0.01] * 995 + [0.4] * 5
    assert measured.slack == STEPS * 0.01
    measured.seconds += [0.1] * 20
    assert measured.slack == STEPS * 0.1


async def test_bare_requests_are_measured_and_one_without_an_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardstick, "INTERVAL", 0.01)
    monkeypatch.setattr(yardstick, "LIMIT", 0.05)

    async def silent(connection: Connection) -> None:
        await connection.to_end()

    async with Member() as member:
        measured = Yardstick(OneWorker(), port=member.address.port)
        async with measured.measuring():
            await eventually(lambda: len(measured.seconds) > 3)
            member.script = silent
            asked = len(member.connections)
            await eventually(lambda: len(member.connections) > asked + 10)
            answered = len(measured.seconds)
            await eventually(lambda: len(member.connections) > asked + 20)
            assert len(measured.seconds) == answered
            member.script = keep_answering
            await eventually(lambda: len(measured.seconds) > answered)
