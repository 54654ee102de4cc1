"""Both lanes of heads, ``balancer.http.simple_heads`` and httptools, tell the same of a message.

Whole messages take the first where they can, and those that come in pieces the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.corpus import MALFORMED, REQUESTS, RESPONSES
from tests.support.judge import check
from tests.support.pipes import PipeLoop
from tests.support.world import Client, World

# Members of a world answer /4, /6, /9 and /10 with a length, and nothing before that.
GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def exchange(world: World, client: Client, pieces: Sequence[bytes]) -> list[Any]:
    """What members saw and what the client got of what it sends now, and whether the connection goes on."""
    seen_before = {id(it) for link in world.links for it in link.requests.whole}
    got_before = len(client.got.messages)
    for piece in pieces:
        client.send(piece)
        world.settle()
    seen = [it for link in world.links for it in link.requests.whole if id(it) not in seen_before]
    got = client.got.messages[got_before:]
    for it in got:
        it.interim = [status for status in it.interim if status != 100]  # See test_splits.
    return [sorted((it.told for it in seen), key=str), [it.told for it in got], client.pipe.ended]


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_the_same_in_both_lanes(name: str, loop: PipeLoop) -> None:
    request = REQUESTS[name]
    world = World(loop).open()
    client = world.client()
    first = exchange(world, client, [request])
    if first[2]:
        assert b"close" in request or b"HTTP/1.0" in request
    else:
        middle = len(request) // 2
        for pieces in ([request], [request], [request[:middle], request[middle:]], [request]):
            assert exchange(world, client, pieces) == first
    check(world)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_is_refused_after_sound_ones(name: str, loop: PipeLoop) -> None:
    world = World(loop).open()
    client = world.client()
    for _ in range(3):
        exchange(world, client, [GET % 4])
    seen, got, ended = exchange(world, client, [MALFORMED[name]])
    assert len(seen) == len(got) - 1 == MALFORMED[name].startswith((b"GET /1 ", b"POST /1 "))
    assert got[-1][2] >= 400
    assert ended == "eof"
    check(world)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"], ids=bytes.decode)
@pytest.mark.parametrize("name", [name for name, (_, closes) in RESPONSES.items() if not closes])
def test_response_is_the_same_in_both_lanes(name: str, method: bytes, loop: PipeLoop) -> None:
    response, _ = RESPONSES[name]
    world = World(loop, answering=False).open()
    outcomes = []
    for cut in (len(response), len(response), len(response), len(response) // 2, len(response)):
        client = world.client()
        client.send(method + b" /x HTTP/1.1\r\nHost: a\r\n" + b"Content-Length: 0\r\n" * (method == b"POST") + b"\r\n")
        world.settle()
        link = next(it for it in world.links if it.waiting and not it.pipe.ended)
        link.scripted = True
        for piece in filter(None, (response[:cut], response[cut:])):
            link.pipe.send(piece)
            world.settle()
        outcomes.append(([it.told for it in client.got.messages], link.pipe.ended, client.pipe.ended))
        client.leave(reset=True)
        world.settle()
    assert outcomes == outcomes[:1] * 5
    check(world)


def test_request_has_the_address_of_its_client(loop: PipeLoop) -> None:
    world = World(loop).open()
    clients = [world.client(), world.client()]
    for _ in range(3):
        for client in clients:
            seen, got, _ = exchange(world, client, [GET % 4])
            assert (b"x-forwarded-for", client.host.encode()) in seen[0][4]
            assert len(got) == 1
    check(world)


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"GET /0 HTTP/1.1\r\nX: y\r\n"])
def test_simple_request_is_not_taken_for_one_behind_the_beginning_of_another(before: bytes, loop: PipeLoop) -> None:
    request = b"Host: a\r\n\r\n" if before.startswith(b"GET") else b""
    world = World(loop).open()
    client = world.client()
    for _ in range(3):
        exchange(world, client, [GET % 4])
    seen, got, _ = exchange(world, client, [before, request + (GET % 4)])
    assert (len(seen), len(got)) == (1 + bool(request), 1 + bool(request))
    assert exchange(world, client, [GET % 4])[0][0][1] == b"/4"
    # The time for a head does not run on.
    loop.wait(30)
    assert not client.pipe.ended
    check(world)


def test_request_behind_another_in_one_piece_waits_for_its_turn(loop: PipeLoop) -> None:
    world = World(loop, answering=False).open()
    client = world.client()
    world.answering = True
    for _ in range(3):
        exchange(world, client, [GET % 4])
    world.answering = False
    exchange(world, client, [GET % 6])
    seen, got, _ = exchange(world, client, [GET % 4])
    assert (seen, got) == ([], [])
    world.answering = True
    world.answer_all()
    world.settle()
    assert [it.status for it in client.got.messages] == [200] * 5
    check(world)


def test_bytes_behind_a_simple_response_are_no_answer(loop: PipeLoop) -> None:
    world = World(loop, answering=False).open()
    client = world.client()
    for extra in (b"", b"", b"", b"evil"):
        client.send(GET % 4)
        world.settle()
        link = next(it for it in world.links if it.waiting)
        link.scripted = True
        link.pipe.send(OK + extra)
        world.settle()
    assert [it.body for it in client.got.messages] == [b"ok"] * 4
    assert link.pipe.ended
    check(world)
