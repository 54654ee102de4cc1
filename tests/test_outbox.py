"""Writes of one turn of the event loop: what waits, and for how long."""

from __future__ import annotations

import asyncio

from balancer.outbox import MAX_WAITING, Outbox, outbox


async def test_writes_of_a_turn_are_made_in_order_at_its_end() -> None:
    written: list[int] = []
    for number in range(3):
        outbox().add(lambda number=number: written.append(number))  # type: ignore[misc]
    assert written == []
    await asyncio.sleep(0)
    assert written == [0, 1, 2]


async def test_more_writes_than_may_wait_are_made_at_once() -> None:
    written: list[int] = []
    box = Outbox(asyncio.get_running_loop())
    for _ in range(MAX_WAITING + 1):
        box.add(lambda: written.append(1))
    assert len(written) == MAX_WAITING
    await asyncio.sleep(0)
    assert len(written) == MAX_WAITING + 1
    await asyncio.sleep(0)
    assert len(written) == MAX_WAITING + 1


async def test_write_that_is_added_by_another_waits_for_the_next_turn() -> None:
    written: list[int] = []
    box = Outbox(asyncio.get_running_loop())
    box.add(lambda: box.add(lambda: written.append(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert written == [1]


def test_each_event_loop_has_an_outbox_of_its_own() -> None:
    async def own() -> Outbox:
        assert outbox() is outbox()
        return outbox()

    assert asyncio.run(own()) is not asyncio.run(own())
