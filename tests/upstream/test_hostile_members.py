"""Members that do not keep to the protocol: what their clients get, and that nobody else gets any of it."""

from __future__ import annotations

import pytest

from tests.support.hostile import NEXT, OPEN
from tests.support.hostile_answers import ANSWERS, BAD_GATEWAY, CUT, PASSES, Answer
from tests.support.wire import OK, Connection, Member, balance, in_lower_case

CLOSE = b"Connection: close\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(it, id=it.name, marks=[pytest.mark.xfail(reason="still open")] if it.name in OPEN else [])
        for it in ANSWERS
    ],
)
async def test_response_is_sound_or_does_not_look_like_one(answer: Answer) -> None:
    async def script(connection: Connection) -> None:
        while True:
            if (await connection.head()).startswith(b"GET /next "):
                await connection.send(OK)
                continue
            await connection.send(answer.response)
            for _ in range(64 if answer.forever else 0):
                await connection.send(answer.forever)
            if answer.closes:
                return

    async with Member(script) as member, balance(member, response_timeout=1, stream_idle_timeout=1) as running:
        got = await running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (answer.asked or CLOSE))
        assert (await running.exchange(NEXT)).endswith(b"\r\n\r\nok")
        while got.startswith(b"HTTP/1.1 103 "):
            got = got.partition(b"\r\n\r\n")[2]
        if answer.becomes == BAD_GATEWAY:
            assert got.startswith(b"HTTP/1.1 502 ")
            assert b"\r\nx-balancer-error: bad_response\r\n" in got
            assert got.count(b"HTTP/1.") == 1
        elif answer.becomes == CUT:
            assert not got.endswith(b"0\r\n\r\n")
            assert got.count(b"HTTP/1.") <= 1
            # What has no end is cut off for its size: it is not waited for until it falls silent.
            assert not any("silent" in it.words for it in running.records[0].attempts)
        else:
            assert answer.arrives in in_lower_case(got)
            assert b"poison" not in got
        if answer.becomes != PASSES or answer.spoilt:
            assert not any(b"GET / " in it and b"GET /next " in it for it in member.received)
