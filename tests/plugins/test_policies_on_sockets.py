"""Policies between real clients and members: what they see of requests, hooks and each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from random import Random
from typing import Any

import pytest

from balancer.config.settings import Settings
from balancer.hooks import HookRequest
from balancer.http.headers import Headers
from balancer.members.member import Member as KnownMember
from balancer.policies import HashRing, LeastRequests, Outcome, Policy, make_policy
from tests.support.hooked import Counting, ask, fields_of, request_hook, response_hook
from tests.support.messages import GET
from tests.support.wire import Member, balance


class Seeing(Policy):
    """Leaves the choice to others, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[HookRequest] = []

    def build(self, members: Sequence[KnownMember]) -> None: ...

    def choose(self, request: HookRequest, exclude: Container[KnownMember] = ()) -> KnownMember | None:
        self.seen.append(request)
        return None

    def response_headers(self, request: HookRequest, member: KnownMember) -> Headers:
        self.seen.append(request)
        return [(b"x-marked", request.target.encode())]


@pytest.mark.usefixtures("each_way")
async def test_policy_sees_the_very_request_that_hooks_see() -> None:
    seen: list[HookRequest] = []

    def note(request: HookRequest) -> None:
        seen.append(request)
        request.headers.set("X-Tenant", request.target)
        request.notes["admin"] = request.target.startswith("/admin")

    policy, hooks = Seeing(), [request_hook(note), response_hook(lambda request, _: seen.append(request))]
    async with Member() as member, balance(member, own_policy=policy, hooks=hooks) as running:
        async with running.client() as client:
            for target in (b"/admin", b"/other"):
                for _ in range(2):
                    head = await ask(client, GET.replace(b"/ ", target + b" "))
                    assert fields_of(head, b"x-marked") == [target]
        assert len(seen) == len(policy.seen) == 8
        assert all(one is other for one, other in zip(seen, policy.seen, strict=True))
        assert [it.id.encode() for it in policy.seen[::2]] == [it.id for it in running.records]
    assert [(it.headers.get("x-tenant"), it.notes["admin"]) for it in policy.seen[::4]] == [
        ("/admin", True),
        ("/other", False),
    ]


@pytest.mark.usefixtures("each_way")
async def test_policy_without_hooks_sees_text_and_each_request_by_its_id() -> None:
    policy = Seeing()
    async with Member() as member, balance(member, own_policy=policy) as running, running.client() as client:
        for _ in range(4):
            await ask(client, b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-Tenant: blue\r\n\r\n")
        ids = [it.id.decode() for it in running.records]
    assert len(set(ids)) == 4 and [it.id for it in policy.seen[::2]] == ids
    assert {(it.target, it.host, it.headers.get("X-Tenant")) for it in policy.seen} == {("/a?b", "a", "blue")}


@pytest.mark.usefixtures("each_way")
async def test_request_is_changed_in_on_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Changing(Seeing):
        def choose(self, request: HookRequest, exclude: Container[KnownMember] = ()) -> KnownMember | None:
            request.headers.set("X-Late", "1")
            return None

    late = response_hook(lambda request, _: request.headers.remove("host"))
    for hooks in ([], [late], [late, Counting()]):
        async with Member() as member, balance(member, own_policy=Changing(), hooks=hooks) as running:
            async with running.client() as client:
                for _ in range(2):
                    await ask(client)
            assert b"x-late" not in member.received[0].lower()
    said = [it.getMessage() for it in caplog.records if it.levelno == logging.ERROR]
    assert len(said) == 5
    assert all("only on_request may change the fields of a request" in it for it in said)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("settings", [{}, {"sticky_cookie": "member"}], ids=["plain", "sticky"])
async def test_policy_may_extend_one_of_the_balancers_own(settings: dict[str, Any]) -> None:
    class ByTenant(HashRing):
        def __init__(self) -> None:
            super().__init__(lambda request: request.headers.get("x-tenant"), LeastRequests(Random(1)))

        def choose(self, request: HookRequest, exclude: Container[KnownMember] = ()) -> KnownMember | None:
            assert request.target == "/"
            return super().choose(request, exclude)

    async with Member() as one, Member() as other:
        async with balance(one, other, own_policy=ByTenant(), **settings) as running, running.client() as client:
            for tenant in range(20):
                for _ in range(2):
                    await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: %d\r\n\r\n" % tenant)
        found = [set(fields_of(b"".join(it.received), b"x-tenant")) for it in (one, other)]
    assert found[0] and found[1] and not found[0] & found[1]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ["header:X-Tenant", "cookie:session", "client"])
async def test_policy_of_the_balancers_own_may_be_given_as_an_object(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = make_policy(Settings.of(policy="hash", hash_key=kind), Random(1), time.monotonic)
    async with (
        Member() as one,
        Member() as other,
        balance(one, other, own_policy=policy) as running,
        running.client() as client,
    ):
        for _ in range(6):
            await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\nCookie: session=1\r\n\r\n")
    assert sorted(len(it.received) for it in (one, other)) == [0, 1]
    assert not [it for it in caplog.records if it.levelno == logging.ERROR]


class Learning:
    """Leaves the choice to others, and keeps what came of it; no ``Policy``, but for its methods."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[KnownMember, Outcome]] = []

    def build(self, members: Sequence[KnownMember]) -> None: ...

    def choose(self, request: HookRequest, exclude: Container[KnownMember]) -> KnownMember | None:
        return None

    def finished(self, member: KnownMember, outcome: Outcome) -> None:
        self.outcomes.append((member, outcome))
        raise LookupError("does it break the request?")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("settings", [{}, {"sticky_cookie": "member"}], ids=["plain", "sticky"])
async def test_policy_gets_the_outcome_of_each_attempt(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy = Learning()
    async with (
        Member() as member,
        balance(member, own_policy=policy, **settings) as running,
        running.client() as client,
    ):
        for _ in range(3):
            assert (await ask(client)).startswith(b"HTTP/1.1 200")
    assert [(outcome.status, outcome.failure) for _, outcome in policy.outcomes] == 3 * [(200, "")]
    assert {str(known.address) for known, _ in policy.outcomes} == {str(member.address)}
    assert len([it for it in caplog.records if it.levelno == logging.ERROR]) == 1


async def test_policies_see_what_hooks_have_changed() -> None:
    hook = request_hook(lambda request: request.headers.set("X-Tenant", request.headers.get("x-key")))
    settings: dict[str, Any] = {"policy": "hash", "hash_key": ("header", "X-Tenant")}
    async with Member() as one, Member() as other, balance(one, other, hooks=[hook], **settings) as running:
        async with running.client() as client:
            for key in range(20):
                for _ in range(2):
                    await ask(client, b"GET / HTTP/1.1\r\nHost: a\r\nX-Key: %d\r\n\r\n" % key)
        found = [set(fields_of(b"".join(it.received), b"x-tenant")) for it in (one, other)]
    assert found[0] and found[1] and not found[0] & found[1]
    assert len(found[0] | found[1]) == 20
