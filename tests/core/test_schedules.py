"""The whole balancer but its sockets, on a virtual clock, through thousands of random schedules.

Each schedule is a small world: members that come up, refuse, hang, drain, die and leave, a DNS that
lies now and then, clients that come, send bodies and lose patience. What must never be, whatever
happens in which order, is checked after every turn of the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from balancer.http.request import Request
from balancer.members.member import Member
from balancer.policies import Policy
from tests.support.schedules import run
from tests.support.virtual import SteppedLoop

SCHEDULES = 500
MANY_SCHEDULES = 10_000
SHARDS = 10


def run_all(seeds: range) -> None:
    """Run the schedules of these seeds; a failure names its own."""
    loop = SteppedLoop()
    answered = repeated = 0
    try:
        for seed in seeds:
            try:
                world = run(seed, loop)
            except BaseException as error:
                error.add_note(f"schedule {seed}")
                raise
            answered += world.started.total()
            repeated += sum(count > 1 for count in world.written.values())
    finally:
        loop.close()
    # The schedules are worth something only if a good deal happens in them.
    assert answered > 3 * len(seeds)
    assert repeated > len(seeds) / 100


@pytest.mark.parametrize("shard", range(2))
def test_invariants_hold_under_any_schedule(shard: int, quiet: None) -> None:
    run_all(range(shard, SCHEDULES, 2))


@pytest.mark.long
@pytest.mark.parametrize("shard", range(SHARDS))
def test_rules_hold_in_ten_thousand_schedules(shard: int, quiet: None) -> None:
    run_all(range(SCHEDULES + shard, MANY_SCHEDULES, SHARDS))


class _Overtaking(Policy):
    """A wrong policy, to see that the checks can fail: it forgets what is full."""

    def build(self, members: Any) -> None:
        self._members = members

    def choose(self, request: Request, exclude: Any = ()) -> Member | None:
        return self._members[0] if self._members else None


def test_checks_can_fail(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    monkeypatch.setattr("balancer.loadbalancer.make_policy", lambda *_: _Overtaking())
    loop = SteppedLoop()
    failures = 0
    for seed in range(30):
        try:
            run(seed, loop)
        except (AssertionError, ExceptionGroup):
            failures += 1
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.after_each = lambda: None
            loop.run_until_complete(asyncio.sleep(10))
    loop.close()
    assert failures
