"""What stands between plug-ins and requests: whatever a policy or a hook does, the request goes on.

Rules:
* What raises is logged once for each kind (who, type of exception, place in the source), with its traceback.
* Where a policy raises, or returns what may not be chosen, round robin chooses; where its ``build`` raises, round robin
  chooses until one has succeeded.
* What a hook that raises has changed until then is undone.
* Where there are hooks for requests, each request is an object of its own, with a head of its own for the member. What
  is known by its bytes (``balancer.memo``) stays as it was, because a hook may decide otherwise the next time.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Container, Hashable, Sequence
from random import Random
from types import TracebackType
from typing import Any

from balancer.dispatch import Course, DirectSink, Dispatcher, Sink, refusal_response
from balancer.errors import Refusal
from balancer.headers import NO_FIELDS, Headers, connection, nominated
from balancer.health import Event, State
from balancer.hooks import METHODS, Fields, HookRequest, HookResponse, Hooks, overrides
from balancer.membership import Change, Member, Snapshot
from balancer.observer import Observer
from balancer.policies import Policy, RoundRobin
from balancer.request import Request
from balancer.upstream import UpstreamResponse

log = logging.getLogger(__name__)

# What a plug-in may raise without anybody's request being lost. It is called, not awaited: a CancelledError that comes
# out of it is not for the task around it.
FAILURES = (Exception, asyncio.CancelledError)

# Where the balancer's own code is.
_HERE = __file__.removesuffix("guarded.py")

# Kinds of failures that are told apart. Code that is made up as it goes could have any number of places.
KINDS_MAX = 100

_TOKEN = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Reports:
    """Says in the log what plug-ins do wrong, once for each kind."""

    def __init__(self) -> None:
        self._kinds: set[Hashable] = set()

    def failed(self, who: str, error: BaseException, outcome: str) -> None:
        """``who`` has raised; ``outcome``: what became of it."""
        if self._is_new((who, type(error), _place(error.__traceback__))):
            log.error("%s raised %s; %s%s", who, describe(error), outcome, _ONCE, exc_info=error)

    def wrong(self, who: str, words: str, outcome: str) -> None:
        """``who`` has done what ``words`` say."""
        if self._is_new((who, words)):
            log.error("%s %s; %s%s", who, words, outcome, _ONCE)

    def _is_new(self, kind: Hashable) -> bool:
        if kind in self._kinds or len(self._kinds) >= KINDS_MAX:
            return False
        self._kinds.add(kind)
        return True


_ONCE = " (said once for each kind of failure)"


def _place(trace: TracebackType | None) -> str:
    """Where an exception was raised: file and line of the innermost frame that is not of the balancer's own code.

    What a plug-in is refused by ``Fields`` is raised here, and wrong there.
    """
    place = own = ""
    while trace:
        name = trace.tb_frame.f_code.co_filename
        here = f"{name}, line {trace.tb_lineno}"
        if name.startswith(_HERE):
            own = here
        elif not name.startswith("<frozen"):
            place = here
        trace = trace.tb_next
    return place or own


def describe(error: BaseException) -> str:
    """An exception in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    place = "" if isinstance(error, SyntaxError) else _place(error.__traceback__)  # It has named its own.
    return f"{type(error).__name__}{': ' if text else ''}{text}{f' ({place})' if place else ''}"


def name_of(plug_in: object) -> str:
    """What a plug-in is called in the log."""
    return f"{type(plug_in).__module__}:{type(plug_in).__qualname__}"


class GuardedPolicy(Policy):
    """A policy that cannot lose a request: where it fails, round robin takes its place."""

    def __init__(self, policy: Policy, reports: Reports, rng: Random) -> None:
        self._policy = policy
        self._reports = reports
        self._name = f"the policy {name_of(policy)}"
        self._turns = RoundRobin(rng)
        self._members: set[Member] = set()
        self._built = False
        mark: Callable[[Request, Member], Headers] | None = getattr(policy, "mark", None)
        self._mark = None if getattr(mark, "__func__", None) is Policy.mark else mark

    def build(self, members: Sequence[Member]) -> None:
        self._turns.build(members)
        self._members = set(members)
        self._follow("build", members)

    def update(self, members: Sequence[Member], come: Collection[Member], gone: Collection[Member]) -> None:
        self._turns.update(members, come, gone)
        self._members.difference_update(gone)
        self._members.update(come)
        if self._built and isinstance(self._policy, Policy):
            self._follow("update", members, come, gone)
        else:
            self._follow("build", members)

    def _follow(self, method: str, *changes: Collection[Member]) -> None:
        self._built = False
        try:
            getattr(self._policy, method)(*changes)
            self._built = True
        except FAILURES as error:
            self._reports.failed(f"{method} of {self._name}", error, "members take turns until it succeeds")

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        if self._built and self._members:
            try:
                member = self._policy.choose(request, exclude)
                if member is None:
                    pass  # It does not care, or there is nobody.
                elif member not in self._members:
                    words = f"chose an object of type {type(member).__name__} that is not one of the members"
                    self._reports.wrong(self._name, words, "members take turns")
                elif member in exclude:
                    self._reports.wrong(self._name, "chose a member that is excluded", "members take turns")
                else:
                    return member
            except FAILURES as error:
                self._reports.failed(self._name, error, "members take turns")
        return self._turns.choose(request, exclude)

    def mark(self, request: Request, member: Member) -> Headers:
        if self._mark is None:
            return NO_FIELDS
        try:
            fields = Fields([])
            for name, value in self._mark(request, member):
                fields.add(name, value)
        except FAILURES as error:
            self._reports.failed(f"mark of {self._name}", error, "the response goes on without")
            return NO_FIELDS
        return fields.pairs


class HookChain:
    """All hooks, in the order in which they were named; for each event those that have something to do with it.

    ``on_requests``, ``on_responses``: whether there are any for these; ``wanted``: for either.
    """

    def __init__(self, hooks: Sequence[Hooks], reports: Reports) -> None:
        self._reports = reports
        self._called: dict[str, list[tuple[str, Callable[..., None]]]] = {
            method: [(f"{method} of {name_of(it)}", getattr(it, method)) for it in hooks if overrides(it, method)]
            for method in METHODS
        }
        self.on_requests = bool(self._called["on_request"])
        self.on_responses = bool(self._called["on_response"])
        self.wanted = self.on_requests or self.on_responses

    def observers(self) -> list[Observer]:
        """Who has to be told of members."""
        wanted = any(self._called[it] for it in ("on_joined", "on_left", "on_state"))
        return [_MemberHooks(self)] if wanted else []

    def request(self, request: HookRequest) -> Refusal | None:
        """Call the hooks for a request, until one refuses it."""
        for who, hook in self._called["on_request"]:
            before = request.fields.pairs
            try:
                try:
                    hook(request)
                except Refusal as refusal:
                    return _sound(refusal)
            except FAILURES as error:
                request.fields.restore(before)
                self._reports.failed(who, error, "the request goes on")
        return None

    def response(self, request: HookRequest, response: HookResponse) -> None:
        """Call the hooks for a response."""
        for who, hook in self._called["on_response"]:
            before = response.fields.pairs
            try:
                hook(request, response)
            except FAILURES as error:
                response.fields.restore(before)
                self._reports.failed(who, error, "the response goes on")

    def tell(self, method: str, *arguments: Any) -> None:
        """Call the hooks for something that has happened to a member."""
        for who, hook in self._called[method]:
            try:
                hook(*arguments)
            except FAILURES as error:
                self._reports.failed(who, error, "nothing else changes")


def _sound(refusal: Refusal) -> Refusal:
    """A refusal that can be sent to a client as it is. Raises ValueError or TypeError for others.

    It is a new one: to raise the same exception again and again makes its traceback longer each time.
    """
    refusal.__traceback__ = None
    status, token, reason, retry_after = refusal.status, refusal.token, refusal.reason, refusal.retry_after
    if not (isinstance(status, int) and 400 <= status <= 599):
        raise ValueError(f"a request can be refused with a status from 400 to 599, not {status!r}")
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is not a token such as unknown_tenant")
    if retry_after is not None and not (isinstance(retry_after, int) and retry_after >= 0):
        raise ValueError(f"{retry_after!r} is not a number of seconds for Retry-After")
    own = Fields(refusal_response(Refusal(status, token, reason, retry_after))[1])
    more = Fields([])
    for name, value in (refusal.fields or {}).items():
        if name in own:
            raise ValueError(f"the field {name} is the balancer's own")
        more.add(name, value)
    return Refusal(status, token, reason, retry_after, dict(more))


class _MemberHooks(Observer):
    """Tells hooks of members."""

    def __init__(self, chain: HookChain) -> None:
        self._chain = chain

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        for member in change.left:
            self._chain.tell("on_left", member)
        for member in change.joined:
            self._chain.tell("on_joined", member)

    def flipped(self, member: Member, before: State, event: Event) -> None:
        if member.state is not State.LEAVING:  # ``resolved`` follows.
            self._chain.tell("on_state", member, before)


class HookedDispatcher(Dispatcher):
    """A dispatcher whose requests and responses go through hooks. Where there are none, nobody pays for it."""

    def __init__(self, chain: HookChain, *parts: Any) -> None:
        super().__init__(*parts)
        self._chain = chain

    def begin(self, request: Request) -> Course:
        course = super().begin(request)
        if self._chain.on_requests:
            own = course.request = _own(request)
            seen = course.seen = HookRequest(own, course.id)
            course.refusal = self._chain.request(seen)
            own.headers = seen.fields.pairs
        return course

    def at_once(self, course: Course, sink: DirectSink, body: bytes) -> bool:
        return course.refusal is None and super().at_once(course, sink, body)

    async def _exchange(self, course: Course, sink: Sink) -> None:
        if course.refusal:
            try:
                raise course.refusal
            finally:
                course.refusal = None  # It knows this frame, and so the course: reference counts shall free them.
        await super()._exchange(course, sink)

    def news(self, course: Course, sink: DirectSink) -> None:
        response = course.response
        if response and response.complete and response.started:
            before = response.headers
            self._heard(course, response)
            if response.headers is not before:
                response.lines = b""
        super().news(course, sink)

    def _heard(self, course: Course, response: UpstreamResponse) -> None:
        if self._chain.on_responses and course.member:
            seen = course.seen or HookRequest(course.request, course.id)
            heard = HookResponse(response.status, response.headers, course.member)
            self._chain.response(seen, heard)
            response.headers = heard.fields.pairs


def _own(request: Request) -> Request:
    """A request that nobody shares, without the head that others may have.

    Its client's ``Connection`` has done its work, but for the fields that it names. They are for this hop alone, and
    go now: it must not take away what a hook puts there.
    """
    headers = request.headers
    if options := connection(headers):
        gone = nominated(options) | {b"connection"}
        headers = [it for it in headers if it[0] not in gone]
    return Request(
        request.method, request.target, headers, request.client, request.scheme, request.body, request.chunked,
        request.upgrade, request.expects, request.host, request.id,
    )  # fmt: skip
