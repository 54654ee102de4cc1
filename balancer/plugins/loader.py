"""Finds policies and hooks of others by name, makes them, and refuses those that cannot work.

A plug-in is named by its place (``mypackage:TenantAffinity``) or by an entry point. It is called with no arguments,
or with those of ``settings`` and ``rng`` that it has parameters for. Objects of a program, such as hooks, observers or
a probe, pass the same checks. A fault that is found here stops the start with one line; later faults are for
``balancer.plugins.guard``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from random import Random
from typing import Any, NamedTuple, cast

from balancer.config.display import variable
from balancer.config.parsers import HOOKS, PLACE, POLICIES, POLICY, Kind
from balancer.config.settings import Settings, SettingsError
from balancer.plugins.guard import GuardedPolicy, Reports, describe, kind_of, name_of
from balancer.plugins.hook_api import METHODS, RENAMED, Hooks, overrides
from balancer.plugins.hook_chain import HookChain
from balancer.policies.base import Policy, PolicyLike
from balancer.telemetry.observer import Observer

POLICY_GROUP = "balancer.policies"
HOOKS_GROUP = "balancer.hooks"

# Methods by the number of their arguments.
_OF_POLICIES = {"build": 1, "choose": 2}
_OF_OBSERVERS = {"done": 1, "resolved": 2, "flipped": 3, "drained": 1, "ejected": 1}

_NUMBERS = "no argument", "one argument", "two arguments", "three arguments"

# A call of these runs nothing of the function: it makes an object that has to be awaited or iterated over.
_DEFERRED = (
    (inspect.iscoroutinefunction, "a coroutine function"),
    (inspect.isasyncgenfunction, "an asynchronous generator function"),
    (inspect.isgeneratorfunction, "a generator function"),
)


class Plugins(NamedTuple):
    """The plug-ins in use. ``policy``: None where the settings name one of the balancer's own. Both are guarded."""

    policy: Policy | None
    hooks: HookChain


class _Broken(Exception):
    """A plug-in that cannot be used; the text has the reason."""


class _Found(NamedTuple):
    """The object that a name leads to. ``place``: where it was found, as ``module:attribute``."""

    place: str
    target: object


class _Made(NamedTuple):
    """An object to use. ``place``: the owner of its methods; ``origin``: the beginning of a sentence about it."""

    place: str
    origin: str
    thing: object


def load(settings: Settings, rng: Random, policy: PolicyLike | None = None, more: Iterable[Hooks] = ()) -> Plugins:
    """Return the plug-ins of the settings. Raises SettingsError with a line for each that cannot be used.

    ``policy`` replaces that of the settings, and ``more`` are hooks that come after theirs.
    """
    problems: list[str] = []
    hooks: list[Hooks] = []
    if policy is not None:
        with _problem(_as_given("policy", policy), problems):
            _check_policy(_given(name_of(policy), policy))
    elif settings.policy not in POLICIES:
        with _problem(_as_named("policy", settings.policy), problems):
            policy = _check_policy(_make(_find(settings.policy, POLICY_GROUP, POLICY), settings, rng, "policies"))
    for name in settings.hooks:
        with _problem(_as_named("hooks", name), problems):
            found = _find(name, HOOKS_GROUP, HOOKS)
            is_made = isinstance(found.target, Hooks)
            hooks.append(_check_hooks(_given(*found) if is_made else _make(found, settings, rng, "hooks")))
    for hook in more:
        with _problem(_as_given("hooks", hook), problems):
            hooks.append(_check_hooks(_given(name_of(hook), hook)))
    if problems:
        raise SettingsError(problems)
    reports = Reports()
    return Plugins(None if policy is None else GuardedPolicy(policy, reports, rng), HookChain(hooks, reports))


def check(observers: Iterable[object], trace: object, probe: object, resolve: object) -> None:
    """Raise SettingsError with a line for each collaborator that cannot work. None stands for the balancer's own."""
    problems: list[str] = []
    for observer in observers:
        with _problem(_as_given("observers", observer), problems):
            _check_observer(_given(name_of(observer), observer))
    if trace is not None:
        with _problem(_as_given("trace", trace), problems):
            _check_call("it", trace, 1)
    for name, function, arguments in (("probe", probe, 1), ("resolve", resolve, 0)):
        if function is not None:
            with _problem(_as_given(name, function), problems):
                _check_await(function, arguments)
    if problems:
        raise SettingsError(problems)


def each(value: object) -> list[Any]:
    """Return several values, or one, as a list."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


@contextmanager
def _problem(what: str, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except _Broken as error:
        problems.append(f"{what} cannot be used: {error}")


def _as_named(setting: str, text: str) -> str:
    return f"{variable(setting)}={text!r}"


def _as_given(name: str, thing: object) -> str:
    """Return a name for an object without its ``repr``, which may have lines, raise, or hide its kind."""
    is_class, is_function = inspect.isclass(thing), inspect.isfunction(thing)
    kind: Any = thing if is_class or is_function else type(thing)
    place = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}:{kind.__qualname__}"
    return f"{name}=<class {place}>" if is_class else f"{name}=<{place} {'function' if is_function else 'object'}>"


def _find(text: str, group: str, kind: Kind) -> _Found:
    return _import(text if ":" in text else _entry_point(text, group, kind))


def _entry_point(name: str, group: str, kind: Kind) -> str:
    """Return the place that an entry point names."""
    from importlib import metadata  # takes a while, and most do without

    installed = metadata.entry_points(group=group)
    found = {
        entry_point.value.partition("[")[0].strip(): entry_point
        for entry_point in installed
        if entry_point.name == name
    }
    if not found:
        names = ", ".join(sorted({entry_point.name for entry_point in installed})) or "none"
        raise _Broken(f"it takes {kind.accepts}; entry points that are installed: {names}")
    if len(found) > 1:
        packages = ", ".join(
            sorted(
                f"{place} of {entry_point.dist.name if entry_point.dist else '?'}"
                for place, entry_point in found.items()
            )
        )
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
            raise _Broken(f"{kind_of(found)} has no attribute {attribute}{hint}") from None
    return _Found(place, found)


def _make(found: _Found, settings: Settings, rng: Random, what: str) -> _Made:
    """Call a class or function with the arguments that it has parameters for."""
    if not callable(found.target):
        raise _Broken(f"{found.place} is {kind_of(found.target)}, not a class of {what}")
    factory = cast(Callable[..., object], found.target)
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # as with some that are written in C
        parameters = {}
    named = {
        parameter.name
        for parameter in parameters.values()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    arguments = {name: value for name, value in (("settings", settings), ("rng", rng)) if name in named}
    missing = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in arguments
    ]
    if missing:
        raise _Broken(f"{found.place} asks for {', '.join(missing)}, and can get settings and rng")
    try:
        return _Made(found.place, f"{found.place} makes", factory(**arguments))
    except (Exception, SystemExit) as error:
        raise _Broken(f"{found.place} raised {describe(error)}") from error


def _given(place: str, thing: object) -> _Made:
    return _Made(place, "it is", thing)


def _check_policy(made: _Made) -> PolicyLike:
    _check_instance(made)
    policy = made.thing
    for name in _OF_POLICIES:
        if not callable(getattr(policy, name, None)) or getattr(type(policy), name, None) is getattr(Policy, name):
            raise _Broken(f"{made.origin} {kind_of(policy)}, which has no method {name}")
    optional = {"update": 3} if isinstance(policy, Policy) else {}
    if hasattr(policy, "mark"):
        raise _Broken("mark is response_headers now")
    for name in ("response_headers", "finished"):
        if getattr(policy, name, None) is not None:
            optional[name] = 2
    _check_methods(made, _OF_POLICIES | optional)
    return cast(PolicyLike, policy)


def _check_hooks(made: _Made) -> Hooks:
    _check_instance(made)
    hooks = made.thing
    if not isinstance(hooks, Hooks):
        raise _Broken(f"{made.origin} {kind_of(hooks)}, not one of balancer.hooks.Hooks")
    for old, name in RENAMED.items():
        if hasattr(hooks, old):
            raise _Broken(f"{old} is {name} now")
    used = {name: arguments for name, arguments in METHODS.items() if overrides(hooks, name)}
    if not used:
        raise _Broken(f"{made.place} does nothing: it has none of the methods {', '.join(METHODS)}")
    _check_methods(made, used)
    if not isinstance(hooks.fail_closed, bool):
        raise _Broken(f"fail_closed of {made.place} is {hooks.fail_closed!r}: it takes True or False")
    return hooks


def _check_observer(made: _Made) -> None:
    _check_instance(made)
    if not isinstance(made.thing, Observer):
        raise _Broken(f"{made.origin} {kind_of(made.thing)}, not one of balancer.telemetry.observer.Observer")
    _check_methods(made, _OF_OBSERVERS)


def _check_instance(made: _Made) -> None:
    if inspect.isclass(made.thing):
        raise _Broken(f"{made.origin} {kind_of(made.thing)}; pass an instance: {made.thing.__name__}()")


def _check_methods(made: _Made, methods: Mapping[str, int]) -> None:
    for name, arguments in methods.items():
        _check_call(f"{name} of {made.place}", getattr(made.thing, name), arguments)


def _check_call(subject: str, function: object, arguments: int) -> None:
    """Check that a function can be called with so many arguments, and that a call runs it."""
    _check_arguments(subject, function, arguments)
    layers = list(_layers(function))
    for is_deferred, words in _DEFERRED:
        if any(map(is_deferred, layers)):
            raise _Broken(f"{subject} is {words}, and a call would run nothing of it")


def _check_await(function: object, arguments: int) -> None:
    """Check that a function can be called with so many arguments, and awaited, as far as that is known."""
    _check_instance(_given("", function))
    _check_arguments("it", function, arguments)
    layers = list(_layers(function))
    # Only functions in Python show this.
    if inspect.isfunction(layers[-1]) and not any(
        inspect.iscoroutinefunction(inspect.unwrap(layer)) for layer in layers
    ):
        raise _Broken("it is not a coroutine function, and the balancer awaits it")


def _check_arguments(subject: str, function: object, arguments: int) -> None:
    if not callable(function):
        raise _Broken(f"{subject} is {kind_of(function)}, which cannot be called")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # as with some that are written in C
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        raise _Broken(f"{subject} is called with {_NUMBERS[arguments]}, and takes {signature}") from None


def _layers(function: Any) -> Iterator[Any]:
    """Yield a callable and what it calls: behind partials, methods and ``__call__``, down to the function that runs."""
    while True:
        yield function
        if isinstance(function, partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif inspect.isroutine(function) or inspect.isclass(function):
            return
        else:
            function = type(function).__call__
