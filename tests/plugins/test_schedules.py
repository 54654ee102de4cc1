"""The random schedules of ``tests.support.schedules`` with a policy and hooks that do whatever plug-ins should not.

Nothing that must not be may be for their sake: no request is lost or ends twice, no slot is lost, nobody waits while a
member is free, and no member that left or is full is chosen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Sequence
from random import Random
from typing import Any, ClassVar, cast

import pytest

from balancer.discovery.snapshot import Endpoint
from balancer.errors import ClientGone, ConnectFailed, Refusal, ResponseTimeout, TruncatedResponse
from balancer.hooks import HookRequest, HookResponse, Hooks
from balancer.http.headers import Headers
from balancer.members.health import State
from balancer.members.member import Member
from balancer.policies import Policy
from balancer.types import Address
from tests.support.schedules import World, run
from tests.support.virtual import SteppedLoop

SCHEDULES = 200
MANY_SCHEDULES = 1500

# What a plug-in may raise; among it what the balancer itself says things with.
ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("no"),
    lambda: KeyError("tenant"),
    lambda: RecursionError(),
    lambda: asyncio.CancelledError(),
    lambda: TimeoutError(),
    lambda: ClientGone(),
    lambda: ConnectFailed("refused", refused=True),
    lambda: ResponseTimeout("late", sent=True),
    lambda: TruncatedResponse("cut"),
    lambda: Refusal(302, "elsewhere", "not a refusal"),
    lambda: Refusal(503, "Not A Token\r\n", "nor this"),
]


class Wild(Policy):
    """Chooses badly, or raises, as often as it does neither. ``did`` counts what it did."""

    def __init__(self, rng: Random, did: Counter[str]) -> None:
        self.rng = rng
        self.did = did
        self.known: list[Member] = [Member(Endpoint(Address("10.9.9.9", 80)), 0.0)]

    def build(self, members: Sequence[Member]) -> None:
        self.members = members
        self.known += members
        if self.rng.random() < 0.3:
            self.did["build raised"] += 1
            raise self.rng.choice(ERRORS)()

    def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> Member | None:
        odds = self.rng.random()
        if odds < 0.2:
            self.did["choose raised"] += 1
            raise self.rng.choice(ERRORS)()
        if odds < 0.4:
            self.did["chose anybody"] += 1
            return self.rng.choice(self.known)
        if odds < 0.5:
            self.did["chose nonsense"] += 1
            nonsense: list[Any] = ["10.0.0.1:80", 0, [], {}, object()]
            return cast(Member, self.rng.choice(nonsense))
        if odds < 0.6:
            return None
        left = [it for it in self.members if it not in exclude]
        self.did["chose"] += 1
        return self.rng.choice(left) if left else None

    def response_headers(self, request: HookRequest, member: Member) -> Headers:
        if self.rng.random() < 0.3:
            self.did["response_headers raised"] += 1
            raise self.rng.choice(ERRORS)()
        nonsense: list[Any] = [[(b"x-member", b"1")], [(b"content-length", b"1")], None, [1], "ab"]
        return cast(Headers, self.rng.choice(nonsense))


class WildHooks(Hooks):
    def __init__(self, rng: Random, did: Counter[str]) -> None:
        self.rng = rng
        self.did = did
        self.fail_closed = rng.random() < 0.5

    def _act(self, fields: Any) -> None:
        fields.set("x-hook", "1")
        if self.rng.random() < 0.3:
            self.did["hook raised"] += 1
            raise self.rng.choice(ERRORS)()

    def on_request(self, request: HookRequest) -> None:
        self._act(request.headers)
        if self.rng.random() < 0.1:
            self.did["refused"] += 1
            raise Refusal(403, "not_today", "come back tomorrow")

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        self._act(response.headers)

    def on_member_added(self, member: Member) -> None:
        if self.rng.random() < 0.3:
            self.did["member hook raised"] += 1
            raise self.rng.choice(ERRORS)()

    def on_member_removed(self, member: Member) -> None:
        self.on_member_added(member)

    def on_member_state_changed(self, member: Member, before: State) -> None:
        self.on_member_added(member)


class WildWorld(World):
    did: ClassVar[Counter[str]] = Counter()

    def plug_ins(self) -> dict[str, Any]:
        # A random generator of their own: what the world does stays the same.
        rng = Random(self.rng.random())
        hooks = [WildHooks(rng, self.did)] if rng.random() < 0.7 else []
        return {"policy": Wild(rng, self.did), "hooks": hooks}


def run_all(seeds: range) -> None:
    """Run the schedules of these seeds; a failure names its own."""
    did: Counter[str] = Counter()
    WildWorld.did = did
    loop = SteppedLoop()
    answered = 0
    try:
        for seed in seeds:
            try:
                world = run(seed, loop, WildWorld)
            except BaseException as error:
                error.add_note(f"schedule {seed}")
                raise
            answered += world.started.total()
    finally:
        loop.close()
    assert answered > 3 * len(seeds)
    assert min(did.values()) > len(seeds) / 10 and len(did) == 9, did


def test_plug_ins_lose_no_request_and_no_slot_whatever_they_do(quiet: None) -> None:
    run_all(range(SCHEDULES))


@pytest.mark.long
def test_plug_ins_lose_nothing_in_many_schedules(quiet: None) -> None:
    run_all(range(SCHEDULES, MANY_SCHEDULES))


def test_plug_ins_without_the_guard_lose_requests_and_slots(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    monkeypatch.setattr("balancer.plugins.loader.GuardedPolicy", lambda policy, *_: policy)
    loop = SteppedLoop()
    failures = 0
    for seed in range(10):
        try:
            run(seed, loop, WildWorld)
        except BaseException:
            failures += 1
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.after_each = lambda: None
            loop.set_exception_handler(lambda *_: None)
            loop.run_until_complete(asyncio.sleep(10))
    loop.close()
    assert failures
