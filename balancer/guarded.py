"""What stands between plug-ins and requests: whatever a policy or a hook does, the request goes on, or is refused.

Rules:
* What raises is logged once for each kind (who, type of exception, place in the source), with its traceback.
* Where a policy raises, or returns what may not be chosen, round robin chooses; where its ``build`` raises, round robin
  chooses until one has succeeded.
* What a hook that raises has changed until then is undone. Where it is to fail closed, the client gets a 503 instead.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Container, Hashable, Sequence
from inspect import isclass, ismodule
from random import Random
from types import TracebackType
from typing import Any, NamedTuple

from balancer.discovery.answers import Snapshot
from balancer.dispatch.refusals import refusal_response
from balancer.errors import Refusal
from balancer.hooks import METHODS, Fields, HookRequest, HookResponse, Hooks, overrides
from balancer.http.headers import NO_FIELDS, Headers
from balancer.members.health import Event, State
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.policies.base import Policy
from balancer.policies.round_robin import RoundRobin
from balancer.telemetry.observer import Observer

log = logging.getLogger(__name__)

# What a plug-in may raise without anybody's request being lost. It is called, not awaited: a CancelledError that comes
# out of it is not for the task around it.
FAILURES = (Exception, asyncio.CancelledError)

# Where the balancer's own code is.
_HERE = __file__.removesuffix("guarded.py")

# Kinds of failures that are told apart. Code that is made up as it goes could have any number of places.
KINDS_MAX = 100

_TOKEN = re.compile(r"[a-z][a-z0-9_]{0,39}")

# The redirects that need a Location and nothing else (RFC 9110 section 15.4), and what may stand there: visible ASCII,
# of which URIs consist (RFC 3986 section 2).
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOCATION = re.compile(r"[\x21-\x7e]+")


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


def kind_of(thing: object) -> str:
    """What something is, in words."""
    if ismodule(thing):
        return f"the module {thing.__name__}"
    if isclass(thing):
        return f"the class {thing.__name__}"
    return f"an object of type {type(thing).__name__}"


class GuardedPolicy(Policy):
    """A policy that cannot lose a request: where it fails, round robin takes its place."""

    def __init__(self, policy: Policy, reports: Reports, rng: Random) -> None:
        self._policy = policy
        self._reports = reports
        self._name = f"the policy {name_of(policy)}"
        self._turns = RoundRobin(rng)
        self._members: set[Member] = set()
        self._built = False
        mark: Callable[[HookRequest, Member], Headers] | None = getattr(policy, "mark", None)
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

    def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> Member | None:
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

    def mark(self, request: HookRequest, member: Member) -> Headers:
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


class _Hook(NamedTuple):
    """A method of a plug-in that is called for some event. ``who``: what it is called in the log."""

    who: str
    method: Callable[..., object]
    fail_closed: bool

    def call(self, *arguments: object) -> None:
        """Raises what the method raises, and TypeError where it returns something, such as a coroutine or a refusal."""
        returned = self.method(*arguments)
        if returned is not None:
            raise TypeError(f"it returned {kind_of(returned)}, and None is expected")


class HookChain:
    """All hooks, in the order in which they were named; for each event those that have something to do with it.

    ``on_requests``, ``on_responses``: whether there are any for these; ``wanted``: for either.
    """

    def __init__(self, hooks: Sequence[Hooks], reports: Reports) -> None:
        self._reports = reports
        self._called: dict[str, list[_Hook]] = {
            name: [
                _Hook(f"{name} of {name_of(it)}", getattr(it, name), it.fail_closed)
                for it in hooks
                if overrides(it, name)
            ]
            for name in METHODS
        }
        self.on_requests = bool(self._called["on_request"])
        self.on_responses = bool(self._called["on_response"])
        self.wanted = self.on_requests or self.on_responses

    def observers(self) -> list[Observer]:
        """Who has to be told of members."""
        wanted = any(self._called[it] for it in ("on_joined", "on_left", "on_state"))
        return [_MemberHooks(self)] if wanted else []

    def request(self, request: HookRequest) -> Refusal | None:
        """Call the hooks for a request, until one refuses it, or fails and is to fail closed."""
        for hook in self._called["on_request"]:
            before = request.fields.pairs
            try:
                try:
                    hook.call(request)
                except Refusal as refusal:
                    return _sound(refusal)
            except FAILURES as error:
                request.fields.restore(before)
                if closed := self._failed(hook, error, "the request goes on; a guard sets fail_closed = True"):
                    return closed
        return None

    def response(self, request: HookRequest, response: HookResponse) -> Refusal | None:
        """Call the hooks for a response, until one fails that is to fail closed."""
        for hook in self._called["on_response"]:
            before = response.fields.pairs
            try:
                hook.call(request, response)
            except FAILURES as error:
                response.fields.restore(before)
                if closed := self._failed(hook, error, "the response goes on"):
                    return closed
        return None

    def _failed(self, hook: _Hook, error: BaseException, outcome: str) -> Refusal | None:
        """What the client gets where the hook is to fail closed; else None, and ``outcome`` says what happens."""
        if not hook.fail_closed:
            self._reports.failed(hook.who, error, outcome)
            return None
        self._reports.failed(hook.who, error, "the client gets 503 hook_failed")
        return Refusal(503, "hook_failed", "a hook of the balancer has failed")

    def tell(self, name: str, *arguments: Any) -> None:
        """Call the hooks for something that has happened to a member."""
        for hook in self._called[name]:
            try:
                hook.call(*arguments)
            except FAILURES as error:
                self._reports.failed(hook.who, error, "nothing else changes")


def _sound(refusal: Refusal) -> Refusal:
    """A refusal that can be sent to a client as it is. Raises ValueError or TypeError for others.

    It is a new one: to raise the same exception again and again makes its traceback longer each time.
    """
    refusal.__traceback__ = None
    status, token, reason, retry_after = refusal.status, refusal.token, refusal.reason, refusal.retry_after
    if not (isinstance(status, int) and (400 <= status <= 599 or status in _REDIRECTS)):
        redirects = ", ".join(map(str, sorted(_REDIRECTS)))
        raise ValueError(f"a request can be refused with a status from 400 to 599, or {redirects}, not {status!r}")
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
    fields = dict(more)
    if status in _REDIRECTS and not _LOCATION.fullmatch(fields.get("location", "")):
        raise ValueError(f"{status} takes a Location, a URI of visible ASCII, not {fields.get('location')!r}")
    return Refusal(status, token, reason, retry_after, fields)


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
