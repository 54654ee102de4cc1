"""What is kept of values that come again: little, and nothing that is long."""

from __future__ import annotations

import pytest

from balancer.http.value_cache import KEY_MAX, ValueCache, cached


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
