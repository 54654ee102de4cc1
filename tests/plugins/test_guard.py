"""What a policy or a hook does wrong is logged once for each kind, and things go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Sequence
from typing import Any

import pytest

from balancer.discovery.snapshot import Endpoint
from balancer.errors import ConnectFailed, Refusal
from balancer.hooks import HookRequest, HookResponse, Hooks
from balancer.http.headers import Headers
from balancer.http.request import Request
from balancer.members.member import Member
from balancer.plugins.guard import KINDS_MAX, GuardedPolicy, Reports, describe
from balancer.plugins.hook_chain import HookChain
from balancer.policies import HashRing, LeastLatency, Outcome, Policy, RoundRobin, Sticky
from balancer.types import Address
from tests.support.nought import Nought

RAW = Request("GET", b"/", [(b"host", b"a")], "192.0.2.1")
ANY = HookRequest(RAW)
MEMBERS = tuple(Member(Endpoint(Address(f"10.0.0.{it}", 80)), 0.0) for it in range(3))
A, B, C = MEMBERS


class Scripted(Policy):
    """Does what it is told: raises exceptions, returns anything else."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def build(self, members: Sequence[Member]) -> None:
        self.members = members

    def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> Member | None:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        chosen: Member | None = answer
        return chosen


def guarded(policy: Policy, members: Sequence[Member] = MEMBERS) -> GuardedPolicy:
    found = GuardedPolicy(policy, Reports(), Nought())
    found.build(members)
    return found


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(it.levelno == logging.ERROR for it in caplog.records)
    return [it.getMessage() for it in caplog.records]


def test_policy_that_works_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    policy = guarded(Scripted(C))
    assert [policy.choose(ANY) for _ in range(3)] == [C, C, C]
    assert not caplog.records


def test_policy_that_raises_is_logged_once_and_members_take_turns(caplog: pytest.LogCaptureFixture) -> None:
    policy = guarded(Scripted(KeyError("tenant")))
    assert [policy.choose(ANY) for _ in range(4)] == [A, B, C, A]
    (line,) = lines(caplog)
    assert line.startswith("the policy tests.plugins.test_guard:Scripted raised KeyError: 'tenant' (")
    assert "test_guard.py, line " in line and "; members take turns" in line
    assert caplog.records[0].exc_info


def test_kinds_are_told_apart_by_exception_and_place(caplog: pytest.LogCaptureFixture) -> None:
    class Several(Scripted):
        def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> Member | None:
            self.asked += 1
            if self.asked % 3 == 0:
                raise ValueError("here")
            if self.asked % 3 == 1:
                raise ValueError(f"there, {self.asked}")
            raise KeyError("here")

    policy = guarded(Several())
    for _ in range(30):
        policy.choose(ANY)
    assert len(lines(caplog)) == 3


def test_hook_that_says_something_wrong_is_named_at_its_line(caplog: pytest.LogCaptureFixture) -> None:
    class Careless(Hooks):
        def on_request(self, request: HookRequest) -> None:
            if "x-a" not in request.headers:
                request.headers.set("content-length", "1")
            request.headers.set("content-length", "1")

    chain = HookChain([Careless()], Reports())
    for fields in ([], [(b"x-a", b"1")]):
        chain.request(HookRequest(Request("GET", b"/", fields, "")))
    assert ["test_guard.py, line " in it for it in lines(caplog)] == [True, True]


def test_log_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    policy = Scripted(None)
    found = guarded(policy)
    for number in range(3 * KINDS_MAX):
        policy.answers = [type(f"Error{number}", (Exception,), {})()]
        assert found.choose(ANY) in MEMBERS
    assert len(lines(caplog)) == KINDS_MAX


@pytest.mark.parametrize("wrong", ["10.0.0.1:80", 1, [], {}, Member(A.endpoint, 0.0), object(), Member])
def test_choice_that_is_no_member_is_not_taken(wrong: object, caplog: pytest.LogCaptureFixture) -> None:
    policy = guarded(Scripted(wrong))
    assert [policy.choose(ANY) for _ in range(2)] == [A, B]
    assert len(lines(caplog)) == 1


def test_member_that_has_left_since_is_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    policy = guarded(Scripted(C))
    policy.build((A, B))
    assert [policy.choose(ANY) for _ in range(2)] == [A, B]
    assert "is not one of the members" in lines(caplog)[0]


def test_member_that_is_excluded_is_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    policy = guarded(Scripted(B))
    assert [policy.choose(ANY, {A, B}) for _ in range(2)] == [C, C]
    assert policy.choose(ANY, set(MEMBERS)) is None
    assert ["is excluded" in it for it in lines(caplog)] == [True]


def test_none_leaves_the_choice_to_turns(caplog: pytest.LogCaptureFixture) -> None:
    policy = guarded(Scripted(None))
    assert [policy.choose(ANY) for _ in range(2)] == [A, B]
    assert not caplog.records


def test_policy_is_not_asked_where_there_is_no_member(caplog: pytest.LogCaptureFixture) -> None:
    policy = Scripted(ValueError("max() of nothing"))
    assert guarded(policy, ()).choose(ANY) is None
    assert policy.asked == 0 and not caplog.records


def test_members_take_turns_until_build_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Scripted):
        def build(self, members: Sequence[Member]) -> None:
            if len(members) == 3:
                raise ValueError("three are too many")

    inner = Picky(B)
    policy = guarded(inner)
    assert [policy.choose(ANY) for _ in range(4)] == [A, B, C, A]
    assert inner.asked == 0
    policy.build((A, B))
    assert [policy.choose(ANY) for _ in range(2)] == [B, B]
    policy.build(MEMBERS)
    assert policy.choose(ANY) is not None and inner.asked == 2
    (line,) = lines(caplog)
    assert line.startswith("build of the policy") and "members take turns until it succeeds" in line


def test_marks_are_checked_like_the_fields_of_hooks(caplog: pytest.LogCaptureFixture) -> None:
    class Marking(Scripted):
        answer: Any = ((b"X-Member", b"b"),)

        def response_headers(self, request: HookRequest, member: Member) -> Headers:
            found: Headers = self.answer
            return found

    inner = Marking(B)
    policy = guarded(inner)
    assert policy.response_headers(ANY, B) == [(b"x-member", b"b")]
    for wrong in ([(b"content-length", b"3")], [(b"x", b"a\r\nb: c")], None, [1]):
        inner.answer = wrong
        assert policy.response_headers(ANY, B) == []
    # The last two are of one kind.
    assert len(lines(caplog)) == 3
    assert guarded(Scripted(B)).response_headers(ANY, B) == []


class Learning(Scripted):
    """Keeps what came of attempts."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(*answers)
        self.outcomes: list[tuple[Member, Outcome]] = []

    def finished(self, member: Member, outcome: Outcome) -> None:
        self.outcomes.append((member, outcome))


class ByMethods:
    """No ``Policy``, but for its methods."""

    def __init__(self, finished: Any) -> None:
        self.finished = finished

    def build(self, members: Sequence[Member]) -> None: ...

    def choose(self, request: HookRequest, exclude: Container[Member]) -> Member | None:
        return None


class LearningRing(HashRing):
    def __init__(self, fallback: Policy) -> None:
        super().__init__(lambda request: b"", fallback)
        self.finishes = 0

    def finished(self, member: Member, outcome: Outcome) -> None:
        self.finishes += 1
        super().finished(member, outcome)


def ring(fallback: Policy) -> HashRing:
    return HashRing(lambda request: b"", fallback)


OUTCOME = Outcome(200, "", 0.01, 0.02)


def test_only_policies_that_define_finished_learn() -> None:
    assert not guarded(Scripted(A)).learns
    assert guarded(Learning(A)).learns
    assert guarded(LeastLatency(Nought(), lambda: 0.0)).learns
    assert guarded(LearningRing(RoundRobin(Nought()))).learns
    for wrap in (ring, lambda policy: Sticky("member", policy), lambda policy: guarded(ring(policy))):
        assert not wrap(RoundRobin(Nought())).learns
        assert wrap(Learning(A)).learns
    for finished in (None, print):
        policy: Any = ByMethods(finished)
        assert GuardedPolicy(policy, Reports(), Nought()).learns == (finished is print)


def test_outcomes_pass_through_every_layer() -> None:
    learning = Learning(A)
    extended = LearningRing(learning)
    Sticky("member", guarded(extended)).finished(A, OUTCOME)
    assert extended.finishes == 1
    [(member, outcome)] = learning.outcomes
    assert member is A and repr(outcome) == repr(OUTCOME)


def test_policy_that_changes_an_outcome_changes_its_own() -> None:
    learning = Learning(A)
    guarded(learning).finished(A, OUTCOME)
    learning.outcomes[0][1].status = 500
    assert OUTCOME.status == 200


def test_finished_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Scripted):
        def finished(self, member: Member, outcome: Outcome) -> None:
            raise LookupError("what was it?")

    policy = guarded(Broken(A))
    for _ in range(3):
        policy.finished(A, OUTCOME)
    [line] = lines(caplog)
    assert line.startswith("finished of the policy ")
    assert "raised LookupError: what was it?" in line and "the policy does without this outcome" in line
    assert policy.choose(ANY) is A


def test_policy_by_its_methods_alone_needs_no_mark() -> None:
    class Plain:
        def build(self, members: Sequence[Member]) -> None:
            self.members = members

        def choose(self, request: HookRequest, exclude: Container[Member]) -> Member:
            return self.members[-1]

    plain: Any = Plain()
    policy = guarded(plain)
    assert policy.choose(ANY) is C and policy.response_headers(ANY, C) == []


class Called(Hooks):
    """Sets a field; then raises what it is told."""

    def __init__(self, name: str, error: BaseException | None = None) -> None:
        self.name = name
        self.error = error

    def on_request(self, request: HookRequest) -> None:
        request.headers.set(self.name, "1")
        if self.error:
            raise self.error

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        response.headers.set(self.name, "1")
        if self.error:
            raise self.error


def called(*hooks: Hooks) -> tuple[Refusal | None, list[tuple[str, str]]]:
    """What becomes of a request."""
    request = HookRequest(RAW)
    return HookChain(hooks, Reports()).request(request), list(request.headers)


def test_changes_of_a_hook_that_raises_are_undone(caplog: pytest.LogCaptureFixture) -> None:
    hooks = Called("x-a"), Called("x-b", ValueError("no")), Called("x-c")
    assert called(*hooks) == (None, [("host", "a"), ("x-a", "1"), ("x-c", "1")])
    assert RAW.headers == [(b"host", b"a")]
    response = HookResponse(200, [(b"server", b"x")], A.address)
    assert HookChain(hooks, Reports()).response(ANY, response) is None
    assert list(response.headers) == [("server", "x"), ("x-a", "1"), ("x-c", "1")]
    first, second = lines(caplog)
    assert first.startswith("on_request of tests.plugins.test_guard:Called raised ValueError: no (")
    assert "; the request goes on" in first and "; the response goes on" in second


def test_refusal_ends_the_row_of_hooks() -> None:
    last = Called("x-b")
    refusal, fields = called(Called("x-a", Refusal(401, "no_key", "who?", 3, {"WWW-Authenticate": "Basic"})), last)
    assert refusal and (refusal.status, refusal.token, refusal.reason, refusal.retry_after) == (
        401,
        "no_key",
        "who?",
        3,
    )
    assert refusal.headers == {"www-authenticate": "Basic"}
    assert ("x-b", "1") not in fields


def test_same_refusal_raised_again_and_again_keeps_nothing_of_the_past() -> None:
    refusal = Refusal(403, "closed", "closed")
    for _ in range(3):
        called(Called("x-a", refusal))
    depth, trace = 0, refusal.__traceback__
    while trace:
        depth, trace = depth + 1, trace.tb_next
    assert depth == 0


WRONG: list[Any] = [
    Refusal(200, "fine", "ok"),
    Refusal(302, "elsewhere", "there"),
    Refusal(302, "elsewhere", "there", headers={"Location": ""}),
    Refusal(302, "elsewhere", "there", headers={"Location": "/a b"}),
    Refusal(302, "elsewhere", "there", headers={"Location": "/caf\xe9"}),
    Refusal(302, "elsewhere", "there", headers={"Location": "/\r\nSet-Cookie: a=b"}),
    Refusal(302, "elsewhere", "there", headers={"Location": "/a", "location": " "}),
    *(Refusal(status, "elsewhere", "there", headers={"Location": "/"}) for status in (300, 304, 305, 306, 309, 399)),
    Refusal(600, "odd", "odd"),
    Refusal(403, "Not A Token", "no"),
    Refusal(403, "a\r\nb: c", "no"),
    Refusal(403, "x" * 41, "no"),
    Refusal(403, "closed", "\ud800"),
    Refusal(403, "closed", "no", -1),
    Refusal(403, "closed", "no", 1.5),  # type: ignore[arg-type]
    Refusal("403", "closed", "no"),  # type: ignore[arg-type]
    Refusal(403, None, "no"),  # type: ignore[arg-type]
    Refusal(403, "closed", "no", headers={"Content-Length": "3"}),
    Refusal(403, "closed", "no", headers={"X-Balancer-Error": "other"}),
    Refusal(403, "closed", "no", headers={"Content-Type": "text/html"}),
    Refusal(403, "closed", "no", headers={"X": "a\r\nb: c"}),
    Refusal(403, "closed", "no", headers={"X": "\u20ac"}),
    Refusal(403, "closed", "no", headers=3),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("refusal", WRONG, ids=lambda it: f"{it.status}-{it.token}-{it.headers}")
def test_refusal_that_cannot_be_sent_refuses_nothing(refusal: Refusal, caplog: pytest.LogCaptureFixture) -> None:
    assert called(Called("x-a", refusal)) == (None, [("host", "a")])
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_refusal_may_send_the_client_elsewhere(status: int) -> None:
    location = "https://login.example/?next=%2Fadmin&a=b#c"
    refusal, _ = called(Called("x-a", Refusal(status, "log_in", "log in first", headers={"LOCATION": location})))
    assert refusal and (refusal.status, refusal.headers) == (status, {"location": location})


class Guard(Called):
    fail_closed = True


def closed(refusal: Refusal | None) -> bool:
    return refusal is not None and (refusal.status, refusal.token) == (503, "hook_failed")


@pytest.mark.parametrize(
    "error",
    [*WRONG, TypeError("startswith"), asyncio.CancelledError(), StopIteration(), TimeoutError(), ConnectFailed("no")],
    ids=repr,
)
def test_guard_that_fails_lets_nothing_through(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    chain = HookChain([Called("x-a"), Guard("x-b", error), Called("x-c")], Reports())
    for _ in range(3):
        request = HookRequest(RAW)
        assert closed(chain.request(request))
        assert "x-c" not in request.headers
        assert closed(chain.response(request, HookResponse(200, [], A.address)))
    first, second = lines(caplog)
    assert first.startswith("on_request of tests.plugins.test_guard:Guard raised ")
    assert "; the client gets 503 hook_failed" in first
    assert second.startswith("on_response of tests.plugins.test_guard:Guard raised ")
    assert "; the client gets 503 hook_failed" in second


def test_guard_that_works_refuses_or_not_as_it_says() -> None:
    assert called(Guard("x-a")) == (None, [("host", "a"), ("x-a", "1")])
    refusal, _ = called(Guard("x-a", Refusal(403, "closed", "closed")))
    assert refusal and refusal.token == "closed"


@pytest.mark.parametrize("hook", [Called, Guard])
def test_hook_that_returns_something_has_failed(hook: type[Called], caplog: pytest.LogCaptureFixture) -> None:
    """It returns the refusal that it should raise, or it is a coroutine function behind a decorator."""

    class Returning(hook):  # type: ignore[valid-type, misc]
        def on_request(self, request: HookRequest) -> Any:
            super().on_request(request)
            return Refusal(403, "closed", "closed")

        def on_response(self, request: HookRequest, response: HookResponse) -> Any:
            super().on_response(request, response)
            return asyncio.Future

    refusal, fields = called(Returning("x-a"))
    response = HookResponse(200, [], A.address)
    other = HookChain([Returning("x-a")], Reports()).response(ANY, response)
    if hook is Guard:
        assert closed(refusal) and closed(other)
    else:
        assert refusal is None and other is None
        assert fields == [("host", "a")] and list(response.headers) == []
    first, second = lines(caplog)
    assert "returned an object of type Refusal, and None is expected" in first
    assert "returned the class Future, and None is expected" in second


def test_response_cannot_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    response = HookResponse(200, [], A.address)
    chain = HookChain([Called("x-a", Refusal(503, "closed", "closed"))], Reports())
    assert chain.response(ANY, response) is None
    assert list(response.headers) == [] and len(lines(caplog)) == 1


def test_only_what_is_overridden_is_called() -> None:
    class Members(Hooks):
        def on_member_added(self, member: Member) -> None: ...

    assert not HookChain([Members()], Reports()).has_hooks
    assert len(HookChain([Members()], Reports()).observers()) == 1
    chain = HookChain([Called("x")], Reports())
    assert chain.has_request_hooks and chain.has_response_hooks and not chain.observers()
    assert not HookChain([Hooks()], Reports()).has_hooks


def test_exception_is_described_in_one_line() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert describe(ValueError("one\n two")) == "ValueError: one two"
    assert describe(ValueError()) == "ValueError"
    assert describe(Mute()) == "Mute"
