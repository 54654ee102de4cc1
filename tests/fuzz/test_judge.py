"""The judge is worth something only if it finds things: each test does by hand what the balancer must never do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.support.judge import finish
from tests.support.pipes import PipeLoop
from tests.support.world import World

GET = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class _Raising(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        raise ValueError("a bug")


def answer_in_anothers_name(world: World) -> None:
    world.clients[0].pipe.write(OK)


def answer_twice(world: World) -> None:
    world.links[0].pipe.send(OK)
    world.settle()
    world.clients[0].pipe.write(OK)


def answer_with_nonsense(world: World) -> None:
    world.clients[0].pipe.write(b"HTTP/1.1 OK\r\n\r\n")


def swallow_the_answer(world: World) -> None:
    world.clients[0].pipe.write = lambda data: None  # type: ignore[method-assign]


def answer_by_halves(world: World) -> None:
    world.clients[0].pipe.write(OK[:-1])


def change_the_answer(world: World) -> None:
    world.links[0].pipe.delivered += OK
    world.clients[0].pipe.write(OK.replace(b"ok", b"no"))


def add_a_field_to_the_answer(world: World) -> None:
    world.links[0].pipe.delivered += OK
    world.clients[0].pipe.write(OK.replace(b"\r\n\r\n", b"\r\nset-cookie: x\r\n\r\n"))


def ask_for_what_nobody_asked(world: World) -> None:
    world.links[0].pipe.send(OK)
    world.settle()
    world.links[0].pipe.write(b"GET /evil HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.1.0.1\r\n\r\n")


def ask_before_the_answer(world: World) -> None:
    world.links[0].pipe.write(b"GET /2 HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.9.9.9\r\n\r\n")


def write_nonsense_to_a_member(world: World) -> None:
    world.links[0].pipe.write(b"NONSENSE\r\n\r\n")


def keep_a_slot(world: World) -> None:
    next(iter(world.balancer.membership.members.values())).in_flight += 1


def keep_a_task(world: World) -> None:
    world.loop.create_task(asyncio.sleep(1e6))


def fail_in_a_task(world: World) -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    world.loop.create_task(fail())


def raise_out_of_a_protocol(world: World) -> None:
    world.clients[0].pipe.set_protocol(_Raising())
    world.clients[0].send(GET)


@pytest.fixture
def loop() -> Iterator[PipeLoop]:
    """A loop for each test: deeds leave tasks behind."""
    loop = PipeLoop()
    yield loop
    loop.close()


DEEDS: dict[Callable[[World], None], str] = {
    answer_in_anothers_name: "body=b'ok', trailers=[], complete=True, interim=[]) for Message(",
    answer_twice: "got a response to what no member saw",
    answer_with_nonsense: "got what is not HTTP",
    swallow_the_answer: "a request has no answer and the connection is open",
    answer_by_halves: "got what is not HTTP",
    change_the_answer: "body=b'no'",
    add_a_field_to_the_answer: "got fields that the member did not send: [(b'set-cookie', b'x')]",
    ask_for_what_nobody_asked: "that was not asked for there",
    ask_before_the_answer: "a member got",
    write_nonsense_to_a_member: "a member got what is not HTTP",
    keep_a_slot: "1 requests in flight when everything is over",
    keep_a_task: "tasks are left",
    fail_in_a_task: "a task failed and nobody knows",
    raise_out_of_a_protocol: "_Raising: raised: ValueError('a bug')",
}


@pytest.mark.parametrize(("deed", "words"), DEEDS.items(), ids=[it.__name__ for it in DEEDS])
def test_judge_finds_what_must_not_be(deed: Callable[[World], None], words: str, loop: PipeLoop) -> None:
    world = World(loop, answering=False).open()
    world.client().send(GET)
    world.settle()
    deed(world)
    world.settle()
    found = finish(world)
    assert any(words in it for it in found), found


def test_judge_finds_nothing_where_nothing_is_wrong(loop: PipeLoop) -> None:
    world = World(loop, answering=False).open()
    world.client().send(GET)
    world.settle()
    world.links[0].pipe.send(OK)
    assert finish(world) == []
