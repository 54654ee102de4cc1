"""The guard between plug-ins and requests: whatever a policy or a hook does, the request goes on, or is refused.

Rules:
* A failure is logged once for each kind (plug-in, type of exception, place in the source), with its traceback.
* Where a policy raises, or returns a member that may not be chosen, round robin chooses. Where its ``build`` raises,
  round robin chooses until one has succeeded.
* Changes of a hook that raises are undone. If it is to fail closed, the client gets a 503 instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Container, Hashable, Sequence
from inspect import isclass, ismodule
from random import Random
from types import TracebackType

from balancer.http.headers import NO_FIELDS, Headers
from balancer.members.member import Member
from balancer.members.outcome import Outcome
from balancer.plugins.hook_api import HeaderFields, HookRequest
from balancer.policies.base import Policy, PolicyLike
from balancer.policies.round_robin import RoundRobin

log = logging.getLogger(__name__)

# Exceptions of a plug-in that cost no request. It is called, not awaited: a CancelledError that comes
# out of it is not for the task around it.
FAILURES = (Exception, asyncio.CancelledError)

# Where the balancer's own code is.
_HERE = __file__.removesuffix("plugins/guard.py")

# Kinds of failures that are distinguished. Generated code could have any number of places.
KINDS_MAX = 100


class Reports:
    """Logs failures of plug-ins, once for each kind."""

    def __init__(self) -> None:
        self._kinds: set[Hashable] = set()

    def failed(self, subject: str, error: BaseException, outcome: str) -> None:
        """Log an exception that ``subject`` has raised; ``outcome``: its consequence."""
        if self._is_new((subject, type(error), _place(error.__traceback__))):
            log.error("%s raised %s; %s%s", subject, describe(error), outcome, _ONCE, exc_info=error)

    def wrong(self, subject: str, words: str, outcome: str) -> None:
        """Log a fault of ``subject``, in ``words``."""
        if self._is_new((subject, words)):
            log.error("%s %s; %s%s", subject, words, outcome, _ONCE)

    def _is_new(self, kind: Hashable) -> bool:
        if kind in self._kinds or len(self._kinds) >= KINDS_MAX:
            return False
        self._kinds.add(kind)
        return True


_ONCE = " (said once for each kind of failure)"


def _place(trace: TracebackType | None) -> str:
    """Return where an exception was raised: file and line of the innermost frame outside the balancer's own code.

    A refusal of ``HeaderFields`` is raised here, and its cause is there.
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
    """Return an exception in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    place = "" if isinstance(error, SyntaxError) else _place(error.__traceback__)  # It names its own place.
    return f"{type(error).__name__}{': ' if text else ''}{text}{f' ({place})' if place else ''}"


def name_of(plug_in: object) -> str:
    """Return the name of a plug-in in the log."""
    return f"{type(plug_in).__module__}:{type(plug_in).__qualname__}"


def kind_of(thing: object) -> str:
    """Return words for the kind of an object."""
    if ismodule(thing):
        return f"the module {thing.__name__}"
    if isclass(thing):
        return f"the class {thing.__name__}"
    return f"an object of type {type(thing).__name__}"


class GuardedPolicy(Policy):
    """A policy that cannot lose a request: where it fails, round robin takes its place."""

    def __init__(self, policy: PolicyLike, reports: Reports, rng: Random) -> None:
        self._policy = policy
        self._reports = reports
        self._name = f"the policy {name_of(policy)}"
        self._turns = RoundRobin(rng)
        self._members: set[Member] = set()
        self._built = False
        method: Callable[[HookRequest, Member], Headers] | None = getattr(policy, "response_headers", None)
        self._response_headers = None if getattr(method, "__func__", None) is Policy.response_headers else method
        self._finished: Callable[[Member, Outcome], None] | None = getattr(policy, "finished", None)

    def build(self, members: Sequence[Member]) -> None:
        self._turns.build(members)
        self._members = set(members)
        self._call_policy("build", members)

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        self._turns.update(members, added, removed)
        self._members.difference_update(removed)
        self._members.update(added)
        if self._built and isinstance(self._policy, Policy):
            self._call_policy("update", members, added, removed)
        else:
            self._call_policy("build", members)

    def _call_policy(self, method: str, *changes: Collection[Member]) -> None:
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
                    pass  # It has no preference, or there is no member.
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

    def response_headers(self, request: HookRequest, member: Member) -> Headers:
        if self._response_headers is None:
            return NO_FIELDS
        try:
            headers = HeaderFields([])
            for name, value in self._response_headers(request, member):
                headers.add(name, value)
        except FAILURES as error:
            self._reports.failed(f"response_headers of {self._name}", error, "the response goes on without")
            return NO_FIELDS
        return headers.pairs

    def finished(self, member: Member, outcome: Outcome) -> None:
        assert self._finished
        try:
            # A copy: others learn from the same outcome.
            self._finished(member, Outcome(outcome.status, outcome.failure, outcome.first_byte, outcome.duration))
        except FAILURES as error:
            self._reports.failed(f"finished of {self._name}", error, "the policy does without this outcome")

    @property
    def learns(self) -> bool:
        return self._policy.learns if isinstance(self._policy, Policy) else self._finished is not None
