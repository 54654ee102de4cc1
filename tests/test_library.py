"""What ``import balancer`` offers, how settings are given in Python, and which path members see below a mount."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields
from ipaddress import ip_network
from random import Random
from typing import Any
from urllib.parse import quote, quote_from_bytes, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer import LoadBalancer, Settings, SettingsError
from balancer.asgi.scope import prefix, target
from balancer.config.display import flag
from balancer.config.keywords import SERVE_ONLY
from balancer.hooks import Hooks
from balancer.http.request_headers import RequestHeaders, with_prefix
from balancer.policies import make_policy
from balancer.types import Address


def test_every_name_is_there() -> None:
    assert {name for name in balancer.__all__ if getattr(balancer, name) is not None} == set(balancer.__all__)
    assert set(balancer.__all__) <= set(dir(balancer))
    with pytest.raises(AttributeError, match="module 'balancer' has no attribute 'LoadBalance'"):
        balancer.LoadBalance  # type: ignore[attr-defined]  # noqa: B018


def test_heavy_modules_are_imported_on_use_alone() -> None:
    program = (
        "import sys, balancer, balancer.cli\n"
        "heavy = {'asyncio', 'dns', 'httptools', 'httpx', 'starlette', 'uvicorn', 'websockets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from balancer import LoadBalancer\n"
        "assert 'httpx' not in sys.modules and 'uvicorn' not in sys.modules\n"
        "from balancer import BalancedTransport\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Settings as keywords.


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [
        ("upstream_port", 8080, 8080),
        ("upstream_port", "8080", 8080),
        ("policy", "least_requests", "least_requests"),
        ("resolver", "127.0.0.11", Address("127.0.0.11", 53)),
        ("resolver", Address("127.0.0.11", 5353), Address("127.0.0.11", 5353)),
        ("resolver", None, None),
        ("admin_bind", None, None),
        ("health_path", "/healthz", "/healthz"),
        ("queue_timeout", 3, 3.0),
        ("queue_timeout", 0.123456789, 0.123456789),
        ("hash_key", ("header", "X-Tenant"), ("header", "X-Tenant")),
        ("hash_key", "cookie:session", ("cookie", "session")),
        ("trusted_proxies", "10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        ("trusted_proxies", ["10.0.0.0/8", ip_network("::1/128")], (ip_network("10.0.0.0/8"), ip_network("::1/128"))),
        ("proxy_protocol", False, False),
    ],
)
def test_setting_is_what_it_holds_or_text(name: str, value: object, held: object) -> None:
    assert getattr(Settings.of(**{name: value}), name) == held


@pytest.mark.parametrize("item", fields(Settings), ids=lambda item: item.name)
def test_every_default_may_be_written_out(item: Any) -> None:
    try:
        assert getattr(Settings.of(**{item.name: item.default}), item.name) == item.default
    except SettingsError as error:
        assert "cannot be used without" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [("upstream_port", 0), ("upstream_port", True), ("upstream_port", None), ("policy", "the fastest"),
     ("alias", "a b"), ("queue_timeout", -1), ("queue_timeout", float("nan")), ("http2", 1),
     ("resolver", "here"), ("health_path", 5)],
)  # fmt: skip
def test_bad_value_is_refused_in_the_words_of_the_command_line(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as here:
        Settings.of(**{name: value})
    with pytest.raises(SettingsError) as there:
        Settings.load({}, {name: "bad value"})
    assert str(here.value).replace(f"{name}={value!r}", f"{flag(name)}='bad value'") == str(there.value)


def test_every_bad_value_is_named() -> None:
    with pytest.raises(SettingsError) as refused:
        LoadBalancer("a b", upstream_port=0, policy="the fastest")
    assert [it.partition("=")[0] for it in refused.value.problems] == ["alias", "upstream_port", "policy"]


def test_setting_that_needs_another_says_so_in_the_names_of_python() -> None:
    with pytest.raises(SettingsError, match=r"^proxy_protocol=True cannot be used without trusted_proxies$"):
        Settings.of(proxy_protocol=True)


def test_name_that_is_no_setting_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match=r"'upstream_prot' is not a setting; did you mean 'upstream_port'\?"):
        LoadBalancer("apps", upstream_prot=8080)
    with pytest.raises(TypeError, match="not both: policy"):
        LoadBalancer(Settings(), policy="random")


@pytest.mark.parametrize("name", sorted(SERVE_ONLY))
def test_settings_for_listeners_alone_are_refused(name: str) -> None:
    assert name in {it.name for it in fields(Settings)}
    useless: dict[str, Any] = {name: 1}
    with pytest.raises(SettingsError, match=f"{name}=1 cannot be used: it is for balancer serve"):
        LoadBalancer("apps", **useless)


class Welcome(Hooks):
    def on_member_added(self, member: Any) -> None:
        """It is glad."""


def test_policy_may_be_a_name_or_an_object_and_so_may_hooks() -> None:
    name = f"{__name__}:Welcome"
    balancer = LoadBalancer("apps", resolver="127.0.0.1", policy="random", hooks=[name, Welcome()])
    assert (balancer.settings.policy, balancer.settings.hooks) == ("random", (name,))
    LoadBalancer("apps", resolver="127.0.0.1", policy=make_policy(Settings(), Random(), time.monotonic))
    with pytest.raises(SettingsError, match="cannot be used"):
        LoadBalancer("apps", resolver="127.0.0.1", policy="fastest")


def test_environment_is_not_read_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_UPSTREAM_PORT", "8080")
    assert LoadBalancer("apps", resolver="127.0.0.1").settings.upstream_port == 80
    environ = {"BALANCER_RESOLVER": "127.0.0.1", "BALANCER_UPSTREAM_PORT": "8080"}
    assert LoadBalancer(Settings.load(environ)).settings.upstream_port == 8080


# The path below a mount.


def scope(path: str, raw: str = "", root: str = "", app_root: str = "", query: bytes = b"") -> dict[str, Any]:
    return {"path": path, "raw_path": raw.encode(), "root_path": root, "app_root_path": app_root, "query_string": query}


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (scope("/", "/"), b"/"),
        (scope("/a/b", "/a%2Fb", query=b"x=%20&x"), b"/a%2Fb?x=%20&x"),
        (scope("*", "*"), b"*"),
        # Mounted: the prefix is in both paths.
        (scope("/api/x", "/api/x", "/api"), b"/x"),
        (scope("/api/", "/api/", "/api"), b"/"),
        (scope("/api", "/api", "/api"), b"/"),
        (scope("/api", "/api", "/api", query=b"a"), b"/?a"),
        (scope("/api//x", "/api//x", "/api"), b"//x"),
        (scope("/api/a/b c", "/api/a%2Fb%20c", "/api", query=b"q=%2f"), b"/a%2Fb%20c?q=%2f"),
        (scope("/api/\ufffd", "/api/%ff", "/api"), b"/%ff"),
        (scope("/api/100%", "/api/100%", "/api"), b"/100%"),
        (scope("/apiary", "/apiary", "/api"), b"/apiary"),
        # The client has escaped what it need not.
        (scope("/api/x", "/%61p%69/x", "/api"), b"/x"),
        (scope("/café/é", "/caf%C3%A9/%C3%A9", "/café"), b"/%C3%A9"),
        (scope("/a%/x", "/a%25/x", "/a%"), b"/x"),
        (scope("/a%/x", "/a%/x", "/a%"), b"/x"),
        (scope("/a%zz/x", "/a%zz/x", "/a%zz"), b"/x"),
        # Mounted twice, and behind a server that was given a root path: uvicorn puts it in front, hypercorn does not,
        # and neither does FastAPI(root_path=...).
        (scope("/v1/api/x", "/v1/api/x", "/v1/api"), b"/x"),
        (scope("/v1/api/x", "/v1/api/x", "/v1/api", "/v1"), b"/x"),
        (scope("/api/%/x", "/api/%25/x", "/v1/api", "/v1"), b"/%25/x"),
        (scope("/x", "/x", "/v1", "/v1"), b"/x"),
        (scope("/x", "/x", "/v1"), b"/x"),
        (scope("/v1/x", "/v1/x", "/v1/"), b"/x"),
        # Frameworks that take the prefix off the path alone.
        (scope("/a/b", "/api/a%2Fb", "/api"), b"/a%2Fb"),
        # A middleware has changed the path, and what the client wrote is not true any more.
        (scope("/api/new/é:@", "/api/old", "/api"), b"/new/%C3%A9:@"),
        (scope("/new", "/old"), b"/new"),
        (scope("/a b?", ""), b"/a%20b%3F"),
    ],
)
def test_members_see_the_target_below_the_mount_as_the_client_wrote_it(given: dict[str, Any], seen: bytes) -> None:
    assert target(given) == seen


@given(st.sampled_from(["/api", "/é", "/a%b", "/a b"]), st.lists(st.binary(min_size=1, max_size=4), max_size=5))
def test_path_below_the_mount_arrives_as_the_client_wrote_it(mount: str, pieces: list[bytes]) -> None:
    written = "/" + "/".join(quote_from_bytes(it, safe="%") for it in pieces)
    raw = quote(mount) + written
    assert target(scope(unquote(raw), raw, mount)) == written.encode()


@pytest.mark.parametrize(
    ("root", "told"), [("", b""), ("/", b""), ("/api", b"/api"), ("/v1/api/", b"/v1/api"), ("/é b", b"/%C3%A9%20b")]
)
def test_mount_as_members_are_told(root: str, told: bytes) -> None:
    assert prefix(scope("/", root=root)) == told


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ([], b"/api"),
        ([b"/v1"], b"/v1/api"),
        ([b"/v1/"], b"/v1/api"),
        ([b"/a, /b"], b"/a/b/api"),
        ([b"/a", b"/b"], b"/a/b/api"),
        ([b"/api"], b"/api"),
    ],
)
def test_prefix_goes_behind_what_a_trusted_proxy_has_cut_off(before: list[bytes], told: bytes) -> None:
    name = b"x-forwarded-prefix"
    given = [(b"host", b"a"), *((name, value) for value in before), (b"x", b"1")]
    assert with_prefix(given, b"/api") == [(b"host", b"a"), (b"x", b"1"), (name, told)]


def test_fields_of_a_call_of_ones_own_are_left_alone_but_for_those_of_the_hop() -> None:
    given = [
        (b"host", b"a"), (b"connection", b"x-private"), (b"x-private", b"1"), (b"te", b"trailers"),
        (b"x-forwarded-for", b"6.6.6.6"), (b"forwarded", b"for=6.6.6.6"), (b"transfer-encoding", b"chunked"),
    ]  # fmt: skip
    kept = [(b"host", b"a"), (b"x-forwarded-for", b"6.6.6.6"), (b"forwarded", b"for=6.6.6.6")]
    assert RequestHeaders().of_local_call(given, chunked=False) == kept
    assert RequestHeaders().of_local_call(given, chunked=True) == [*kept, (b"transfer-encoding", b"chunked")]
