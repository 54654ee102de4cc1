from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.dispatch.replay import REPLAY_BYTES, ReplayableBody
from balancer.errors import Refusal
from balancer.http.headers import NO_FIELDS


class Pieces:
    """A body that comes in these pieces; ``reads`` counts how often it was asked."""

    trailers = NO_FIELDS

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = list(pieces)
        self.reads = 0

    @property
    def ended(self) -> bool:
        return not self._pieces

    async def read(self) -> bytes:
        self.reads += 1
        return self._pieces.pop(0) if self._pieces else b""


async def take(body: ReplayableBody, pieces: int) -> bytes:
    return b"".join([await body.read() for _ in range(pieces)])


async def rest(body: ReplayableBody) -> bytes:
    read = bytearray()
    while piece := await body.read():
        read += piece
    return bytes(read)


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=9), st.lists(st.integers(0, 10), max_size=4))
async def test_small_body_is_the_same_each_time_it_is_sent(pieces: list[bytes], tries: list[int]) -> None:
    body = ReplayableBody(Pieces(pieces))
    for reads in tries:
        assert b"".join(pieces).startswith(await take(body, reads))
        body.rewind()
    assert await rest(body) == b"".join(pieces)
    assert body.in_hand


async def test_body_is_whole_with_the_last_byte_of_its_length() -> None:
    body = ReplayableBody(Pieces([b"bo", b"dy", b""]))
    body.length = 4
    whole = []
    for _ in range(3):
        await body.read()
        whole.append(body.is_whole)
    assert whole == [False, True, True]


async def test_source_that_has_ended_is_not_asked_again() -> None:
    source = Pieces([b"a", b"b"])
    body = ReplayableBody(source)
    for _ in range(2):
        assert await rest(body) == b"ab"
        assert await body.read() == b""
        body.rewind()
    assert source.reads == 2


@pytest.mark.parametrize(("size", "in_hand"), [(REPLAY_BYTES, True), (REPLAY_BYTES + 1, False)])
async def test_body_stays_in_hand_up_to_64_kib(size: int, in_hand: bool) -> None:
    body = ReplayableBody(Pieces([b"x" * (size - 1), b"x"]))
    assert len(await rest(body)) == size
    assert body.in_hand is in_hand


@given(st.lists(st.integers(1, 40_000), min_size=2, max_size=8), st.integers(0, 2))
async def test_body_of_any_size_passes_whole_once(sizes: list[int], reads: int) -> None:
    pieces = [bytes([index]) * size for index, size in enumerate(sizes)]
    body = ReplayableBody(Pieces(pieces))
    begun = await take(body, reads)
    assert begun + await rest(body) == b"".join(pieces)
    assert body.in_hand is (sum(sizes) <= REPLAY_BYTES)


async def test_body_that_outgrows_the_limit_on_its_second_try_is_sent_whole_by_that_try() -> None:
    pieces = [b"a" * 60_000, b"b" * 60_000, b"c"]
    body = ReplayableBody(Pieces(pieces))
    await body.read()
    body.rewind()
    assert await rest(body) == b"".join(pieces)
    assert not body.in_hand


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"ab", b"cd"], [b"abc", b"d"], [b"ab"], [b"a", b"b"], []])
async def test_body_of_another_length_than_announced_is_refused_before_what_is_too_much_is_read(
    pieces: list[bytes],
) -> None:
    body = ReplayableBody(Pieces(pieces))
    body.length = 3
    read = b""
    with pytest.raises(Refusal, match="longer or shorter") as refused:
        while piece := await body.read():
            read += piece
    assert (refused.value.status, refused.value.token) == (400, "malformed_request")
    assert b"abc".startswith(read)


@pytest.mark.parametrize("pieces", [[b"abc"], [b"a", b"bc"], [b"a", b"b", b"c"]])
async def test_body_of_the_length_announced_is_read_each_time(pieces: list[bytes]) -> None:
    body = ReplayableBody(Pieces(pieces))
    body.length = 3
    for _ in range(2):
        assert await rest(body) == b"abc"
        body.rewind()
