"""Heads that come again are looked up instead of parsed: nobody may be able to tell, but by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from balancer.http.memo import ENTRIES, HEAD_MAX, KEY_MAX, Memo, ValueCache, cached
from tests.support.corpus import MALFORMED, REQUESTS, RESPONSES
from tests.support.judge import check
from tests.support.pipes import PipeLoop
from tests.support.world import Client, World

# Members of a world answer /4, /6, /9 and /10 with a length, and nothing before that.
GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_memo_does_not_keep_what_comes_once() -> None:
    memo: Memo[bytes, int] = Memo()
    assert not any(memo.seen_before(b"%d" % number) for number in range(100))
    assert memo.seen_before(b"99")


def test_memo_never_has_more_than_its_entries() -> None:
    memo: Memo[bytes, int] = Memo()
    for number in range(3 * ENTRIES):
        memo.put(b"%d" % number, number)
        assert memo.get(b"%d" % number) == number
        assert len(memo) <= ENTRIES


def test_value_of_a_short_key_is_made_once() -> None:
    made = []

    @cached(10)
    def double(key: bytes) -> bytes:
        made.append(key)
        return key + key

    assert [double(b"a"), double(b"b"), double(b"a")] == [b"aa", b"bb", b"aa"]
    assert made == [b"a", b"b"]


def test_value_of_a_long_key_is_made_each_time() -> None:
    known: ValueCache[bytes, int] = ValueCache(len, 10)
    for size in (KEY_MAX, KEY_MAX + 1, 100 * KEY_MAX):
        assert known[b"a" * size] == size
    assert list(known) == [b"a" * KEY_MAX]


def test_size_of_a_key_may_be_that_of_its_parts() -> None:
    known: ValueCache[tuple[str, bytes], int] = ValueCache(len, 10, size=lambda key: sum(map(len, key)))
    for size in (KEY_MAX - 1, KEY_MAX):
        assert known["a", b"a" * size] == 2
    assert list(known) == [("a", b"a" * (KEY_MAX - 1))]


def test_known_keys_are_no_more_than_there_is_room_for() -> None:
    known: ValueCache[str, int] = ValueCache(int, 10)
    for number in range(100):
        assert known[str(number)] == number
        assert 1 <= len(known) <= 10


def test_value_that_cannot_be_made_is_not_known() -> None:
    known: ValueCache[str, int] = ValueCache(int, 10)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            known["x"]
    assert not known


def known(world: World) -> tuple[int, int]:
    """How many heads are known: of requests, and of responses."""
    return len(world.front.requests), len(world.balancer.upstream._heads)  # type: ignore[attr-defined]


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
def test_request_is_the_same_every_time(name: str, loop: PipeLoop) -> None:
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
def test_malformed_request_is_refused_after_sound_ones_that_are_known(name: str, loop: PipeLoop) -> None:
    world = World(loop).open()
    client = world.client()
    for _ in range(3):
        exchange(world, client, [GET % 4])
    seen, got, ended = exchange(world, client, [MALFORMED[name]])
    assert known(world)[0] == 1
    assert len(seen) == len(got) - 1 == MALFORMED[name].startswith((b"GET /1 ", b"POST /1 "))
    assert got[-1][2] >= 400
    assert ended == "eof"
    check(world)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"], ids=bytes.decode)
@pytest.mark.parametrize("name", [name for name, (_, closes) in RESPONSES.items() if not closes])
def test_response_is_the_same_every_time(name: str, method: bytes, loop: PipeLoop) -> None:
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


def test_heads_that_come_again_are_known(loop: PipeLoop) -> None:
    world = World(loop).open()
    client = world.client()
    exchange(world, client, [GET % 4])
    assert known(world) == (0, 0)
    for _ in range(3):
        exchange(world, client, [GET % 4])
    assert known(world) == (1, 1)
    exchange(world, client, [GET % 6])
    assert known(world) == (1, 1)
    check(world)


def test_request_is_known_for_its_client_alone(loop: PipeLoop) -> None:
    world = World(loop).open()
    clients = [world.client(), world.client()]
    for _ in range(3):
        for client in clients:
            seen, got, _ = exchange(world, client, [GET % 4])
            assert (b"x-forwarded-for", client.host.encode()) in seen[0][4]
            assert len(got) == 1
    assert known(world)[0] == 2
    check(world)


def test_head_that_is_long_is_not_looked_up(loop: PipeLoop) -> None:
    world = World(loop).open()
    client = world.client()
    for _ in range(3):
        exchange(world, client, [b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEAD_MAX + b"\r\n\r\n"])
    assert known(world)[0] == 0
    check(world)


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"GET /0 HTTP/1.1\r\nX: y\r\n"])
def test_known_request_is_not_taken_for_one_behind_the_beginning_of_another(before: bytes, loop: PipeLoop) -> None:
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


def test_bytes_behind_a_known_response_are_no_answer(loop: PipeLoop) -> None:
    world = World(loop, answering=False).open()
    client = world.client()
    for extra in (b"", b"", b"", b"evil"):
        client.send(GET % 4)
        world.settle()
        link = next(it for it in world.links if it.waiting)
        link.scripted = True
        link.pipe.send(OK + extra)
        world.settle()
    assert known(world)[1] == 1
    assert [it.body for it in client.got.messages] == [b"ok"] * 4
    assert link.pipe.ended
    check(world)
