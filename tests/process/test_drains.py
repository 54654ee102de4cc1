"""A drain by hand outlives the process that was asked for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from balancer.config.settings import Settings
from balancer.discovery.snapshot import Endpoint, Snapshot
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.process.drains import Drains, make_file
from balancer.types import Address

NOW = Snapshot((), 0.0)


@pytest.fixture
def notes() -> Iterator[int]:
    descriptor = make_file()
    yield descriptor
    os.close(descriptor)


class Process:
    """One that follows the notes for a pool, and the members that it has found."""

    def __init__(self, notes: int, members: int = 2, **settings: str) -> None:
        self.drains = Drains(notes, Settings(**settings), self.drain)  # type: ignore[arg-type]
        self.members = [Member(Endpoint(Address(f"10.0.0.{number}", 80)), 0.0) for number in range(members)]
        self.drains.resolved(NOW, Change(joined=self.members))

    def drain(self, member: Member, drained: bool = True) -> None:
        """As ``LoadBalancer.drain``."""
        member.drained = drained
        self.drains.drained(member)

    def leave(self, member: Member) -> None:
        self.drains.resolved(NOW, Change(left=[member]))

    @property
    def drained(self) -> list[bool]:
        return [it.drained for it in self.members]


def test_next_process_knows_who_is_drained(notes: int) -> None:
    first = Process(notes)
    first.drain(first.members[1])
    assert Process(notes).drained == [False, True]
    assert Process(notes).drained == [False, True]


def test_member_that_is_no_longer_drained_stays_so(notes: int) -> None:
    first = Process(notes)
    first.drain(first.members[0])
    second = Process(notes)
    second.drain(second.members[0], drained=False)
    assert Process(notes).drained == [False, False]


def test_address_that_was_gone_is_another_containers(notes: int) -> None:
    first = Process(notes)
    first.drain(first.members[0])
    first.leave(first.members[0])
    assert Process(notes).drained == [False, False]


def test_address_that_is_gone_when_a_process_starts_is_forgotten(notes: int) -> None:
    first = Process(notes)
    first.drain(first.members[1])
    Process(notes, members=1)
    assert Process(notes).drained == [False, False]


def test_pools_are_told_apart(notes: int) -> None:
    shop, other = Process(notes, alias="shop"), Process(notes, alias="other")
    shop.drain(shop.members[0])
    other.drain(other.members[1])
    assert Process(notes, alias="shop").drained == [True, False]
    assert Process(notes, alias="other").drained == [False, True]


def test_drains_half_written_stop_no_process(notes: int) -> None:
    os.pwrite(notes, b'{"apps:80": ["10.0.', 0)
    found = Process(notes)
    found.drain(found.members[0])
    assert Process(notes).drained == [True, False]
