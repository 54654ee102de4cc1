"""Routes as a setting, a file and the guide give them: what is read, and what is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from balancer.config.settings import Settings, SettingsError
from balancer.routing.parse import describe, parse_inline, parse_toml, read
from balancer.routing.table_builder import PER_POOL
from tests.support.paths import ROOT
from tests.support.routes import SETTINGS, found, request


def problems(text: str, settings: Settings = SETTINGS) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse_inline(text, settings) if "[" not in text else parse_toml(text, settings, "routes.toml")
    return caught.value.problems


def test_compact_form() -> None:
    routes = parse_inline(
        "shop.example=shop:8080, *.Shop.Example./Admin/=admin;policy=hash;hash_key=header:X-Tenant,\n"
        "/api=api;strip_prefix=on;health_path=/healthz, /old=api;health_path=/healthz, =apps,",
        Settings(upstream_port=81, queue_timeout=3),
    )
    assert [(it.host, it.prefix, it.name, it.strip_prefix) for it in routes.routes] == [
        ("shop.example", "", "shop", False),
        ("*.shop.example", "/Admin", "admin", False),
        ("", "/api", "api", True),
        ("", "/old", "api", False),
        ("", "", "apps", False),
    ]
    assert list(routes.pools) == ["shop", "admin", "api", "apps"]
    shop, admin, api, apps = routes.pools.values()
    assert [it.upstream_port for it in (shop, admin)] == [8080, 81]
    assert (admin.policy, admin.hash_key, shop.policy) == ("hash", ("header", "X-Tenant"), "round_robin")
    assert (api.health_path, apps.health_path) == ("/healthz", None)
    assert {it.queue_timeout for it in routes.pools.values()} == {3}


def test_balance_factor_is_one_route_s_own_or_that_of_all() -> None:
    own = parse_inline("/a=a;policy=hash;hash_balance_factor=150,=b", Settings())
    assert [pool.hash_balance_factor for pool in own.pools.values()] == [150, 0]
    # A route with another policy has the factor of all in vain, and no fault.
    shared = parse_inline("/a=a;policy=random,=b", Settings(policy="hash", hash_balance_factor=125))
    assert [pool.hash_balance_factor for pool in shared.pools.values()] == [125, 125]


def test_route_goes_on_after_a_semicolon_on_another_line() -> None:
    routes = parse_inline("shop.example=shop:8080;\n  policy=hash\n  ;health_path=/healthz\n=apps\n", SETTINGS)
    assert [str(it) for it in routes.routes] == ["shop.example/", "/"]
    assert (routes.pools["shop"].policy, routes.pools["shop"].health_path) == ("hash", "/healthz")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_file_that_an_editor_on_windows_wrote_is_read(encoding: str, newline: str, tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text('[shop]\nhost = "shop.example"\n', encoding=encoding, newline=newline)
    routes = read(Settings(routes=str(path)))
    assert routes and [str(it) for it in routes.routes] == ["shop.example/"]


def test_alias_may_be_an_address() -> None:
    routes = parse_inline("/a=10.0.0.1:81,/b=[fd00::2]:82,/c=[fd00::3],/d=10.0.0.4", SETTINGS)
    assert [(it.alias, it.upstream_port) for it in routes.pools.values()] == [
        ("10.0.0.1", 81),
        ("fd00::2", 82),
        ("fd00::3", SETTINGS.upstream_port),
        ("10.0.0.4", SETTINGS.upstream_port),
    ]
    assert [it.rpartition("-> ")[2] for it in describe(routes, SETTINGS)] == [
        "10.0.0.1:81",
        "[fd00::2]:82",
        "[fd00::3]:80",
        "10.0.0.4:80",
    ]
    assert "upstream_port=':2' cannot be used" in problems("/a=fd00::2")[0]


def test_alias_with_two_kinds_of_pools_gives_each_a_name_of_its_own() -> None:
    assert list(parse_inline("/a=x:1,/b=x:2,/c=x:2;policy=random,/d=y", SETTINGS).pools) == [
        "x:1",
        "x:2",
        "x:2;policy=random",
        "y",
    ]


def test_file_has_a_table_for_each_route() -> None:
    routes = parse_toml(
        """
        [shop]
        host = ["shop.example", "www.shop.example"]
        upstream_port = 8080
        sticky_cookie = ""

        [api]
        path = ["/api", "/v1/api/"]
        alias = "backend"
        dns_record = "srv"
        queue_timeout = 2.5
        response_timeout = 120
        strip_prefix = true

        [same]
        host = "same.example"
        alias = "backend"
        dns_record = "srv"
        queue_timeout = 2.5
        response_timeout = 120.0
        """,
        Settings(sticky_cookie="member", policy="random"),
        "routes.toml",
    )
    places = [str(it) for it in routes.routes]
    assert places == ["www.shop.example/", "same.example/", "shop.example/", "/v1/api", "/api"]
    assert {it.name for it in routes.routes if it.host == "same.example"} == {"api"}, "equal settings share a pool"
    shop, api = routes.pools["shop"], routes.pools["api"]
    assert len(routes.pools) == 2
    assert (shop.alias, shop.upstream_port, shop.sticky_cookie, shop.policy) == ("shop", 8080, None, "random")
    assert (api.alias, api.dns_record, api.queue_timeout, api.response_timeout) == ("backend", "srv", 2.5, 120)
    assert api.sticky_cookie == "member"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shop", "BALANCER_ROUTES: 'shop' cannot be used: a route is written as host/path=alias:port"),
        (" , ", "BALANCER_ROUTES=' , ' cannot be used: there is no route in it"),
        ("a=", "BALANCER_ROUTES: 'a=' cannot be used: an alias is missing"),
        ("a=b:", "BALANCER_ROUTES: 'a=b:' upstream_port=':' cannot be used: it takes a port from 1 to 65535"),
        ("a=b:99999", "BALANCER_ROUTES: 'a=b:99999' upstream_port='99999' cannot be used: it takes a port from 1"),
        ("a=b c", "BALANCER_ROUTES: 'a=b c' alias='b c' cannot be used: it takes a DNS name such as apps"),
        ("a=b;c", "BALANCER_ROUTES: 'a=b;c' cannot be used: 'c' is not a setting such as policy=hash"),
        ("a=b;alias=c", "BALANCER_ROUTES: 'a=b;alias=c' cannot be used: 'alias=c' is not a setting such as"),
        ("a=b;path=/c", "BALANCER_ROUTES: 'a=b;path=/c' cannot be used: 'path=/c' is not a setting such as"),
        ("a=b;polcy=hash", "BALANCER_ROUTES: 'a=b;polcy=hash' polcy cannot be used: it is not a setting of a route;"),
        (
            "a=b;dns_record=best",
            "BALANCER_ROUTES: 'a=b;dns_record=best' dns_record='best' cannot be used: it takes one of",
        ),
        ("a=b;strip_prefix=on", "BALANCER_ROUTES: 'a=b;strip_prefix=on' strip_prefix cannot be used without a path"),
        (
            "a=b;health_body=ok",
            "BALANCER_ROUTES: 'a=b;health_body=ok' health_body='ok' cannot be used without health_path",
        ),
        (
            "a=b;health_status=2xx",
            "BALANCER_ROUTES: 'a=b;health_status=2xx' health_status='2xx' cannot be used: it takes",
        ),
        (
            "a=b;hash_balance_factor=125",
            "BALANCER_ROUTES: 'a=b;hash_balance_factor=125' hash_balance_factor='125' cannot be used without policy=",
        ),
        ("a/b=c;strip_prefix=yes", "BALANCER_ROUTES: 'a/b=c;strip_prefix=yes' strip_prefix='yes' cannot be used: it"),
        ("a:80=b", "BALANCER_ROUTES: 'a:80=b' host='a:80' cannot be used: it takes a host such as shop.example or"),
        ("*=b", "BALANCER_ROUTES: '*=b' host='*' cannot be used: it takes a host such as shop.example or *.shop"),
        ("a.*=b", "BALANCER_ROUTES: 'a.*=b' host='a.*' cannot be used: it takes a host such as shop.example or"),
        ("a..b=c", "BALANCER_ROUTES: 'a..b=c' host='a..b' cannot be used: it takes a host such as shop.example or"),
        ("/a//b=c", "BALANCER_ROUTES: '/a//b=c' path='/a//b' cannot be used: it takes a path prefix such as /api,"),
        ("/a/../b=c", "BALANCER_ROUTES: '/a/../b=c' path='/a/../b' cannot be used: it takes a path prefix such as"),
        ("/a%20b=c", "BALANCER_ROUTES: '/a%20b=c' path='/a%20b' cannot be used: it takes a path prefix such as"),
        ("/a=b,/a/=c", "BALANCER_ROUTES: '/a/=c' cannot be used: BALANCER_ROUTES: '/a=b' has /a already"),
        ("[a]\nhost = 1", "routes.toml [a] host=1 cannot be used: it takes a string, or a list of some"),
        ("[a]\nhost = []", "routes.toml [a] host=[] cannot be used: it takes a string, or a list of some"),
        ("[a]\npath = ['/b', 1]", "routes.toml [a] path=['/b', 1] cannot be used: it takes a string, or a list of"),
        ("[a]\npath = 'b'", "routes.toml [a] path='b' cannot be used: it takes a path prefix such as /api, without"),
        (
            "[a]\ndns_record = true",
            "routes.toml [a] dns_record=True cannot be used: it takes one of a, aaaa, a+aaaa, srv",
        ),
        ("[a]\ndns_record = {}", "routes.toml [a] dns_record={} cannot be used: it takes one of a, aaaa, a+aaaa, srv"),
        ("[a]\nalias = ''", "routes.toml [a] cannot be used: an alias is missing"),
        ("['a b']", "routes.toml [a b] alias='a b' cannot be used: it takes a DNS name such as apps"),
        ("a = 1 # []", "routes.toml [a] cannot be used: a route is a table such as [shop]"),
        ("# []", "routes.toml cannot be used: there is no route in it"),
        ("[a", "routes.toml cannot be used: it is not TOML: "),
    ],
)
def test_setting_that_cannot_be_used_is_named(text: str, complaint: str) -> None:
    (line,) = problems(text)
    assert line.startswith(complaint)


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert [it.split("cannot")[0] for it in problems("/a=b:0;dns_record=x, c, /d=e;tls_cert=f, a:1/b%c=/d;z=1")] == [
        "BALANCER_ROUTES: '/a=b:0;dns_record=x' upstream_port='0' ",
        "BALANCER_ROUTES: '/a=b:0;dns_record=x' dns_record='x' ",
        "BALANCER_ROUTES: 'c' ",
        "BALANCER_ROUTES: '/d=e;tls_cert=f' tls_cert ",
        "BALANCER_ROUTES: 'a:1/b%c=/d;z=1' host='a:1' ",
        "BALANCER_ROUTES: 'a:1/b%c=/d;z=1' path='/b%c' ",
        "BALANCER_ROUTES: 'a:1/b%c=/d;z=1' alias='/d' ",
        "BALANCER_ROUTES: 'a:1/b%c=/d;z=1' z ",
    ]


@pytest.mark.parametrize("field", [it.name for it in fields(Settings) if it.name not in PER_POOL])
def test_setting_of_the_listener_is_refused_in_a_route(field: str) -> None:
    assert problems(f"[a]\n{field} = 1") == [
        f"routes.toml [a] {field} cannot be used: it belongs to the listener, not to a route: "
        f"set BALANCER_{field.upper()}"
    ]


def test_settings_of_pools_are_settings() -> None:
    assert {it.name for it in fields(Settings)} > PER_POOL


def test_two_pools_do_not_set_one_cookie_for_the_same_client() -> None:
    sticky = Settings(sticky_cookie="member")
    assert problems("/api=api,=apps", sticky) == [
        "BALANCER_ROUTES: sticky_cookie=member cannot be used for /api and /: "
        "both have it, and a client of both would lose its place at each turn"
    ]
    assert problems("a.b=x,*.b/p=y", sticky)
    for apart in (
        "/api=api;sticky_cookie=other,=apps",
        "a.b=x,c.b=y",
        "*.a=x,*.b=y",
        "/a=x,/b=x",
        "/a=x;sticky_cookie=,=y",
    ):
        parse_inline(apart, sticky)


def test_file_is_read_and_its_troubles_are_told(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    settings = Settings(routes=str(path))
    accepted = "it takes routes such as shop.example=shop:8080,/api=api,=apps, or the path of a TOML file"
    with pytest.raises(SettingsError) as caught:
        read(settings)
    assert str(caught.value) == f"BALANCER_ROUTES={path} cannot be used: No such file or directory; {accepted}"
    path.write_bytes(b"[a]\nhost = '\xff'")
    with pytest.raises(SettingsError) as caught:
        read(settings)
    assert str(caught.value) == f"BALANCER_ROUTES={path} cannot be used: it is not UTF-8; {accepted}"
    path.write_text("[shop]\ndns_record='mx'")
    with pytest.raises(
        SettingsError, match=rf"^BALANCER_ROUTES={path} \[shop\] dns_record='mx' cannot be used: it takes "
    ):
        read(settings)
    path.write_text("[shop]")
    routes = read(settings)
    assert routes
    assert list(routes.pools) == ["shop"]
    assert read(Settings()) is None


def test_routes_are_described_in_the_order_in_which_they_win() -> None:
    routes = parse_inline("=apps,/api/v2=api:8080;strip_prefix=on;policy=hash,*.a=x,b.a=y", SETTINGS)
    assert describe(routes, SETTINGS) == [
        "b.a/    -> y:80",
        "*.a/    -> x:80",
        "/api/v2 -> api:8080 policy=hash strip_prefix=on",
        "/       -> apps:80",
    ]


# The guide.

GUIDE = (ROOT / "docs" / "guides" / "routes.md").read_text()
SHORT, FILE = re.finditer(r"```toml\n(.*?)```", GUIDE, re.DOTALL)


def test_guide_variable_of_routes_can_be_used() -> None:
    shown = re.findall(r"^(?:    )?BALANCER_ROUTES='(.*?)'", GUIDE, re.MULTILINE)
    assert len(shown) == 3
    for text in shown:
        assert parse_inline(text, SETTINGS).routes


def test_guide_short_file_of_routes_can_be_used() -> None:
    assert list(parse_toml(SHORT[1], SETTINGS, "docs/guides/routes.md").pools) == ["shop", "api"]


def test_file_of_the_guide_leads_where_it_says() -> None:
    routes = parse_toml(FILE[1], SETTINGS, "docs/guides/routes.md")
    assert (routes.pools["shop"].upstream_port, routes.pools["api"].alias) == (8080, "backend")
    rows = re.findall(r"^\| `([^/`]+)(/.*?)` \| `(\w+)`(?:, as `(.*?)`)? \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 9
    for host, target, name, stripped in rows:
        seen = request(host, target)
        assert (routes.find(seen).name, seen.stripped.decode()) == (name, stripped)
    assert found(routes, "other.example", "//api") == "400 malformed_request"
    assert found(routes, "other.example", "/files//a%2Fb") == "apps"


def test_route_has_a_health_check_of_its_own() -> None:
    settings = Settings(health_path="/up", health_body="ready", health_rise=3)
    text = "/api=api;health_path=/;health_status=200-399 401;health_body=;health_rise=2;health_fall=5,=apps"
    pools = parse_inline(text, settings).pools
    api, apps = pools["api"], pools["apps"]
    assert (api.health_path, api.health_body, api.health_rise, api.health_fall) == ("/", None, 2, 5)
    assert api.health_status == {*range(200, 400), 401}
    assert apps == settings


def test_health_check_for_all_routes_needs_one_with_a_path() -> None:
    settings = Settings(health_body="ready", health_status=frozenset({401}))
    assert parse_inline("/a=a;health_path=/up,=apps", settings).pools["a"].health_body == "ready"
    with pytest.raises(SettingsError) as caught:
        parse_inline("/a=a,=apps", settings)
    assert caught.value.problems == [
        "BALANCER_HEALTH_STATUS='401' cannot be used without BALANCER_HEALTH_PATH, or a health_path of a route",
        "BALANCER_HEALTH_BODY='ready' cannot be used without BALANCER_HEALTH_PATH, or a health_path of a route",
    ]


def test_guide_names_every_setting_of_a_pool() -> None:
    (listed,) = re.findall(r"the settings of a pool.*?: (.*?)\.\n", GUIDE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == PER_POOL
