from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.display import show, variable
from balancer.config.misspelt import misspelt
from balancer.config.settings import RENAMED, Settings, SettingsError
from balancer.routing.parse import parse_inline
from balancer.types import Address, UnixSocket

NAMES = [variable(it.name) for it in fields(Settings)]


def test_defaults_are_those_of_the_contract() -> None:
    contract = {
        "BALANCER_ALIAS": "apps",
        "BALANCER_UPSTREAM_PORT": "80",
        "BALANCER_DNS_RECORD": "a",
        "BALANCER_RESOLVER": "(the system's)",
        "BALANCER_RESOLVE_INTERVAL": "1",
        "BALANCER_BIND": "0.0.0.0:80",
        "BALANCER_ADMIN_BIND": "127.0.0.1:9000",
        "BALANCER_HEALTH_PATH": "(none)",
        "BALANCER_HEALTH_INTERVAL": "1",
        "BALANCER_QUEUE_TIMEOUT": "10",
        "BALANCER_QUEUE_MAX": "1000",
        "BALANCER_CONNECT_TIMEOUT": "1",
        "BALANCER_RESPONSE_TIMEOUT": "60",
        "BALANCER_STREAM_IDLE_TIMEOUT": "60",
        "BALANCER_TRUSTED_PROXIES": "(none)",
        "BALANCER_ACCESS_LOG": "on",
        "BALANCER_SHUTDOWN_DELAY": "0",
        "BALANCER_SHUTDOWN_TIMEOUT": "8",
    }
    shown = {name: value for name, value, _ in Settings.load({}).rows()}
    assert contract.items() <= shown.items()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alias", "_http._tcp.apps.", "_http._tcp.apps."),
        ("alias", "1", "1"),
        ("client_prefix_v6", "56", 56),
        ("max_queue_share", "0.25", 0.25),
        ("max_queue_share", "1", 1.0),
        ("alias", "192.168.144.2", "192.168.144.2"),
        ("alias", "FD00:0::2", "fd00::2"),
        ("alias", "[fd00::2]", "fd00::2"),
        ("upstream_port", "65535", 65535),
        ("dns_record", "a+aaaa", "a+aaaa"),
        ("resolver", "127.0.0.11", Address("127.0.0.11", 53)),
        ("resolver", "127.0.0.1:5353", Address("127.0.0.1", 5353)),
        ("resolver", "[::1]", Address("::1", 53)),
        ("resolver", "::1", Address("::1", 53)),
        ("resolve_interval", "0.1", 0.1),
        ("bind", "[::]:8080", Address("::", 8080)),
        ("bind", "unix:/run/balancer.sock", UnixSocket("/run/balancer.sock")),
        ("bind", ":8080", Address("0.0.0.0", 8080)),
        ("bind", "8080", Address("0.0.0.0", 8080)),
        ("bind", "*:8080", Address("0.0.0.0", 8080)),
        ("admin_bind", "off", None),
        ("admin_bind", ":9001", Address("0.0.0.0", 9001)),
        ("admin_bind", "9001", Address("0.0.0.0", 9001)),
        ("admin_bind", "[::]:9001", Address("::", 9001)),
        ("admin_bind", "balancer-admin:9001", Address("balancer-admin", 9001)),
        ("admin_bind", "10.0.0.0/24:9001", Address("10.0.0.0/24", 9001)),
        ("admin_bind", "[fd00::/64]:9001", Address("fd00::/64", 9001)),
        ("health_path", "/healthz?deep=1", "/healthz?deep=1"),
        ("health_rise", "3", 3),
        ("queue_timeout", "0", 0.0),
        ("queue_max", "0", 0),
        ("trusted_proxies", "10.0.0.0/8, ::1,", (ip_network("10.0.0.0/8"), ip_network("::1/128"))),
        ("retry_status", "503", frozenset({503})),
        ("retry_status", "502-504,429", frozenset({429, 502, 503, 504})),
        ("retry_status", " 502 503\n504", frozenset({502, 503, 504})),
        ("idempotency_header", "X-Key", "X-Key"),
        ("access_log", "OFF", False),
        ("access_log", "text", "text"),
    ],
)
def test_value_is_read(name: str, text: str, value: object) -> None:
    assert getattr(Settings.load({variable(name): text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("alias", "my apps", "a DNS name such as apps"),
        ("alias", "192.168.144.256", "a DNS name such as apps"),
        ("alias", "[192.168.144.2]", "an IP address"),
        ("alias", "fe80::1%eth0", "an IP address"),
        ("alias", "fd00::2:::", "an IP address"),
        ("alias", "[fd00::2", "an IP address"),
        ("alias", "-apps", "a DNS name such as apps"),
        ("alias", "a" * 64, "a DNS name such as apps"),
        ("alias", ".".join(["a" * 49] * 6), "a DNS name such as apps"),
        ("upstream_port", "0", "a port from 1 to 65535"),
        ("upstream_port", "65536", "a port from 1 to 65535"),
        ("dns_record", "A", "one of a, aaaa, a+aaaa, srv"),
        ("resolver", "dns.example", "ip[:port] of a DNS server"),
        ("resolver", "127.0.0.11:", "ip[:port] of a DNS server"),
        ("resolve_interval", "fast", "seconds from 0.1 to 3600"),
        ("resolve_interval", "0.09", "seconds from 0.1 to 3600"),
        ("resolve_interval", "nan", "seconds from 0.1 to 3600"),
        ("resolve_interval", "inf", "seconds from 0.1 to 3600"),
        ("bind", "0.0.0.0", "ip:port, such as 0.0.0.0:80"),
        ("bind", "::", "ip:port, such as 0.0.0.0:80"),
        ("bind", "off", "ip:port, such as 0.0.0.0:80"),
        ("bind", ":0", "ip:port, such as 0.0.0.0:80"),
        ("bind", "65536", "ip:port, such as 0.0.0.0:80"),
        ("bind", "::8080", "a port alone (0.0.0.0)"),
        ("admin_bind", "²", "a port alone (0.0.0.0)"),
        ("bind", "unix:", "or unix:/path"),
        ("bind", "unix:balancer.sock", "or unix:/path"),
        ("bind", "unix:/" + "a" * 107, "or unix:/path"),
        ("admin_bind", "balancer-admin", "or off"),
        ("admin_bind", "balancer admin:9000", "or off"),
        ("admin_bind", "127.0.0.256:9000", "a name or a network"),
        ("admin_bind", "shop.1:9000", "a name or a network"),
        ("admin_bind", "10.0.0.0/33:9000", "a name or a network"),
        ("admin_bind", "10.0.0.0/24", "a name or a network"),
        ("admin_bind", "10.0.0.9/24:9000", "in 10.0.0.9/24 host bits are set: 10.0.0.0/24?"),
        ("bind", "localhost:80", "ip:port, such as 0.0.0.0:80"),
        ("health_path", "healthz", "a path such as /healthz"),
        ("health_path", "/health z", "a path such as /healthz"),
        ("health_status", ",", "statuses from 200 to 599 with commas or blanks between, such as 200-399,401"),
        ("health_body", "a\nb", "a text of one line, of at most 200 characters"),
        ("health_body", "a" * 201, "a text of one line, of at most 200 characters"),
        ("health_body", "\udcff", "a text of one line, of at most 200 characters"),
        ("health_rise", "0", "a whole number from 1 to 100"),
        ("queue_max", "1.5", "a whole number from 0 to 1000000"),
        ("queue_max", "-1", "a whole number from 0 to 1000000"),
        ("max_queue_share", "0", "a number from 0.01 to 1"),
        ("max_queue_share", "10%", "a number from 0.01 to 1"),
        ("max_queue_share", "nan", "a number from 0.01 to 1"),
        ("client_prefix_v6", "0", "a whole number from 1 to 128"),
        ("trusted_proxies", "10.0.0.1/8", "networks in CIDR notation"),
        ("retry_status", ",", "statuses from 400 to 599 with commas or blanks between, such as 502,503,504"),
        ("retry_status", "200", "'200' is not within 400 to 599"),
        ("retry_status", "503,600", "'600' is not within 400 to 599"),
        ("retry_status", "504-502", "'504-502' ends before it begins"),
        ("retry_status", "5xx", "'5xx' is neither a status nor a range"),
        ("idempotency_header", "a key", "a header name such as Idempotency-Key"),
        ("access_log", "yes", "on, off or text"),
        ("http2", "yes", "on or off"),
    ],
)
def test_bad_value_is_named_with_its_variable_and_what_is_accepted(name: str, text: str, accepted: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({variable(name): text})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable(name)}={text!r} cannot be used: it takes ")
    assert accepted in problem


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("172.30.0.1/16", "in 172.30.0.1/16 host bits are set: 172.30.0.0/16?"),
        ("10.0.0.0/8,172.30.0.1/255.255.0.0", "in 172.30.0.1/255.255.0.0 host bits are set: 172.30.0.0/16?"),
        ("2001:db8::1/64", "in 2001:db8::1/64 host bits are set: 2001:db8::/64?"),
        ("10.0.0.0/8,proxy.example", "'proxy.example' is none"),
        ("10.0.0.0/33", "'10.0.0.0/33' is none"),
    ],
)
def test_network_that_is_none_is_named_with_the_one_that_was_meant(text: str, hint: str) -> None:
    accepted = "networks in CIDR notation with commas or newlines between, such as 10.0.0.0/8,192.168.0.1/32"
    with pytest.raises(SettingsError) as caught:
        Settings.load({"BALANCER_TRUSTED_PROXIES": text})
    assert caught.value.problems == [f"BALANCER_TRUSTED_PROXIES={text!r} cannot be used: it takes {accepted}; {hint}"]
    with pytest.raises(SettingsError) as caught:
        Settings.of(trusted_proxies=text)
    assert caught.value.problems == [f"trusted_proxies={text!r} cannot be used: it takes {accepted}; {hint}"]


@pytest.mark.parametrize(
    ("text", "statuses", "shown"),
    [
        ("204", {204}, "204"),
        ("200-202,401", {200, 201, 202, 401}, "200-202,401"),
        ("\n  401\n  200-201, 202\n", {200, 201, 202, 401}, "200-202,401"),
        ("200 401", {200, 401}, "200,401"),
        ("503,502,502-504", {502, 503, 504}, "502-504"),
        ("200-599", set(range(200, 600)), "200-599"),
    ],
)
def test_statuses_are_single_or_ranges_in_any_order(text: str, statuses: set[int], shown: str) -> None:
    settings = Settings.load({"BALANCER_HEALTH_PATH": "/up", "BALANCER_HEALTH_STATUS": text})
    assert settings.health_status == statuses
    assert dict(row[:2] for row in settings.rows())["BALANCER_HEALTH_STATUS"] == shown
    assert Settings.of(health_path="/up", health_status=statuses) == settings


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2xx", "'2xx' is neither a status nor a range"),
        ("200..299", "'200..299' is neither a status nor a range"),
        ("200 - 204", "'-' is neither a status nor a range"),
        ("200,40l", "'40l' is neither a status nor a range"),
        ("²00", "'²00' is neither a status nor a range"),
        ("101", "'101' is not within 200 to 599"),
        ("200-600", "'200-600' is not within 200 to 599"),
        ("200,299-200", "'299-200' ends before it begins"),
    ],
)
def test_what_is_wrong_with_statuses_is_named(text: str, hint: str) -> None:
    accepted = "statuses from 200 to 599 with commas or blanks between, such as 200-399,401"
    with pytest.raises(SettingsError) as caught:
        Settings.load({"BALANCER_HEALTH_STATUS": text})
    assert caught.value.problems == [f"BALANCER_HEALTH_STATUS={text!r} cannot be used: it takes {accepted}; {hint}"]


NETWORKS = (ip_network("10.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize("between", [",", ", ", "\n", "\r\n", ",\n", "\n,", " \n\n  "])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("\n  ", "\n"), (" ", "\r\n")])
def test_list_in_a_block_of_yaml_has_newlines_as_well_as_commas(between: str, before: str, after: str) -> None:
    def block(*entries: str) -> str:
        return before + between.join(entries) + after

    environ = {"BALANCER_TRUSTED_PROXIES": block("10.0.0.0/8", "::1"), "BALANCER_HOOKS": block("a.b:C", "d-e")}
    environ["BALANCER_ROUTES"] = block("shop.example=shop:8080", "/api=api;policy=hash", "=apps")
    settings = Settings.load(environ)
    assert (settings.trusted_proxies, settings.hooks) == (NETWORKS, ("a.b:C", "d-e"))
    assert settings.routes
    assert [str(it) for it in parse_inline(settings.routes, settings).routes] == ["shop.example/", "/api", "/"]


def test_networks_in_a_folded_block_of_yaml_have_blanks_between() -> None:
    assert Settings.load({"BALANCER_TRUSTED_PROXIES": "10.0.0.0/8 ::1\n"}).trusted_proxies == NETWORKS


@pytest.mark.parametrize("name", [it.name for it in fields(Settings) if not it.metadata["kind"].secret])
def test_white_space_around_a_value_is_no_part_of_it(name: str) -> None:
    values = {variable(field): text for field, text in _values().items() if field != "admin_token"}
    padded = values | {variable(name): f" {values[variable(name)]}\n"}
    assert Settings.load(padded) == Settings.load(values)
    assert Settings.load({variable(name): " \n"}) == Settings()


def _values() -> dict[str, str]:
    """A text for every setting."""
    values = {it.name: show(it.default, it.metadata["kind"]) for it in fields(Settings)}
    own = {
        "routes": "=apps", "resolver": "::1", "sticky_cookie": "a", "health_path": "/a", "health_host": "a",
        "health_body": "a", "trusted_proxies": "::1", "tls_cert": "/a", "tls_key": "/a", "hooks": "a", "otel_endpoint": "http://a",
        "retry_status": "503",
    }  # fmt: skip
    return values | own


def test_every_bad_value_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"BALANCER_QUEUE_MAX": "many", "BALANCER_ALIAS": "web", "BALANCER_BIND": "here"})
    assert [it.partition("=")[0] for it in caught.value.problems] == ["BALANCER_BIND", "BALANCER_QUEUE_MAX"]


def test_empty_variable_counts_as_unset() -> None:
    assert Settings.load(dict.fromkeys(NAMES, "")) == Settings()


def test_flag_wins_over_a_variable_even_over_a_bad_one() -> None:
    assert Settings.load({"BALANCER_QUEUE_MAX": "many"}, {"queue_max": "5"}).queue_max == 5


def test_bad_flag_is_named_as_a_flag() -> None:
    with pytest.raises(SettingsError, match=r"^--queue-max='many' cannot be used"):
        Settings.load({"BALANCER_QUEUE_MAX": "5"}, {"queue_max": "many"})


@given(name=st.sampled_from(NAMES), text=st.text())
def test_any_text_is_either_used_or_one_line_about_its_variable(name: str, text: str) -> None:
    try:
        Settings.load({name: text})
    except SettingsError as error:
        (line,) = str(error).splitlines()
        assert line.startswith(f"{name}=")


@given(ip=st.ip_addresses(), port=st.integers(1, 65535))
def test_address_is_read_as_it_is_shown(ip: IPv4Address | IPv6Address, port: int) -> None:
    address = Address(str(ip), port)
    assert Settings.load({"BALANCER_BIND": str(address)}).bind == address


def test_unix_socket_is_read_as_it_is_shown() -> None:
    settings = Settings.load({"BALANCER_BIND": "unix:/run/balancer.sock"})
    assert ("BALANCER_BIND", "unix:/run/balancer.sock", "where clients connect") in settings.rows()


@pytest.mark.parametrize("name", [it.name for it in fields(Settings)])
def test_default_is_shown_as_one_would_write_it(name: str) -> None:
    (item,) = (it for it in fields(Settings) if it.name == name)
    shown = show(item.default, item.metadata["kind"])
    if not shown.startswith("("):
        assert getattr(Settings.load({variable(name): shown}), name) == item.default


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BALANCER_RESOLVE_INTERVALL", "BALANCER_RESOLVE_INTERVAL"),
        ("BALANCER_HEALTHPATH", "BALANCER_HEALTH_PATH"),
        ("BALANCER_TRUSTED_PROXY", "BALANCER_TRUSTED_PROXIES"),
    ],
)
def test_misspelt_variable_is_reported_with_the_one_that_was_meant(name: str, meant: str) -> None:
    (line,) = misspelt({name: "1", meant: "1", "PATH": "/bin"})
    assert line == f"{name} is not a setting and is ignored; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    [
        "BALANCER_SERVICE_HOST",
        "BALANCER_SERVICE_PORT",
        "BALANCER_PORT_80_TCP_ADDR",
        "BALANCE_ALIAS",
        "BALANCER_IMAGE",
        *NAMES,
    ],
)
def test_variables_that_an_orchestrator_injects_are_not_reported(name: str) -> None:
    assert misspelt({name: "tcp://10.0.0.1:80"}) == []


TLS = {"BALANCER_TLS_CERT": "/cert.pem", "BALANCER_TLS_KEY": "/key.pem"}


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"BALANCER_TLS_CERT": "/c"}, "BALANCER_TLS_CERT='/c' cannot be used without BALANCER_TLS_KEY"),
        ({"BALANCER_TLS_KEY": "/k"}, "BALANCER_TLS_KEY='/k' cannot be used without BALANCER_TLS_CERT"),
        ({"BALANCER_HTTP2": "on"}, "BALANCER_HTTP2='on' cannot be used without BALANCER_TLS_CERT and BALANCER_TLS_KEY"),
        (
            {"BALANCER_PROXY_PROTOCOL": "on"},
            "BALANCER_PROXY_PROTOCOL='on' cannot be used without BALANCER_TRUSTED_PROXIES",
        ),
        ({"BALANCER_HEALTH_BODY": "ok"}, "BALANCER_HEALTH_BODY='ok' cannot be used without BALANCER_HEALTH_PATH"),
        ({"BALANCER_HEALTH_STATUS": "401"}, "BALANCER_HEALTH_STATUS='401' cannot be used without BALANCER_HEALTH_PATH"),
        ({"BALANCER_HEALTH_HOST": "shop"}, "BALANCER_HEALTH_HOST='shop' cannot be used without BALANCER_HEALTH_PATH"),
        (
            {"BALANCER_HASH_BALANCE_FACTOR": "125", "BALANCER_POLICY": "random"},
            "BALANCER_HASH_BALANCE_FACTOR='125' cannot be used without BALANCER_POLICY=hash",
        ),
        (
            {"BALANCER_HASH_BALANCE_FACTOR": "100", "BALANCER_POLICY": "hash"},
            "BALANCER_HASH_BALANCE_FACTOR='100' cannot be used: it takes 0, or a whole number from 101 to 10000",
        ),
    ],
)
def test_setting_that_would_do_nothing_alone_is_refused(environ: dict[str, str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert caught.value.problems == [line]


@pytest.mark.parametrize(
    "environ",
    [
        TLS,
        TLS | {"BALANCER_HTTP2": "on"},
        {"BALANCER_HTTP2": "off", "BALANCER_PROXY_PROTOCOL": "off"},
        {"BALANCER_HEALTH_STATUS": "200-299", "BALANCER_HEALTH_RISE": "3"},
        {"BALANCER_HEALTH_BODY": "ok", "BALANCER_HEALTH_PATH": "/up"},
        {"BALANCER_HEALTH_BODY": "ok", "BALANCER_ROUTES": "/a=a;health_path=/up,=apps"},
        {"BALANCER_PROXY_PROTOCOL": "on", "BALANCER_TRUSTED_PROXIES": "10.0.0.1"},
        {"BALANCER_PROXY_PROTOCOL": "on", "BALANCER_BIND": "unix:/run/balancer.sock"},
    ],
)
def test_setting_with_what_it_needs_is_used(environ: dict[str, str]) -> None:
    assert Settings.load(environ).incomplete() == []


@pytest.mark.parametrize("text", ["12345678", "dGVzdC10b2tlbg==", "a" * 256])
def test_token_is_used_and_never_shown(text: str) -> None:
    settings = Settings.load({"BALANCER_ADMIN_TOKEN": text})
    assert settings.admin_token == text
    shown = {name: value for name, value, _ in settings.rows()}
    assert shown["BALANCER_ADMIN_TOKEN"] == "(set)"


@pytest.mark.parametrize("text", ["1234567", "a" * 257, "with space", "é" * 8, "=" * 8, "12345678\n", "a=bcdefgh"])
def test_bad_token_is_not_shown_either(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"BALANCER_ADMIN_TOKEN": text})
    (problem,) = caught.value.problems
    assert problem.startswith("BALANCER_ADMIN_TOKEN=(not shown) cannot be used: it takes 8 to 256 letters")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_name_stops_the_start_with_the_new_one(old: str, new: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable(old)} cannot be used: it is {variable(new)} now$"):
        Settings.load({variable(old): "1"})
    assert Settings.load({variable(old): ""}) == Settings()
    with pytest.raises(TypeError, match=rf"^'{old}' is not a setting; did you mean '{new}'\?$"):
        Settings.of(**{old: 1})
    assert new in {it.name for it in fields(Settings)}


def test_old_name_in_a_route_is_refused_with_the_new_one() -> None:
    words = r"hold_seconds cannot be used: it is not a setting of a route; did you mean queue_timeout\?"
    with pytest.raises(SettingsError, match=words):
        parse_inline("/a=b;hold_seconds=3", Settings())
