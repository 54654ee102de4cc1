from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import fields

import pytest

from balancer import __version__, build
from balancer.cli.flags import GROUPS
from balancer.cli.main import main
from balancer.config.display import flag, variable
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.types import Address, Clock
from balancer.watch import Options
from tests.support.scripted import ScriptedProbe


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [it for it in os.environ if it.startswith("BALANCER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that cannot be listened on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def test_bad_variable_stops_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_RESOLVE_INTERVAL", "fast")
    assert main(["serve"]) == 2
    assert capsys.readouterr() == (
        "",
        "BALANCER_RESOLVE_INTERVAL='fast' cannot be used: it takes seconds from 0.1 to 3600\n",
    )


def test_every_bad_value_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BALANCER_RESOLVE_INTERVAL", "fast")
    monkeypatch.setenv("BALANCER_QUEUE_MAX", "many")
    assert main(["serve", "--dns-record", "mx", "--alias", "web"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [it.split("=")[0] for it in lines] == ["--dns-record", "BALANCER_RESOLVE_INTERVAL", "BALANCER_QUEUE_MAX"]


def test_taken_port_stops_the_start_with_one_line(
    taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_BIND", taken)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == f"BALANCER_BIND={taken} cannot be listened on: Address already in use\n"


def test_flag_wins_over_its_variable(
    taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_BIND", "nonsense")
    assert main(["serve", "--bind", taken]) == 1
    assert taken in capsys.readouterr().err


def test_misspelt_variable_is_reported_and_the_start_goes_on(
    taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_RESOLVE_INTERVALL", "fast")
    assert main(["serve", "--bind", taken]) == 1
    warning, failure = capsys.readouterr().err.splitlines()
    assert warning.endswith("did you mean BALANCER_RESOLVE_INTERVAL?")
    assert failure.startswith("BALANCER_BIND=")


def test_misspelt_variable_is_reported_by_reload_too(
    taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_ADMIN_TOKN", "12345678")
    assert main(["reload", "--admin-bind", "off"]) == 1
    warning, failure = capsys.readouterr().err.splitlines()
    assert warning == "BALANCER_ADMIN_TOKN is not a setting and is ignored; did you mean BALANCER_ADMIN_TOKEN?"
    assert failure.endswith("--pid is needed")


@pytest.mark.parametrize(
    ("found", "status", "described"),
    [
        (Answer("A", Outcome.FOUND, frozenset({Endpoint(Address("10.0.0.2", 80))})), 0, "A: NOERROR, 1 endpoint"),
        (Answer("A", Outcome.EMPTY, rcode="NXDOMAIN"), 1, "A: NXDOMAIN, 0 endpoints"),
    ],
)
def test_check_prints_the_settings_in_effect_and_what_dns_says(
    found: Answer,
    status: int,
    described: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Resolver:
        def __init__(self, settings: Settings, clock: Clock) -> None:
            assert settings.alias == "web"

        async def __call__(self) -> Snapshot:
            return Snapshot((found,), 0.0)

    monkeypatch.setattr("balancer.discovery.resolver.DnsResolver", Resolver)
    monkeypatch.setattr("balancer.members.probe.make_probe", lambda settings: ScriptedProbe())
    monkeypatch.setenv("BALANCER_QUEUE_MAX", "7")
    assert main(["check", "--alias", "web"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert {"BALANCER_ALIAS=web", "BALANCER_QUEUE_MAX=7", f"DNS for web: {described}"} <= set(lines)
    assert lines[-len(found.endpoints) :] == ["  10.0.0.2:80  accepts connections"] or not found.endpoints


def test_check_prints_the_routes_and_an_answer_for_each_pool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"shop": "10.0.0.2", "api": "10.0.0.3"}

    class Resolver:
        def __init__(self, settings: Settings, clock: Clock) -> None:
            self._settings = settings

        async def __call__(self) -> Snapshot:
            if host := known.get(self._settings.alias):
                endpoints = frozenset({Endpoint(Address(host, self._settings.upstream_port))})
                return Snapshot((Answer("A", Outcome.FOUND, endpoints),), 0.0)
            return Snapshot((Answer("A", Outcome.EMPTY, rcode="NXDOMAIN"),), 0.0)

    monkeypatch.setattr("balancer.discovery.resolver.DnsResolver", Resolver)
    monkeypatch.setattr("balancer.members.probe.make_probe", lambda settings: ScriptedProbe())
    assert main(["check", "--routes", "shop.example=shop:8080,/api=api;policy=random"]) == 0
    said = capsys.readouterr().out.partition("\nRoutes")[2].splitlines()
    assert said == [
        ", each before those that it wins over:",
        "  shop.example/ -> shop:8080",
        "  /api          -> api:80 policy=random",
        "",
        "DNS for shop: A: NOERROR, 1 endpoint",
        "  10.0.0.2:8080  accepts connections",
        "",
        "DNS for api: A: NOERROR, 1 endpoint",
        "  10.0.0.3:80  accepts connections",
    ]
    assert main(["check", "--routes", "=gone,/api=api"]) == 1
    assert "DNS for api: A: NOERROR, 1 endpoint" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["serve", "check"])
def test_routes_that_cannot_be_used_stop_the_start_with_a_line_each(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_ROUTES", "/a=b:0,/c")
    assert main([command]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "BALANCER_ROUTES: '/a=b:0' upstream_port='0' cannot be used: it takes a port from 1 to 65535",
        "BALANCER_ROUTES: '/c' cannot be used: a route is written as host/path=alias:port",
    ]


@pytest.mark.parametrize("command", ["serve", "check"])
def test_help_names_the_flag_and_the_variable_of_every_setting(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    words = set(capsys.readouterr().out.replace(")", " ").split())
    assert {flag(it.name) for it in fields(Settings)} | {variable(it.name) for it in fields(Settings)} <= words


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"{__version__} ({build.describe()})\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["scale"], "invalid choice: 'scale'"),
        (["sevre"], "did you mean serve?"),
        (["serve", "--resolve-intervall", "1"], "--resolve-intervall 1; did you mean --resolve-interval?"),
        (["serve", "--polici=hash"], "unrecognized arguments: --polici=hash; did you mean --policy?"),
        (["serve", "--hold-seconds", "1"], "--hold-seconds 1; --hold-seconds is --queue-timeout now"),
        (["check", "--queue_max=1", "--aliass", "x"], "did you mean --queue-max?; did you mean --alias?"),
        (["reload", "--admin-tokn", "x"], "unrecognized arguments: --admin-tokn x; did you mean --admin-token?"),
        (["demo", "--worker", "3"], "unrecognized arguments: --worker 3; did you mean --workers?"),
        (["watch", "a", "-rate", "3"], "did you mean --rate?"),
        (["watch", "a", "b"], "unrecognized arguments: b"),
        (["--verson"], "COMMAND"),
        (["watch"], "URL"),
        (["watch", ""], "cannot be used: it takes a URL such as"),
        (["watch", "ftp://a/"], "'ftp://a/' cannot be used: it takes a URL such as"),
        (["watch", "http://a b/"], "'http://a b/' cannot be used: it takes a URL such as"),
        (["watch", "a", "--rate", "0"], "--rate: '0' cannot be used: it takes a number from 0.1 to 1000"),
        (["watch", "a", "--rate", "nan"], "--rate: 'nan' cannot be used: it takes a number from 0.1 to 1000"),
        (["watch", "a", "--count", "1.5"], "--count: '1.5' cannot be used: it takes a whole number from 0 to"),
        (["watch", "a", "--timeout", "inf"], "--timeout: 'inf' cannot be used: it takes a number from 0.1 to 3600"),
        (["watch", "a", "--method", "GE T"], "--method: 'GE T' cannot be used: it takes a method such as GET, HEAD or"),
        (["watch", "a", "--method", "connect"], "--method: 'connect' cannot be used: it takes a method such as GET"),
        (["watch", "a", "--header", "X-A"], "--header: 'X-A' cannot be used: it takes NAME:VALUE, such as X-Tenant:a"),
        (["watch", "a", "--header", "X A:b"], "--header: 'X A:b' cannot be used: it takes NAME:VALUE"),
        (["watch", "a", "--header", ":b"], "--header: ':b' cannot be used: it takes NAME:VALUE"),
        (["watch", "a", "--header", "A:b\r\nC:d"], "cannot be used: its value has a control character"),
        (["watch", "a", "--header", "Content-Length:5"], "cannot be used: requests are sent without a body"),
        (["demo", "--workers", "0"], "--workers: '0' cannot be used: it takes a whole number from 1 to 100"),
        (["demo", "--seconds", "-1"], "--seconds: '-1' cannot be used: it takes a number from 0 to 86400"),
        (["demo", "--port", "http"], "--port: 'http' cannot be used: it takes a whole number from 1 to 65535"),
    ],
)
def test_command_line_that_cannot_be_used_is_explained(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "handed_on"),
    [
        (["localhost:8080"], Options("http://localhost:8080", 5.0, 0, 30.0, "GET", (), False, False)),
        (
            [
                "https://a/b",
                "--rate",
                "20",
                "--count",
                "3",
                "--timeout",
                "1",
                "--method",
                "head",
                "--keepalive",
                "--json",
            ],
            Options("https://a/b", 20.0, 3, 1.0, "HEAD", (), True, True),
        ),
        (
            ["a", "--header", "X-A: b:c ", "--header", "X-A:", "--header", "X-B:é"],
            Options("http://a", headers=((b"X-A", b"b:c"), (b"X-A", b""), (b"X-B", "é".encode()))),
        ),
    ],
)
@pytest.mark.parametrize("status", [0, 1])
def test_watch_ends_with_the_status_of_its_loop(
    arguments: list[str], handed_on: Options, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Options] = []

    def run(given: Options) -> int:
        calls.append(given)
        return status

    monkeypatch.setattr("balancer.watch.run", run)
    assert main(["watch", *arguments]) == status
    assert calls == [handed_on]


def test_help_of_serve_groups_the_settings_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    lines = capsys.readouterr().out.splitlines()
    titles = [it.removesuffix(":") for it in lines if it.endswith(":") and not it.startswith((" ", "options"))]
    assert titles == list(GROUPS.values())
    assert [it.name for it in fields(Settings) if it.name in GROUPS] == list(GROUPS)
    assert next(iter(fields(Settings))).name in GROUPS
