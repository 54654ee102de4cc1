"""How plug-ins are found and made, and what is said of those that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial, wraps
from pathlib import Path
from random import Random
from textwrap import dedent
from typing import Any
from unittest.mock import AsyncMock

import pytest

from balancer import BalancedTransport
from balancer.config.settings import Settings, SettingsError
from balancer.discovery.snapshot import Endpoint
from balancer.hooks import HookRequest, Hooks
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.members.member import Member
from balancer.plugins import loader
from balancer.plugins.guard import GuardedPolicy
from balancer.policies import Sticky, make_policy
from balancer.telemetry.observer import Observer
from balancer.types import Address

SOURCE = """
    import functools

    from balancer.hooks import Hooks
    from balancer.policies import LeastRequests, Policy

    class Last(Policy):
        made = []

        def __init__(self, settings=None, *, rng, other="x", **more):
            self.made.append((settings, rng, other, more))

        def build(self, members):
            self.members = members

        def choose(self, request, exclude=()):
            return self.members[-1]

    class Plain:
        def build(self, members): ...
        def choose(self, request, exclude): ...

    class Outer:
        class Inner(Plain): ...

    def factory(settings):
        assert settings.alias == "apps"
        return Plain()

    instance = Plain()
    number = 3

    class Nothing: ...
    class Half(Policy):
        def build(self, members): ...
    class One(Plain):
        def choose(self, request): ...
    class Coroutine(Plain):
        async def choose(self, request, exclude): ...
    class Generating(Plain):
        def choose(self, request, exclude):
            yield
    class Marking(Plain):
        async def response_headers(self, request, member): ...
    class Learning(Plain):
        def finished(self, member): ...
    class Marked(Plain):
        def mark(self, request, member): ...
    class Updating(Last):
        def __init__(self): ...
        def update(self, members): ...
    def classes():
        return Plain
    class Asking(Plain):
        def __init__(self, url, rng, *, size): ...
    class Raising(Plain):
        def __init__(self):
            raise ValueError("two\\nlines")
    class Leaving(Plain):
        def __init__(self):
            raise SystemExit("no")

    class Seeing(Hooks):
        def __init__(self, settings, name="x"):
            self.settings = settings
        def on_request(self, request): ...
    seeing = Seeing(None, "made")
    class Misspelt(Hooks):
        def on_requests(self, request): ...
    class Short(Hooks):
        def on_response(self, response): ...
    class Renamed(Hooks):
        def on_joined(self, member): ...
        def on_request(self, request): ...
    class Awaited(Hooks):
        async def on_member_removed(self, member): ...
    class Valued(Hooks):
        on_member_state_changed = 3
    class Calling:
        async def __call__(self, request): ...
    async def stream(request):
        yield
    class Called(Hooks):
        on_request = Calling()
    class Partial(Hooks):
        on_request = staticmethod(functools.partial(functools.partial(Calling())))
    class Method(Hooks):
        async def _seen(self, sort, request): ...
        on_request = functools.partialmethod(_seen, 1)
    class Streaming(Hooks):
        on_request = staticmethod(stream)
    class Daring(Hooks):
        fail_closed = "yes"
        def on_request(self, request): ...
    class Stranger:
        def on_request(self, request): ...
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of plug-ins, and others that cannot be imported."""
    before = set(sys.modules)
    (tmp_path / "shop.py").write_text(dedent(SOURCE))
    (tmp_path / "needy.py").write_text("import there_is_no_such_module")
    (tmp_path / "twisted.py").write_text("def f(:\n    pass\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "failing.py").write_text("x = 1\nx.y\n")
    monkeypatch.syspath_prepend(tmp_path)
    import shop  # type: ignore[import-not-found]

    yield shop
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(folder: Path, name: str, **groups: dict[str, str]) -> None:
    """Metadata of a distribution with these entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        f"[balancer.{group}]\n" + "".join(map("{0[0]} = {0[1]}\n".format, it.items())) for group, it in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def load(**settings: Any) -> loader.Plugins:
    return loader.load(Settings(**settings), Random(0))


def problem(**settings: Any) -> str:
    """What is said of the one that cannot be used."""
    with pytest.raises(SettingsError) as caught:
        load(**settings)
    (line,) = caught.value.problems
    assert "\n" not in line
    (setting,) = settings
    value = settings[setting] if setting == "policy" else ",".join(settings[setting])
    prefix = f"BALANCER_{setting.upper()}={value!r} cannot be used: "
    assert line.startswith(prefix)
    return line.removeprefix(prefix)


@pytest.mark.parametrize("name", ["round_robin", "least_requests", "random", "hash"])
def test_balancers_own_policies_need_no_plug_in(name: str, tmp_path: Path) -> None:
    install(tmp_path, "taker", policies={name: "shop:Plain"})
    assert load(policy=name).policy is None


def test_class_gets_what_it_has_parameters_for(shop: Any) -> None:
    settings, rng = Settings(policy="shop:Last"), Random(0)
    assert isinstance(loader.load(settings, rng).policy, GuardedPolicy)
    assert shop.Last.made == [(settings, rng, "x", {})]


@pytest.mark.parametrize("place", ["shop:Plain", "shop:factory", "shop:Outer.Inner"])
def test_anything_with_build_and_choose_will_do(place: str) -> None:
    assert load(policy=place).policy


@pytest.mark.parametrize("place", ["shop:Seeing", "shop:seeing"])
def test_hooks_are_a_class_or_an_object(place: str) -> None:
    assert load(hooks=(place,)).hooks.has_request_hooks


def test_entry_point_leads_to_its_place(tmp_path: Path) -> None:
    install(tmp_path, "shop", policies={"last": "shop:Last [extra]"}, hooks={"seeing": "shop:Seeing"})
    found = load(policy="last", hooks=("seeing", "shop:Seeing"))
    assert found.policy and found.hooks.has_request_hooks


def test_same_entry_point_twice_is_one(tmp_path: Path) -> None:
    for name in ("one", "other"):
        install(tmp_path, name, policies={"last": "shop:Last"})
    assert load(policy="last").policy


def test_entry_point_of_two_packages_is_refused(tmp_path: Path) -> None:
    install(tmp_path, "one", policies={"last": "shop:Last"})
    install(tmp_path, "other", policies={"last": "shop:Plain"})
    assert problem(policy="last") == (
        "several packages have an entry point of that name (shop:Last of one, shop:Plain of other): say module:class"
    )


def test_unknown_name_is_told_what_there_is(tmp_path: Path) -> None:
    install(tmp_path, "shop", policies={"last": "shop:Last", "first": "shop:Plain"}, hooks={"fist": "shop:Seeing"})
    assert problem(policy="fist") == (
        "it takes round_robin, least_requests, least_latency, random, hash, the name of an entry point in the group "
        "balancer.policies, or module:class; entry points that are installed: first, last"
    )
    assert problem(hooks=("last",)).endswith("; entry points that are installed: fist")


def test_entry_point_that_names_no_object_is_refused(tmp_path: Path) -> None:
    install(tmp_path, "shop", policies={"last": "shop"})
    assert problem(policy="last") == "its entry point names 'shop', which is not module:attribute"


NOWHERE = "among what is installed and on PYTHONPATH"
NOT_RUN = "and a call would run nothing of it"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("there_is_none:X", f"there is no module there_is_none {NOWHERE}"),
        ("there_is_none.at_all:X", f"there is no module there_is_none {NOWHERE}"),
        ("shop.at_all:X", f"there is no module shop.at_all {NOWHERE}"),
        ("needy:X", "to import needy raised ModuleNotFoundError: No module named 'there_is_no_such_module' ("),
        ("twisted:X", "to import twisted raised SyntaxError: "),
        ("leaving:X", "to import leaving raised SystemExit: 3 ("),
        ("failing:X", "to import failing raised AttributeError: 'int' object has no attribute 'y' ("),
        ("shop:Lost", "the module shop has no attribute Lost; did you mean Last?"),
        ("shop:Outer.Onner", "the class Outer has no attribute Onner; did you mean Inner?"),
        ("shop:zzzzzz", "the module shop has no attribute zzzzzz"),
        ("shop:number", "shop:number is an object of type int, not a class of policies"),
        ("shop:instance", "shop:instance is an object of type Plain, not a class of policies"),
        ("shop:functools", "shop:functools is the module functools, not a class of policies"),
        ("shop:Nothing", "shop:Nothing makes an object of type Nothing, which has no method build"),
        ("shop:Half", "shop:Half makes an object of type Half, which has no method choose"),
        ("shop:One", "choose of shop:One is called with two arguments, and takes (request)"),
        ("shop:Coroutine", f"choose of shop:Coroutine is a coroutine function, {NOT_RUN}"),
        ("shop:Generating", f"choose of shop:Generating is a generator function, {NOT_RUN}"),
        ("shop:Marked", "mark is response_headers now"),
        ("shop:Marking", f"response_headers of shop:Marking is a coroutine function, {NOT_RUN}"),
        ("shop:Learning", "finished of shop:Learning is called with two arguments, and takes (member)"),
        ("shop:Updating", "update of shop:Updating is called with three arguments, and takes (members)"),
        ("shop:classes", "shop:classes makes the class Plain; pass an instance: Plain()"),
        ("shop:Asking", "shop:Asking asks for url, size, and can get settings and rng"),
        ("shop:Raising", "shop:Raising raised ValueError: two lines ("),
        ("shop:Leaving", "shop:Leaving raised SystemExit: no ("),
    ],
)  # fmt: skip
def test_policy_that_cannot_be_used_is_one_clear_line(place: str, words: str) -> None:
    assert problem(policy=place).startswith(words)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("there_is_none:X", f"there is no module there_is_none {NOWHERE}"),
        ("shop:Stranger", "shop:Stranger makes an object of type Stranger, not one of balancer.hooks.Hooks"),
        ("shop:number", "shop:number is an object of type int, not a class of hooks"),
        (
            "shop:Misspelt",
            "shop:Misspelt does nothing: it has none of the methods on_request, on_response, on_member_added, ",
        ),
        ("shop:Short", "on_response of shop:Short is called with two arguments, and takes (response)"),
        ("shop:Renamed", "on_joined is on_member_added now"),
        ("shop:Awaited", f"on_member_removed of shop:Awaited is a coroutine function, {NOT_RUN}"),
        ("shop:Called", f"on_request of shop:Called is a coroutine function, {NOT_RUN}"),
        ("shop:Partial", f"on_request of shop:Partial is a coroutine function, {NOT_RUN}"),
        ("shop:Method", f"on_request of shop:Method is a coroutine function, {NOT_RUN}"),
        ("shop:Streaming", f"on_request of shop:Streaming is an asynchronous generator function, {NOT_RUN}"),
        ("shop:Daring", "fail_closed of shop:Daring is 'yes': it takes True or False"),
        ("shop:classes", "shop:classes makes the class Plain; pass an instance: Plain()"),
        ("shop:Valued", "on_member_state_changed of shop:Valued is an object of type int, which cannot be called"),
    ],
)
def test_hooks_that_cannot_be_used_are_one_clear_line(place: str, words: str) -> None:
    assert problem(hooks=(place,)).startswith(words)


def test_line_says_where_it_was_raised(tmp_path: Path) -> None:
    assert problem(policy="failing:X").endswith(f"({tmp_path / 'failing.py'}, line 2)")
    assert problem(policy="needy:X").endswith(f"({tmp_path / 'needy.py'}, line 1)")
    assert problem(policy="twisted:X") == "to import twisted raised SyntaxError: invalid syntax (twisted.py, line 1)"


def test_every_plug_in_that_cannot_be_used_has_its_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load(policy="shop:Lost", hooks=("shop:Seeing", "needy:X", "shop:Misspelt"))
    assert len(caught.value.problems) == 3


def refusal(**given: Any) -> str:
    """What is said of an object that cannot be used."""
    with pytest.raises(SettingsError) as caught:
        LoadBalancer("apps", resolver="127.0.0.1", **given)
    with pytest.raises(SettingsError) as as_transport:
        BalancedTransport("apps", resolver="127.0.0.1", **given)
    assert caught.value.problems == as_transport.value.problems
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["Nothing", "Half", "One", "Coroutine", "Generating", "Marking", "Updating"])
def test_policy_that_is_given_is_checked_as_one_that_is_named(name: str, shop: Any) -> None:
    words = problem(policy=f"shop:{name}").replace(f"shop:{name} makes", "it is")
    assert refusal(policy=getattr(shop, name)()) == f"policy=<shop:{name} object> cannot be used: {words}"


@pytest.mark.parametrize(
    "name",
    ["Stranger", "Misspelt", "Short", "Awaited", "Valued", "Called", "Partial", "Method", "Streaming", "Daring"],
)
def test_hooks_that_are_given_are_checked_as_those_that_are_named(name: str, shop: Any) -> None:
    words = problem(hooks=(f"shop:{name}",)).replace(f"shop:{name} makes", "it is")
    assert refusal(hooks=[getattr(shop, name)()]) == f"hooks=<shop:{name} object> cannot be used: {words}"


def test_object_that_is_no_plug_in_is_refused(shop: Any) -> None:
    words = "cannot be used: it is an object of type int, not one of balancer.hooks.Hooks"
    assert refusal(hooks=3) == refusal(hooks=[shop.seeing, 3]) == f"hooks=<int object> {words}"
    assert refusal(policy=object()) == (
        "policy=<object object> cannot be used: it is an object of type object, which has no method build"
    )


def test_class_in_place_of_an_instance_is_refused_with_a_hint(shop: Any) -> None:
    assert refusal(policy=shop.Outer.Inner) == (
        "policy=<class shop:Outer.Inner> cannot be used: it is the class Inner; pass an instance: Inner()"
    )
    assert refusal(hooks=[shop.Seeing]) == (
        "hooks=<class shop:Seeing> cannot be used: it is the class Seeing; pass an instance: Seeing()"
    )
    assert refusal(observers=[Observer]) == (
        "observers=<class balancer.telemetry.observer:Observer> cannot be used: it is the class Observer; "
        "pass an instance: Observer()"
    )


def test_every_object_that_cannot_be_used_has_its_line(shop: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        LoadBalancer("apps", resolver="127.0.0.1", policy=shop.Half(), hooks=["shop:Lost", shop.seeing, shop.Short()])
    assert [it.partition("=")[0] for it in caught.value.problems] == ["policy", "BALANCER_HOOKS", "hooks"]


def test_policy_that_counts_as_false_is_one_all_the_same(shop: Any) -> None:
    shop.Plain.__len__ = lambda self: 0
    assert isinstance(loader.load(Settings(), Random(0), shop.Plain()).policy, GuardedPolicy)


def test_hooks_and_observers_may_be_one_object(shop: Any) -> None:
    LoadBalancer("apps", resolver="127.0.0.1", hooks=shop.seeing, observers=Observer())


class Awaited(Observer):
    async def done(self, record: Any) -> None: ...  # type: ignore[override]


class Short(Observer):
    def resolved(self, snapshot: Any) -> None: ...  # type: ignore[override]


class Finding:
    async def __call__(self) -> Any: ...


async def judge(address: Any) -> Any: ...


async def record_and(record: Any) -> Any: ...


def wrapping(function: Any) -> Any:
    @wraps(function)
    def wrapped(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapped


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"observers": [object()]}, "it is an object of type object, not one of balancer.telemetry.observer.Observer"),
        ({"observers": 3}, "it is an object of type int, not one of balancer.telemetry.observer.Observer"),
        ({"observers": [Awaited()]}, f"done of {__name__}:Awaited is a coroutine function, {NOT_RUN}"),
        ({"observers": [Short()]}, f"resolved of {__name__}:Short is called with two arguments, and takes (snapshot"),
        ({"trace": 3}, "it is an object of type int, which cannot be called"),
        ({"trace": record_and}, f"it is a coroutine function, {NOT_RUN}"),
        ({"trace": lambda: None}, "it is called with one argument, and takes ()"),
        ({"probe": 3}, "it is an object of type int, which cannot be called"),
        ({"probe": lambda address: None}, "it is not a coroutine function, and the balancer awaits it"),
        ({"probe": partial(lambda path, address: None, "/")}, "it is not a coroutine function, and the balancer "),
        ({"probe": Finding()}, "it is called with one argument, and takes ()"),
        ({"probe": Finding}, "it is the class Finding; pass an instance: Finding()"),
        ({"resolve": lambda: None}, "it is not a coroutine function, and the balancer awaits it"),
        ({"resolve": judge}, "it is called with no argument, and takes (address"),
    ],
    ids=lambda it: next(iter(it)) if isinstance(it, dict) else None,
)  # fmt: skip
def test_collaborator_that_cannot_work_is_refused_at_once(given: dict[str, Any], words: str) -> None:
    ((name, _),) = given.items()
    line = refusal(**given)
    assert line.startswith(f"{name}=<") and f"> cannot be used: {words}" in line


def test_awaitable_callables_are_probes_and_resolvers() -> None:
    for resolve in (Finding(), Finding().__call__, wrapping(Finding().__call__), AsyncMock()):
        for probe in (judge, partial(judge), wrapping(judge), AsyncMock()):
            LoadBalancer("apps", resolver="127.0.0.1", resolve=resolve, probe=probe, trace=lambda record: None)


def test_load_balancer_cannot_be_made_of_them() -> None:
    with pytest.raises(SettingsError, match="BALANCER_POLICY='shop:Lost' cannot be used"):
        LoadBalancer(Settings(policy="shop:Lost"))


def test_policy_that_is_given_takes_the_place_of_the_one_in_the_settings(shop: Any) -> None:
    found = loader.load(Settings(policy="shop:Lost"), Random(0), shop.Plain(), [shop.seeing])
    assert isinstance(found.policy, GuardedPolicy) and found.hooks.has_request_hooks


def test_hooks_are_called_in_the_order_of_their_names(shop: Any) -> None:
    order: list[str] = []

    class After(Hooks):
        def on_member_added(self, member: Member) -> None:
            order.append("given")

    shop.Before = type("Before", (Hooks,), {"on_member_added": lambda *_: order.append("named")})
    found = loader.load(Settings(hooks=("shop:Before", "shop:Before")), Random(0), None, [After()])
    found.hooks.call_all("on_member_added", Member(Endpoint(Address("10.0.0.1", 80)), 0.0))
    assert order == ["named", "named", "given"]


def test_sticky_cookie_works_on_top() -> None:
    settings = Settings(policy="shop:Last", sticky_cookie="member")
    policy = make_policy(settings, Random(0), lambda: 0.0, loader.load(settings, Random(0)).policy)
    assert isinstance(policy, Sticky)
    members = [Member(Endpoint(Address(f"10.0.0.{it}", 80)), 0.0) for it in range(2)]
    policy.build(members)
    assert policy.choose(HookRequest(Request("GET", b"/", [], "192.0.2.1"))) is members[1]


@pytest.mark.parametrize("text", ["a b", "a:", ":b", "a:b:c", "a-b:c", "a/b", "1a:b", "a:b()", "a.:b", "a..b:c", "a,b"])
def test_policy_name_that_is_none_is_refused_by_the_settings(text: str) -> None:
    with pytest.raises(SettingsError, match=r"it takes round_robin, .*, hash, the name of an entry"):
        Settings.load({"BALANCER_POLICY": text})


@pytest.mark.parametrize("text", ["a b", "a,", ",a", "a,,b", "a:b,c:", "a;b"])
def test_hook_names_that_are_none_are_refused_by_the_settings(text: str) -> None:
    with pytest.raises(
        SettingsError, match=r"it takes module:class or names of entry points in the group balancer\.hooks"
    ):
        Settings.load({"BALANCER_HOOKS": text})


def test_hooks_are_shown_as_they_are_written() -> None:
    for text in ("a.b:C.d,e-f.1", "header,cookie"):
        rows = {name: value for name, value, _ in Settings.load({"BALANCER_HOOKS": text.replace(",", ", ")}).rows()}
        assert rows["BALANCER_HOOKS"] == text
