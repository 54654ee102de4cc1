"""All hooks, in the order in which they were named, each guarded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from balancer.discovery.snapshot import Snapshot
from balancer.dispatch.refusals import refusal_response
from balancer.errors import Refusal
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.plugins.guard import FAILURES, Reports, kind_of, name_of
from balancer.plugins.hook_api import METHODS, HeaderFields, HookRequest, HookResponse, Hooks, overrides
from balancer.telemetry.observer import Observer

_TOKEN = re.compile(r"[a-z][a-z0-9_]{0,39}")
# The redirects that need a Location and nothing else (RFC 9110 section 15.4), and its value: visible ASCII,
# of which URIs consist (RFC 3986 section 2).
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOCATION = re.compile(r"[\x21-\x7e]+")


class _Hook(NamedTuple):
    """A method of a plug-in that is called for some event. ``subject``: its name in the log."""

    subject: str
    method: Callable[..., object]
    fail_closed: bool

    def call(self, *arguments: object) -> None:
        """Call the method. Raises its errors, and TypeError where it returns anything, such as a coroutine."""
        returned = self.method(*arguments)
        if returned is not None:
            raise TypeError(f"it returned {kind_of(returned)}, and None is expected")


class HookChain:
    """All hooks, in the order in which they were named; for each event those that handle it.

    ``has_request_hooks``, ``has_response_hooks``: whether there are any for these; ``has_hooks``: for either.
    """

    def __init__(self, hooks: Sequence[Hooks], reports: Reports) -> None:
        self._reports = reports
        self._called: dict[str, list[_Hook]] = {
            name: [
                _Hook(f"{name} of {name_of(hook)}", getattr(hook, name), hook.fail_closed)
                for hook in hooks
                if overrides(hook, name)
            ]
            for name in METHODS
        }
        self.has_request_hooks = bool(self._called["on_request"])
        self.has_response_hooks = bool(self._called["on_response"])
        self.has_hooks = self.has_request_hooks or self.has_response_hooks

    def observers(self) -> list[Observer]:
        """Return an observer that calls the hooks for members, if there are any."""
        wanted = any(self._called[name] for name in ("on_member_added", "on_member_removed", "on_member_state_changed"))
        return [_MemberHooks(self)] if wanted else []

    def request(self, request: HookRequest) -> Refusal | None:
        """Call the hooks for a request, until one refuses it, or fails and is to fail closed."""
        for hook in self._called["on_request"]:
            before = request.headers.pairs
            try:
                try:
                    hook.call(request)
                except Refusal as refusal:
                    return _sound(refusal)
            except FAILURES as error:
                request.headers.restore(before)
                if closed := self._failed(hook, error, "the request goes on; a guard sets fail_closed = True"):
                    return closed
        return None

    def response(self, request: HookRequest, response: HookResponse) -> Refusal | None:
        """Call the hooks for a response, until one fails that is to fail closed."""
        for hook in self._called["on_response"]:
            before = response.headers.pairs
            try:
                hook.call(request, response)
            except FAILURES as error:
                response.headers.restore(before)
                if closed := self._failed(hook, error, "the response goes on"):
                    return closed
        return None

    def _failed(self, hook: _Hook, error: BaseException, outcome: str) -> Refusal | None:
        """Return the client's refusal if the hook is to fail closed, else None. ``outcome``: its consequence then."""
        if not hook.fail_closed:
            self._reports.failed(hook.subject, error, outcome)
            return None
        self._reports.failed(hook.subject, error, "the client gets 503 hook_failed")
        return Refusal(503, "hook_failed", "a hook of the balancer has failed")

    def call_all(self, name: str, *arguments: Any) -> None:
        """Call the hooks for an event of a member."""
        for hook in self._called[name]:
            try:
                hook.call(*arguments)
            except FAILURES as error:
                self._reports.failed(hook.subject, error, "nothing else changes")


def _sound(refusal: Refusal) -> Refusal:
    """Return a copy of a refusal that can be sent to a client. Raises ValueError or TypeError for others.

    It is a copy because to raise the same exception again and again makes its traceback longer each time.
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
    own = HeaderFields(refusal_response(Refusal(status, token, reason, retry_after), b"-")[1])
    more = HeaderFields([])
    for name, value in (refusal.headers or {}).items():
        if name in own:
            raise ValueError(f"the field {name} is the balancer's own")
        more.add(name, value)
    headers = dict(more)
    if status in _REDIRECTS and not _LOCATION.fullmatch(headers.get("location", "")):
        raise ValueError(f"{status} takes a Location, a URI of visible ASCII, not {headers.get('location')!r}")
    return Refusal(status, token, reason, retry_after, headers)


class _MemberHooks(Observer):
    """Calls the hooks for members."""

    def __init__(self, chain: HookChain) -> None:
        self._chain = chain

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        for member in change.left:
            self._chain.call_all("on_member_removed", member)
        for member in change.joined:
            self._chain.call_all("on_member_added", member)

    def flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        if member.state is not State.LEAVING:  # ``resolved`` follows.
            self._chain.call_all("on_member_state_changed", member, before)
