"""Policies and hooks that are not the balancer's own: finds them by name, makes them, and refuses what cannot work.

A plug-in is named by its place (``mypackage:TenantAffinity``) or by an entry point. It is called with no arguments,
or with those of ``settings`` and ``rng`` that it has parameters for. Whatever is wrong with it by then stops the
start with one line; what goes wrong later is ``balancer.guarded``'s business.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from random import Random
from typing import NamedTuple, cast

from balancer.guarded import GuardedPolicy, HookChain, Reports, describe
from balancer.hooks import METHODS, Hooks, overrides
from balancer.policies import Policy
from balancer.settings import HOOKS, PLACE, POLICIES, POLICY, Kind, Settings, SettingsError, variable

POLICY_GROUP = "balancer.policies"
HOOKS_GROUP = "balancer.hooks"


class Plugins(NamedTuple):
    """``policy``: None where the settings name one of the balancer's own. Both are guarded."""

    policy: Policy | None
    hooks: HookChain


class _Broken(Exception):
    """A plug-in that cannot be used, and why."""


def load(settings: Settings, rng: Random, policy: Policy | None = None, more: Sequence[Hooks] = ()) -> Plugins:
    """The plug-ins that the settings name. Raises SettingsError with a line for each that cannot be used.

    ``policy`` takes the place of the one that they name, and ``more`` are hooks that come after theirs.
    """
    problems: list[str] = []
    hooks: list[Hooks] = []
    if policy is None and settings.policy not in POLICIES:
        with _problem("policy", settings.policy, problems):
            policy = _policy(_find(settings.policy, POLICY_GROUP, POLICY), settings, rng)
    for name in settings.hooks:
        with _problem("hooks", name, problems):
            hooks.append(_hooks(_find(name, HOOKS_GROUP, HOOKS), settings, rng))
    if problems:
        raise SettingsError(problems)
    reports = Reports()
    return Plugins(policy and GuardedPolicy(policy, reports, rng), HookChain([*hooks, *more], reports))


@contextmanager
def _problem(setting: str, text: str, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except _Broken as error:
        problems.append(f"{variable(setting)}={text!r} cannot be used: {error}")


class _Found(NamedTuple):
    """What a name leads to. ``place``: where it was found, as ``module:attribute``."""

    place: str
    target: object


def _find(text: str, group: str, kind: Kind) -> _Found:
    return _import(text if ":" in text else _entry_point(text, group, kind))


def _entry_point(name: str, group: str, kind: Kind) -> str:
    """The place that an entry point names."""
    from importlib import metadata  # takes a while, and most do without

    installed = metadata.entry_points(group=group)
    found = {it.value.partition("[")[0].strip(): it for it in installed if it.name == name}
    if not found:
        names = ", ".join(sorted({it.name for it in installed})) or "none"
        raise _Broken(f"it takes {kind.accepts}; entry points that are installed: {names}")
    if len(found) > 1:
        packages = ", ".join(sorted(f"{place} of {it.dist.name if it.dist else '?'}" for place, it in found.items()))
        raise _Broken(f"several packages have an entry point of that name ({packages}): say module:class")
    return next(iter(found))


def _import(place: str) -> _Found:
    parts = PLACE.fullmatch(place)
    if not parts:
        raise _Broken(f"its entry point names {place!r}, which is not module:attribute")
    name = parts["module"]
    try:
        found: object = import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise _Broken(f"there is no module {error.name} among what is installed and on PYTHONPATH") from error
        raise _Broken(f"to import {name} raised {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise _Broken(f"to import {name} raised {describe(error)}") from error
    for attribute in parts["attribute"].split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            close = difflib.get_close_matches(attribute, dir(found), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise _Broken(f"{_what(found)} has no attribute {attribute}{hint}") from None
    return _Found(place, found)


def _make(found: _Found, settings: Settings, rng: Random, what: str) -> object:
    """Call a class or function with what it asks for."""
    if not callable(found.target):
        raise _Broken(f"{found.place} is {_what(found.target)}, not a class of {what}")
    factory = cast(Callable[..., object], found.target)
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # so it is with some that are written in C
        parameters = {}
    named = {
        it.name for it in parameters.values() if it.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, it.KEYWORD_ONLY)
    }
    given = {name: value for name, value in (("settings", settings), ("rng", rng)) if name in named}
    missing = [
        it.name
        for it in parameters.values()
        if it.default is it.empty and it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD) and it.name not in given
    ]
    if missing:
        raise _Broken(f"{found.place} asks for {', '.join(missing)}, and can get settings and rng")
    try:
        return factory(**given)
    except (Exception, SystemExit) as error:
        raise _Broken(f"{found.place} raised {describe(error)}") from error


def _policy(found: _Found, settings: Settings, rng: Random) -> Policy:
    policy = _make(found, settings, rng, "policies")
    for name, arguments in (("build", 1), ("choose", 2)):
        method = getattr(policy, name, None)
        if not callable(method) or getattr(type(policy), name, None) is getattr(Policy, name):
            raise _Broken(f"{found.place} makes {_what(policy)}, which has no method {name}")
        _check_call(found.place, name, method, arguments)
    return cast(Policy, policy)


def _hooks(found: _Found, settings: Settings, rng: Random) -> Hooks:
    hooks = found.target if isinstance(found.target, Hooks) else _make(found, settings, rng, "hooks")
    if not isinstance(hooks, Hooks):
        raise _Broken(f"{found.place} makes {_what(hooks)}, not one of balancer.hooks.Hooks")
    used = [it for it in METHODS if overrides(hooks, it)]
    if not used:
        raise _Broken(f"{found.place} does nothing: it has none of the methods {', '.join(METHODS)}")
    for name in used:
        method = getattr(hooks, name)
        if not callable(method):
            raise _Broken(f"{name} of {found.place} is {_what(method)}, not a method")
        _check_call(found.place, name, method, 1 if name in ("on_request", "on_joined", "on_left") else 2)
    return hooks


def _check_call(place: str, name: str, method: Callable[..., object], arguments: int) -> None:
    """Whether a method can be called as it will be."""
    if inspect.iscoroutinefunction(method):
        raise _Broken(f"{name} of {place} is a coroutine function, and nobody would await it")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        words = "one argument" if arguments == 1 else "two arguments"
        raise _Broken(f"{name} of {place} is called with {words}, and takes {signature}") from None


def _what(thing: object) -> str:
    if inspect.ismodule(thing):
        return f"the module {thing.__name__}"
    if inspect.isclass(thing):
        return f"the class {thing.__name__}"
    return f"an object of type {type(thing).__name__}"
