"""What the setting says, which route a request takes, and what nobody gets past by writing a path in another way."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import product
from pathlib import Path
from random import Random
from urllib.parse import unquote_to_bytes

import pytest

from balancer.config.settings import Settings, SettingsError
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.routing.parse import describe, parse_inline, parse_toml, read
from balancer.routing.table import Route, Table
from balancer.routing.table_builder import PER_POOL
from tests.support.paths import ROOT

SETTINGS = Settings()


def request(host: str, target: str) -> Request:
    return Request("GET", target.encode("latin-1"), [(b"host", host.encode())], "", host=host.encode())


def table(*places: str, strip: bool = False) -> Table:
    """Routes at these places, each to a pool of the place's name."""
    routes = []
    for place in places:
        host, slash, path = place.partition("/")
        routes.append(Route(host, (slash + path).rstrip("/"), place, strip and path != ""))
    return Table(routes, dict.fromkeys(places, SETTINGS))


def found(routes: Table, host: str, target: str) -> str:
    """The name of the pool, or the status and token of the refusal."""
    try:
        return routes.find(request(host, target)).name
    except Refusal as refusal:
        return f"{refusal.status} {refusal.token}"


def problems(text: str, settings: Settings = SETTINGS) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse_inline(text, settings) if "[" not in text else parse_toml(text, settings, "routes.toml")
    return caught.value.problems


# What the setting says.


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


# Which route a request takes.


@pytest.mark.parametrize(
    ("host", "target", "name"),
    [
        ("shop.example", "/", "shop.example"),
        ("SHOP.Example.:8080", "/x", "shop.example"),
        ("shop.example", "/api", "shop.example/api"),
        ("shop.example", "/api?x=/../y", "shop.example/api"),
        ("shop.example", "/api/", "shop.example/api"),
        ("shop.example", "/api/v1", "shop.example/api"),
        ("shop.example", "/api/v2/x", "shop.example/api/v2"),
        ("shop.example", "/apis", "shop.example"),
        ("shop.example", "/API", "shop.example"),
        ("shop.example", "*", "shop.example"),
        ("a.shop.example", "/deep/x", "*.shop.example/deep"),
        ("b.a.shop.example", "/deep", "*.a.shop.example/deep"),
        ("c.b.a.shop.example", "/deep", "*.a.shop.example/deep"),
        ("b.a.shop.example", "/", "/"),
        ("a.shop.example", "/api", "/api"),
        ("other", "/api/x", "/api"),
        ("other", "/deep", "/"),
        ("", "/deep", "/"),
        ("[::1]:80", "/v6", "[::1]/v6"),
        ("[::1]", "/v6", "[::1]/v6"),
        ("shop.example.evil", "/", "/"),
        ("other", "/produ%C3%A7%c3%a3o/x", "/produção"),
    ],
)
def test_most_specific_host_wins_and_then_the_longest_path(host: str, target: str, name: str) -> None:
    routes = table(
        "/", "/api", "shop.example", "shop.example/api", "shop.example/api/v2", "*.shop.example/deep",
        "*.a.shop.example/deep", "[::1]/v6", "/produção",
    )  # fmt: skip
    assert found(routes, host, target) == name


def test_path_without_a_route_is_404() -> None:
    routes = table("shop.example/api", "*.shop.example")
    for host, target in (("other", "/api"), ("shop.example", "/"), ("shop.example", "*"), ("example", "/")):
        assert found(routes, host, target) == "404 no_route"


def test_hosts_that_anybody_makes_up_are_not_kept_for_ever() -> None:
    routes = table("/api", "shop.example")
    for number in range(5000):
        assert found(routes, f"h{number}", "/api") == "/api"
    assert len(routes._chains) <= 1024


@pytest.mark.parametrize("host", ["x" * 10_000, "x." * 10_000 + "shop.example"], ids=["one label", "many labels"])
def test_long_host_finds_its_route_and_is_not_kept(host: str) -> None:
    routes = table("/api", "*.shop.example")
    assert found(routes, host, "/api") == ("*.shop.example" if host.endswith("shop.example") else "/api")
    assert not routes._chains


HOSTS = ["", "a", "b.a", "c.b.a", "*.a", "*.b.a", "x"]
SEGMENTS = ["p", "q", "pq"]


def by_definition(places: list[tuple[str, str]], host: str, path: str) -> str | None:
    """The rules of the module's docstring, word for word."""

    def matches(place: tuple[str, str]) -> bool:
        name, prefix = place
        fits = not name or host == name or (name.startswith("*.") and host.endswith(name[1:]))
        return fits and (path == prefix or path.startswith(prefix + "/"))

    def rank(place: tuple[str, str]) -> tuple[int, int, int]:
        name, prefix = place
        return (0 if not name else 1 if name.startswith("*.") else 2), len(name), len(prefix)

    best = max(filter(matches, places), key=rank, default=None)
    return (best and "".join(best)) or ("" if best else None)


def test_precedence_is_what_is_promised_whatever_the_routes() -> None:
    rng = Random(6)
    prefixes = ["", *("/" + "/".join(it) for size in (1, 2, 3) for it in product(SEGMENTS, repeat=size))]
    for _ in range(300):
        places = list({(rng.choice(HOSTS), rng.choice(prefixes)) for _ in range(rng.randint(1, 12))})
        rng.shuffle(places)
        routes = Table([Route(host, prefix, host + prefix) for host, prefix in places], {})
        for _ in range(30):
            host = rng.choice(["a", "b.a", "c.b.a", "d.c.b.a", "x", "y"])
            path = rng.choice(prefixes) + rng.choice(["", "/", "/p", "/z"]) or "/"
            expected = by_definition(places, host, path)
            assert found(routes, host, path) == ("404 no_route" if expected is None else expected), (places, host, path)


# What nobody gets past.


@pytest.mark.parametrize(
    "target",
    [
        "/public/../admin", "/public/%2e%2e/admin", "/public/.%2E/admin", "/public/..%2fadmin", "/public/..%5cadmin",
        "/public/..\\admin", "/public/..;/admin", "/public/..;x=1/admin", "/public/%252e%252e/admin", "/./admin",
        "/public/x/../../admin", "/public/..", "/..", "/public/..%3f/admin", "/public/%2e%2e%2fadmin", "/%2e/admin",
        "//admin", "/%2fadmin", "/%2Fadmin", "/\\admin", "/%5cadmin", "/;/admin", "/;x/admin", "/admin;x", "/admin;x/y",
        "/admin%3bx", "/admin%3fx", "/admin%23x", "/admin%00x", "/%2561dmin", "/admin%252fx", "/%252fadmin",
        "/admin\\x", "/admin%5cx", "/admin%2fx", "//public/../admin", "/public%2f..%2fadmin",
    ],
)  # fmt: skip
def test_another_way_to_write_a_path_is_no_way_past_a_route(target: str) -> None:
    routes = table("/", "/public", "/admin", "shop.example/public")
    for host in ("a", "shop.example"):
        assert found(routes, host, target) == "400 malformed_request"


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/%61dmin", "/admin"),
        ("/%61%64min/%2e%78", "/admin"),
        ("/admin/a%2fb", "/admin"),
        ("/admin//x", "/admin"),
        ("/admin/x;y=1/z", "/admin"),
        ("/admin/100%25", "/admin"),
        ("/admin/.well-known", "/admin"),
        ("/admin/...", "/admin"),
        ("/.well-known/x", "/"),
        ("/a%20b//c%2Fd;e", "/"),
        ("/x?y=//../admin%2f", "/"),
        ("/100%", "/"),
    ],
)
def test_path_that_leads_to_one_route_in_every_reading_passes(target: str, name: str) -> None:
    assert found(table("/", "/admin"), "a", target) == name


def test_paths_of_a_host_with_one_route_for_all_are_let_alone() -> None:
    routes = table("shop.example", "/api")
    assert found(routes, "shop.example", "//x/../api/%2e%2e") == "shop.example"


def readings(path: bytes) -> set[bytes]:  # noqa: C901 - every way to read a path, one after the other
    """What programs make of a path: any combination of what some of them do, in the order in which they do it."""
    found = set()
    for decode, parameters, backslash, cut, merge, dots in product(range(3), range(3), *[(False, True)] * 4):
        text = path
        if parameters == 1:
            text = b"/".join(it.partition(b";")[0] for it in text.split(b"/"))
        for _ in range(decode):
            text = unquote_to_bytes(text)
        if backslash:
            text = text.replace(b"\\", b"/")
        if cut:
            for mark in (b"?", b"#", b"\0"):
                text = text.partition(mark)[0]
        segments = text.split(b"/")[1:]
        if parameters == 2:
            segments = [it.partition(b";")[0] for it in segments]
        if merge:
            segments = [it for it in segments if it]
        if dots:
            resolved: list[bytes] = []
            for it in segments:
                if it == b"..":
                    del resolved[-1:]
                elif it != b".":
                    resolved.append(it)
            segments = resolved
        found.add(b"/" + b"/".join(segments))
    return found


def test_path_that_passes_leads_to_the_same_route_in_every_reading() -> None:
    """Members may read a path as they like: what some of them would take for a path of another route is refused."""
    rng = Random(8)
    pieces = [
        "/", "/", "/", "p", "q", "p", "q", "%70", "%2f", "%5C", "\\", "%25", "%252f", "%2570", ";", "%3b", "%3F", "%23",
        "%00", ".", "..", "%2e", "%252e", "x", "//", ";p/",
    ]  # fmt: skip
    places = ["/", "/p", "/p/q", "/q", "/q/p/p"]
    passed = refused = 0
    for _ in range(5000):
        routes = table(*rng.sample(places, rng.randint(2, 5)))
        target = "/" + "".join(rng.choices(pieces, k=rng.randint(1, 8)))
        name = found(routes, "a", target)
        if name == "400 malformed_request":
            refused += 1
            continue
        passed += 1
        # That an escape of an ordinary character is that character, nobody disputes.
        plain = target.replace("%70", "p").encode()
        prefixes = {it.prefix.encode(): it.name for it in routes.routes}
        for reading in readings(plain):
            best = max((it for it in prefixes if reading == it or reading.startswith(it + b"/")), key=len, default=None)
            assert (prefixes[best] if best is not None else "404 no_route") == name, (target, reading)
    assert passed > 800
    assert refused > 800


# What members get.


@pytest.mark.parametrize(
    ("target", "stripped"),
    [
        ("/api", b"/"),
        ("/api/", b"/"),
        ("/api?x=/api/y", b"/?x=/api/y"),
        ("/api/v1/x?y", b"/v1/x?y"),
        ("/%61pi/a%2Fb", b"/a%2Fb"),
        ("/api//evil.example", b"/evil.example"),
        ("/api///", b"/"),
        ("/api/a//b", b"/a//b"),
        ("/api/api", b"/api"),
    ],
)
def test_prefix_is_taken_off_where_that_is_asked_for(target: str, stripped: bytes) -> None:
    routes = table("/api", "/", strip=True)
    seen = request("a", target)
    routes.find(seen)
    assert (seen.target, seen.stripped, seen.prefix) == (target.encode(), stripped, b"/api")
    other = request("a", "/other")
    routes.find(other)
    assert (other.stripped, other.prefix) == (b"", b"")


def test_prefix_that_is_taken_off_is_told_in_ascii() -> None:
    seen = request("a", "/produ%C3%A7%c3%a3o/x")
    table("/produção", "/", strip=True).find(seen)
    assert (seen.prefix, seen.stripped) == (b"/produ%C3%A7%C3%A3o", b"/x")


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


def test_guide_names_every_setting_of_a_pool() -> None:
    (listed,) = re.findall(r"the settings of a pool.*?: (.*?)\.\n", GUIDE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == PER_POOL
