"""Where a message is cut into pieces changes nothing: not for its receiver, and not for the connection.

Each message of the corpus is sent whole, then cut in two at every position, then byte by byte, each piece when
everything that the one before it brings about has happened. No sockets: see ``tests.support.pipes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support.corpus import MALFORMED, REQUESTS, RESPONSES
from tests.support.judge import check
from tests.support.pipes import PipeLoop
from tests.support.reader import Message, Requests
from tests.support.world import World

NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Outcome = tuple[Any, ...]


def cuts(data: bytes) -> Iterator[Sequence[bytes]]:
    """In two at every position; and byte by byte."""
    yield from ((data[:at], data[at:]) for at in range(1, len(data)))
    yield [data[at : at + 1] for at in range(len(data))]


def assert_the_same(play: Callable[[Sequence[bytes]], Outcome], data: bytes) -> Outcome:
    uncut = play([data])
    for pieces in cuts(data):
        assert play(pieces) == uncut, f"cut as {pieces}"
    return uncut


def told(messages: list[Message]) -> list[Any]:
    return [it.told for it in messages]


def send_request(loop: PipeLoop, pieces: Sequence[bytes]) -> Outcome:
    """What members saw whole; what the client got, and whether its connection was ended."""
    world = World(loop).open()
    client = world.client()
    for piece in pieces:
        client.send(piece)
        world.settle()
    loop.wait(0.1)
    ended = client.pipe.ended
    check(world)
    seen = sorted((it for link in world.links for it in link.requests.whole), key=lambda it: it.target)
    for response in client.got.messages:
        # To be told to go on is for a client that waits, not for one whose body is there already.
        response.interim = [it for it in response.interim if it != 100]
    return told(seen), told(client.got.messages), ended


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS)
def test_request_is_the_same_wherever_it_is_cut(request_bytes: bytes, loop: PipeLoop) -> None:
    reference = Requests()
    reference.feed(request_bytes)
    seen, got, _ = assert_the_same(lambda pieces: send_request(loop, pieces), request_bytes)
    asked = reference.messages
    if any(b"close" in it.values(b"connection") for it in asked):
        asked = asked[:1]  # What follows is nobody's request.
    assert len(seen) == len(got) == len(asked)
    assert all(it[2] in (200, 201) for it in got)


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_request_is_refused_wherever_it_is_cut(request_bytes: bytes, loop: PipeLoop) -> None:
    seen, got, ended = assert_the_same(lambda pieces: send_request(loop, pieces), request_bytes)
    before = request_bytes.count(b"HTTP/1.1\r\n") > 1
    assert len(seen) == before
    assert len(got) == 1 + before
    assert got[-1][2] >= 400
    assert ended == "eof"


def answer(loop: PipeLoop, method: bytes, pieces: Sequence[bytes], closes: bool) -> Outcome:
    """What the client got for two requests, of which the first is answered so; and the fate of the connections."""
    world = World(loop, answering=False).open()
    client = world.client()
    client.send(method + b" /first HTTP/1.1\r\nHost: a\r\n" + b"Content-Length: 0\r\n" * (method == b"POST") + b"\r\n")
    world.settle()
    link = world.links[0]
    link.scripted = True
    for piece in pieces:
        link.pipe.send(piece)
        world.settle()
    if closes:
        link.left = True
        link.pipe.send_eof()
        world.settle()
    closed = link.pipe.ended
    # A repeat, after a pause, and the next request are answered in order.
    world.answering = True
    for other in world.links[1:]:
        world.answer(other)
    client.send(NEXT)
    loop.wait(0.5)
    ended = client.pipe.ended
    check(world)
    got = [(it.told if it.complete else (it.status, it.body)) for it in client.got.messages]
    return got, ended, closed, link.pipe.ended, len(world.links)


METHODS = pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"], ids=bytes.decode)
# Its framing breaks behind a piece of the body, which may have been passed on by then.
BREAKS_LATE = "a length in a trailer"


@METHODS
@pytest.mark.parametrize("name", [name for name in RESPONSES if name != BREAKS_LATE])
def test_response_is_the_same_wherever_it_is_cut(name: str, method: bytes, loop: PipeLoop) -> None:
    response, closes = RESPONSES[name]
    assert_the_same(lambda pieces: answer(loop, method, pieces, closes), response)


@METHODS
def test_response_whose_framing_breaks_is_as_if_uncut_or_cut_off_wherever_it_is_cut(
    method: bytes, loop: PipeLoop
) -> None:
    response, closes = RESPONSES[BREAKS_LATE]
    uncut = answer(loop, method, [response], closes)
    for pieces in cuts(response):
        outcome = answer(loop, method, pieces, closes)
        if outcome != uncut:
            got, ended, *_ = outcome
            assert ended
            assert len(got) == 1
            assert got[0] in [(200, b"hello"[:size]) for size in range(1, 6)]
