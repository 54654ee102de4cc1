"""The bench's loads: what each candidate is configured for, what generators print, and what the tables make of it."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from balancer import __version__
from balancer.config.settings import Settings
from bench import candidates, h2, report, steady, traffic
from bench.__main__ import ALL, DEFAULT, KNOWN, PACED, expected_seconds, merged
from bench.builds import Build, Builds, describe_python
from bench.candidates import BALANCER, BASELINE, BESIDE, COMPILED, FEATURES, PEERS, of_balancer
from bench.command import names, share
from bench.configs import Site
from bench.doors import Certificate, Door
from bench.loads import LOADS, Load
from bench.processes import Address, BenchError, Server
from bench.rounds import reasons
from bench.upstreams import FIRST_MEMBER, Upstreams
from tests.support.paths import ROOT
from tests.support.wire import Connection, Member

DOORS = [Door(), Door(tls=True), Door(tls=True, http2=True), Door(trusted=True)]
CANDIDATES = [*PEERS, *of_balancer(Builds())]

H2LOAD = """\
Application protocol: h2
finished in 1.00s, 2608.00 req/s, 58.22MB/s
requests: 2608 total, 2640 started, 2608 done, 2600 succeeded, 8 failed, 2 errored, 1 timeout
status codes: 2600 2xx, 0 3xx, 0 4xx, 5 5xx
traffic: 58.22MB (61042934) total, 500.76KB (512783) headers (space savings 30.37%), 57.61MB (60412579) data
"""


def site(tmp_path: Path, door: Door) -> Site:
    certificate = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    for path in (certificate.chain, certificate.key):
        path.write_text("")
    upstreams = Upstreams([Address(FIRST_MEMBER, 8000)], Address("127.0.0.1", 53), Server("", [], 0, tmp_path / "log"))
    listen = Address("127.0.0.1", 8080)
    return Site(listen, upstreams, tmp_path, door=door, certificate=certificate if door.tls else None)


def load(name: str) -> Load:
    return next(load for load in LOADS if load.name == name)


@pytest.mark.parametrize("door", DOORS, ids=str)
@pytest.mark.parametrize("feature", ["", *(f"-{name}" for name in FEATURES)])
def test_settings_of_a_candidate_are_some_that_the_balancer_takes(feature: str, door: Door, tmp_path: Path) -> None:
    candidate = next(it for it in CANDIDATES if it.name == BALANCER + feature)
    flags = dict(it.removeprefix("--").split("=", 1) for it in candidate.command(site(tmp_path, door)).argv[4:])
    settings = Settings.load({}, {name.replace("-", "_"): value for name, value in flags.items()})
    assert bool(settings.tls_cert) == door.tls
    assert settings.http2 == door.http2
    assert bool(settings.trusted_proxies) == door.trusted


def test_another_checkout_takes_part_where_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--beside"):
        next(it for it in CANDIDATES if it.name == BESIDE).command(site(tmp_path, Door()))
    build = Builds(beside=str(ROOT)).beside()
    assert build.sources == ROOT
    assert build.env["PYTHONPATH"].startswith(str(ROOT))


def test_a_candidate_that_cannot_take_a_load_is_left_out_with_the_reason() -> None:
    left_out = reasons(load("tls-32"), CANDIDATES)
    assert set(left_out) == {"starlette-httpx", "starlette-aiohttp"}
    assert not reasons(load("proxied-32"), CANDIDATES)


def test_the_default_is_every_peer_and_the_balancer_pure_and_compiled() -> None:
    assert [*(peer.name for peer in PEERS), "balancer", "balancer-compiled"] == DEFAULT
    assert {candidate.name for candidate in CANDIDATES} == set(KNOWN)


def test_loads_at_a_steady_rate_have_names_of_their_own() -> None:
    assert list(PACED) == ["browser-256-steady", "api-post-32-steady", "proxied-32-steady", "steady"]
    assert steady.name_of(load("get-32")) == "steady"
    assert len(set(ALL)) == len(ALL)


def test_a_complete_run_is_bounded() -> None:
    assert expected_seconds(ALL, len(DEFAULT), 5, 3) < 100 * 60
    assert expected_seconds(["browser-32"], 2, 2, 3) < 60


def test_what_was_measured_takes_the_place_of_the_same_part_in_the_order_of_a_complete_run() -> None:
    known = {"date": 1, "candidates": {BALANCER: "old", BASELINE: "old"}, "loads": {"get-32": "old"}, "memory": {}}
    results = {"date": 2, "candidates": {BALANCER: "new"}, "loads": {"browser-32": "new"}, "memory": {}}
    assert json.dumps(merged(known, results)) == json.dumps(
        {
            "date": 2,
            "candidates": {BASELINE: "old", BALANCER: "new"},
            "loads": {"browser-32": "new", "get-32": "old"},
            "memory": {},
        }
    )


def test_names_come_in_the_order_of_those_known_and_may_be_short() -> None:
    parse = names(KNOWN, {"nginx": BASELINE})
    assert parse("balancer,nginx") == [BASELINE, BALANCER]
    with pytest.raises(argparse.ArgumentTypeError, match="Nginx unknown"):
        parse("Nginx")


@pytest.mark.parametrize("text", ["0", "1.5", "x"])
def test_a_share_is_one(text: str) -> None:
    assert share("0.7") == 0.7
    with pytest.raises(ValueError):
        share(text)


def test_figures_of_h2load_are_read_from_what_it_prints_and_from_its_log() -> None:
    log = [f"17959897053874{number:02}\t200\t{1000 * number}" for number in range(1, 101)]
    figures = h2.figures(H2LOAD, log, 3)
    assert figures == {
        "requests": 2600,
        "bytes": 61042934,
        "seconds": 3.0,
        "p50_ms": 51.0,
        "p99_ms": 100.0,
        "errors": {"broken": 2, "timeout": 1, "status": 5},
    }


def test_h2load_asks_for_the_targets_of_browsers_with_the_headers_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h2, "program", lambda name: name)
    argv = h2.command("127.0.0.1:80", "browser", traffic.FIRST, (8, 4, 3), tmp_path)
    targets = (tmp_path / "targets").read_text().splitlines()
    sent = itertools.islice(traffic.requests("browser", "127.0.0.1:80", traffic.FIRST), h2.TARGETS)
    assert targets == [f"https://127.0.0.1:80{request.split(b' ', 2)[1].decode()}" for request in sent]
    headers = [it.removeprefix("--header=").split(":")[0] for it in argv if it.startswith("--header=")]
    assert len(headers) == 8
    assert {"user-agent", "cookie", "referer"} < set(headers)
    assert not {"host", "connection"} & set(headers)


def test_a_python_says_its_version_and_whether_it_was_made_with_profiles() -> None:
    version, *how = describe_python(sys.executable).split()
    assert version == sys.version.split()[0]
    assert how[-1] == "PGO"


def test_a_build_says_what_it_is() -> None:
    build = Builds().pure()
    assert build.version().startswith(__version__)
    assert describe_python(build.python) in build.version()


def test_older_sources_get_the_flags_that_they_know(tmp_path: Path) -> None:
    """Those before the settings were named anew."""
    (tmp_path / "balancer").mkdir()
    (tmp_path / "balancer" / "__init__.py").touch()
    (tmp_path / "balancer" / "__main__.py").write_text("print('usage: --admin --bind')")
    build = Build(Builds().pure().python, tmp_path, "")
    assert build.spelled(["--admin-bind=off", "--bind=x"]) == ["--admin=off", "--bind=x"]
    assert Builds().pure().spelled(["--admin-bind=off"]) == ["--admin-bind=off"]


def figures(cpu: float, ratio: float) -> dict[str, Any]:
    return {"cpu": cpu, "ratio": ratio}


def test_what_the_docs_say_is_written_between_the_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    for path in (readme, page):
        path.write_text(f"image{report.MARKS[0]}\nold{report.MARKS[1]}after\n")
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(report, "SENTENCES", {readme: "{browser-32[balancer]} and {h2-32[balancer]}"})
    monkeypatch.setattr(report, "TABLES", {page: (["browser-32", "tls-32", "h2-32"], "above")})
    browser = {BASELINE: figures(20, 1), "balancer-log": figures(1, 1), BALANCER: figures(40, 2)}
    loads = {"browser-32": {"candidates": browser}}
    report.publish({"loads": loads})
    assert "old" in readme.read_text(), "one of its figures was not measured"
    loads["h2-32"] = {"candidates": {BALANCER: figures(123.4, 6.17)}}
    for _ in range(2):
        report.publish({"loads": loads})
        assert readme.read_text() == f"image{report.MARKS[0]}\n40 and 123{report.MARKS[1]}after\n"
        lines = page.read_text().splitlines()
        assert lines[2:4] == ["above", ""]
        assert lines[4] == "|  | browser-32 | h2-32 |"
        assert lines[6:8] == [f"| {BASELINE} | 20.0 | - |", f"| {BALANCER} | 40.0 (2.00) | 123 (6.17) |"]
        assert lines[-1] == "after"


@pytest.mark.parametrize("path", [*report.SENTENCES, *report.TABLES], ids=str)
def test_docs_have_the_marks(path: Path) -> None:
    text = path.read_text()
    assert text.count(report.MARKS[0]) == text.count(report.MARKS[1]) == 1


def test_docs_speak_of_candidates_and_loads_that_there_are() -> None:
    measured = {name: dict.fromkeys(DEFAULT, 1.0) for name in ALL}
    assert all(sentence.format_map(measured) for sentence in report.SENTENCES.values())
    assert all(set(loads) <= {load.name for load in LOADS} for loads, _ in report.TABLES.values())


def test_reasons_stand_below_the_table() -> None:
    measured = {
        "description": "d",
        "unit": "CPU µs/request",
        "candidates": {},
        "failures": {},
        "left_out": {"starlette-httpx": "its server has no HTTP/2"},
    }
    assert report.plain_table("h2-32", measured).endswith("Left out: starlette-httpx (its server has no HTTP/2).")


def test_the_readme_of_the_bench_says_what_every_load_sends() -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    assert [name for name in ALL if f"`{name}`" not in text] == []
    assert [name for name in (BALANCER, COMPILED, BESIDE) if f"`{name}`" not in text] == []
    assert [name for name in FEATURES if f"`-{name}`" not in text] == []


async def test_the_metrics_of_an_admin_port_are_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SCRAPE_SECONDS", 0.05)
    asked: list[bytes] = []

    async def answer(connection: Connection) -> None:
        asked.append(await connection.head())
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with Member(answer) as member:
        with candidates.scraped(Address(*member.address)):
            async with asyncio.timeout(10):
                while len(asked) < 3:
                    await asyncio.sleep(0.01)
    assert {head.partition(b"\r\n")[0] for head in asked} == {b"GET /metrics HTTP/1.1"}
