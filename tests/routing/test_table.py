"""Which route a request takes, and that no other way to write a path gets past it."""

from __future__ import annotations

from itertools import product
from random import Random
from urllib.parse import unquote_to_bytes

import pytest

from balancer.routing.path_safety import UNCLEAR_MAX
from balancer.routing.table import Route, Table
from tests.support.routes import found, request, table


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


# Other ways to write a path.


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


def test_path_of_very_many_segments_that_need_a_look_is_refused() -> None:
    routes = table("/api", "/")
    assert found(routes, "a", "/api" + "/a%41" * UNCLEAR_MAX) == "/api"
    assert found(routes, "a", "/api" + "/a" * 8000 + "//") == "/api"
    assert found(routes, "a", "/api" + "/a%41" * (UNCLEAR_MAX + 1)) == "400 malformed_request"


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
        ("/api/\\evil.example/", b"/evil.example/"),
        ("/api//\\/\\evil.example", b"/evil.example"),
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
