"""``make abuse``: what its attacks are made of, how it judges, and one attack from end to end."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hpack
import pytest
from hyperframe.frame import Frame as ParsedFrame

from balancer.config.settings import Settings
from balancer.demo.system import free_port
from balancer.routing.parse import read
from bench.abuse import frames, report, run
from bench.abuse.attack import Tally
from bench.abuse.attacks import ATTACKS
from bench.abuse.attacks_http2 import SMUGGLING, hpack_bomb, made_you_reset, rapid_reset, smuggled
from bench.abuse.candidates import BALANCER, TITLES, Setup, ours, site_of, takes_part
from bench.abuse.frames import FrameReader, Kind
from bench.abuse.honest import latency
from bench.abuse.rows import ROWS, Row
from bench.abuse.run import samples
from bench.abuse.verdict import Figures, allowed_ms, complaints
from bench.doors import Certificate
from bench.processes import Address, Server
from bench.strictness.member import Member
from bench.upstreams import ALIAS, FIRST_MEMBER, Upstreams
from tests.support.paths import ROOT

ROW = Row("row", "a row", "plain", "idle")
MIB = 1024


def _figures(p99_ms: float = 10.0, **changes: Any) -> Figures:
    seconds = [p99_ms / 1000] * 100
    sound = Figures(latency(seconds), Tally(visits=1), 50 * MIB, 60 * MIB, 51 * MIB)
    return dataclasses.replace(sound, **changes)


def test_latency_of_a_failure_is_infinite_and_shows_in_p99_beyond_one_in_a_hundred() -> None:
    figures = latency([0.001] * 99 + [math.inf])
    assert (figures.requests, figures.failures, figures.p50_ms) == (100, 1, 1.0)
    assert math.isinf(latency([0.001] * 97 + [math.inf] * 3).p99_ms)
    assert latency([0.002, 0.001] * 100).p99_ms == 2.0


def test_allowed_p99_is_three_times_that_of_the_better_peer_or_what_is_enough() -> None:
    assert allowed_ms(ROW, [_figures(100), _figures(40)]) == pytest.approx(120)
    assert allowed_ms(ROW, [_figures(1), _figures(40)]) == 50
    assert allowed_ms(ROW, [_figures(math.inf), _figures(100)]) == pytest.approx(300)
    assert allowed_ms(ROW, [_figures(math.inf)]) == 50
    assert allowed_ms(dataclasses.replace(ROW, enough_ms=1000), []) == 1000


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (_figures(51), "p99 above 50 ms"),
        (_figures(math.inf), "p99 above 50 ms"),
        (_figures(latency=latency([])), "p99 above 50 ms"),
        (_figures(peak_kib=115 * MIB), "memory grew by 65 MiB"),
        (_figures(after_kib=61 * MIB), "11 MiB are kept"),
        (_figures(changes=2), "members changed their state (2)"),
        (_figures(attack=Tally(ended=1)), "unlogged"),
        (_figures(attack=Tally(refused=1)), "unlogged"),
        (_figures(lost=3), "lines of the log were dropped (3)"),
        (_figures(tracebacks=2), "tracebacks in the log (2)"),
        (_figures(operator=False), "an operator is locked out"),
        (_figures(alive=False), "it ended"),
    ],
)
def test_verdict_says_what_is_missed(figures: Figures, words: str) -> None:
    assert list(complaints(ROW, figures, [_figures(2), _figures(3)])) == [words]


@pytest.mark.parametrize(
    "figures",
    [
        _figures(49),
        _figures(peak_kib=114 * MIB, after_kib=60 * MIB),
        _figures(attack=Tally(ended=1), logged=1),
        _figures(attack=Tally(refused=1), counted={"balancer_client_limits_total": 1.0}),
        _figures(reached=1),
    ],
)
def test_verdict_of_what_holds_is_empty(figures: Figures) -> None:
    assert not list(complaints(ROW, figures, []))


def test_smuggled_request_at_a_member_is_missed() -> None:
    row = dataclasses.replace(ROW, smuggles=True)
    assert list(complaints(row, _figures(reached=1), [_figures(reached=9)])) == ["a member was given 1"]


def test_attack_that_the_balancer_has_to_end_and_does_not_is_missed() -> None:
    row = dataclasses.replace(ROW, ends=True)
    assert list(complaints(row, _figures(attack=Tally(refused=1), logged=1), [])) == ["never ended"]
    assert not list(complaints(row, _figures(attack=Tally(ended=1), logged=1), []))


def _parsed(data: bytes) -> list[Any]:
    found: list[Any] = []
    while data:
        parsed, length = ParsedFrame.parse_frame_header(memoryview(data[:9]))
        parsed.parse_body(memoryview(data[9 : 9 + length]))
        found.append(parsed)
        data = data[9 + length :]
    return found


def test_frames_are_what_a_library_reads() -> None:
    made = (
        frames.settings((frames.HEADER_TABLE_SIZE, 0)),
        frames.window_update(7, 3),
        frames.reset(5),
        frames.priority(9),
        frames.headers(1, frames.request(b"/"), whole=False),
        frames.frame(Kind.CONTINUATION, frames.literal(b"x-a", b"b"), stream=1),
    )
    read = _parsed(b"".join(made))
    names = ["SETTINGS", "WINDOWUPDATE", "RSTSTREAM", "PRIORITY", "HEADERS", "CONTINUATION"]
    assert [type(it).__name__.removesuffix("Frame").upper() for it in read] == names
    assert [it.stream_id for it in read] == [0, 3, 5, 9, 1, 1]
    assert read[4].flags == {"END_STREAM"}


def test_blocks_are_what_a_library_decodes() -> None:
    block = frames.table_size_update(0) + frames.request(b"/a", (b"x", b"y" * 300))
    assert hpack.Decoder().decode(block, raw=True) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"127.0.0.1"),
        (b":path", b"/a"),
        (b"x", b"y" * 300),
    ]


@pytest.mark.parametrize(("value", "encoded"), [(10, "0a"), (31, "1f00"), (1337, "1f9a0a")])
def test_integers_are_those_of_rfc_7541_appendix_c(value: int, encoded: str) -> None:
    assert frames.integer(value, 5) == bytes.fromhex(encoded)


def test_bomb_is_one_frame_of_45_megabytes() -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 30)
    (bomb,) = _parsed(hpack_bomb(1))
    decoded = decoder.decode(bomb.data, raw=True)
    assert sum(len(value) for _, value in decoded) > 45_000_000


@pytest.mark.parametrize(("make", "kind"), [(rapid_reset, Kind.RST_STREAM), (made_you_reset, Kind.WINDOW_UPDATE)])
def test_streams_of_an_attack_begin_with_a_request(make: object, kind: Kind) -> None:
    assert callable(make)
    read = list(FrameReader().feed(make(7)))
    assert [(it.kind, it.stream) for it in read] == [(Kind.HEADERS, 7), (kind, 7)]


def test_frame_reader_takes_frames_in_any_pieces() -> None:
    data = frames.settings() + frames.headers(1, b"\x88") + frames.frame(Kind.DATA, b"abc", frames.END_STREAM, 1)
    whole, single = FrameReader(), FrameReader()
    read = list(whole.feed(data))
    assert read == [it for at in range(len(data)) for it in single.feed(data[at : at + 1])]
    assert [it.payload for it in read] == [b"", b"\x88", b"abc"]


@pytest.mark.parametrize("block", [b"\x88", b"\x20\x88", b"\x08\x03200", b"\x20\x48\x03200\x00"])
def test_status_200_is_known_in_each_form(block: bytes) -> None:
    assert frames.is_200(block)
    assert not frames.is_200(block.replace(b"\x88", b"\x8e").replace(b"200", b"503"))


@pytest.mark.parametrize("name", SMUGGLING)
def test_every_case_of_smuggling_names_itself_to_the_members(name: str) -> None:
    assert b"smuggle" in smuggled(*SMUGGLING[name])


def test_rows_have_names_of_their_own_and_attacks_that_exist() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.attack for row in ROWS} == set(ATTACKS)
    assert all(row.seconds > row.grace for row in ROWS if row.grace)
    assert not any(takes_part(name, row) for row in ROWS if row.door == "admin" for name in TITLES if name != BALANCER)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_settings_of_a_row_are_some_that_the_balancer_takes(row: Row, tmp_path: Path) -> None:
    certificate = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    upstreams = Upstreams([Address(FIRST_MEMBER, 8000)], Address("127.0.0.1", 53), Server("", [], 0, tmp_path / "log"))
    site = site_of(row, Address("127.0.0.1", 8080), upstreams, tmp_path, certificate)
    command = ours(Setup(site, row, Address("127.0.0.1", 9000)))
    flags = dict(it.removeprefix("--").split("=", 1) for it in command.argv[4:])
    settings = Settings.load({}, {name.replace("-", "_"): value for name, value in flags.items()})
    assert settings.max_requests_per_member == row.member_limit
    assert bool(settings.tls_cert) == settings.http2 == (row.door in ("tls", "h2"))
    assert bool(settings.routes and read(settings)) is row.routed


def test_metrics_are_read_with_their_labels() -> None:
    text = '# HELP x\nbalancer_errors_total{pool="a",error="b"} 2.0\nbalancer_requests_total 9.0\n'
    assert samples(text) == {'balancer_errors_total{pool="a",error="b"}': 2.0}


def test_what_shows_an_attack_is_named_by_its_label() -> None:
    counted = {
        'balancer_errors_total{error="bad_request",pool="apps"}': 3.0,
        'balancer_client_limits_total{limit="x"}': 2.0,
    }
    assert report.shown_cell(_figures(counted=counted, logged=1)) == "log, `bad_request` 3, `x` 2"
    assert report.shown_cell(_figures(attack=Tally(ended=1))) == "nothing"
    assert report.shown_cell(_figures()) == report.shown_cell(None) == report.DASH


def test_figures_are_the_same_when_saved_and_read(tmp_path: Path) -> None:
    cells = {ROWS[0].name: {BALANCER: _figures(math.inf, counted={"a": 1.0}), "nginx": _figures()}}
    report.save(tmp_path / "saved" / "abuse.json", cells)
    assert report.load(tmp_path / "saved" / "abuse.json") == cells


def test_page_has_every_row() -> None:
    lines = report.DOC.read_text().splitlines()
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    wanted = [row.title for door in report.DOORS for row in ROWS if row.door == door]
    assert [title for title in titles if title not in ("attack", "---")] == wanted


def test_attacks_from_elsewhere_than_loopback_are_refused() -> None:
    command = [sys.executable, "-m", "bench.abuse.attack", "ping", "192.0.2.1", "80", "1", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (1, "192.0.2.1 is not on loopback")


async def test_run_has_honest_clients_served_and_an_attack_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(run, "AFTER_SECONDS", 0.1)
    member, address = Member(), Address(FIRST_MEMBER, free_port(FIRST_MEMBER))
    await member.start(address)
    resolver = Address("127.0.0.1", free_port())
    zone = [sys.executable, "-m", "bench.zone", str(resolver.port), f"{ALIAS}={FIRST_MEMBER}+1"]
    core = min(os.sched_getaffinity(0))
    with Server("DNS server", zone, core, tmp_path / "zone.log") as dns:
        row = dataclasses.replace(ROW, attack="refused")
        one = run.Run(BALANCER, row, Upstreams([address], resolver, dns), tmp_path, (core, core))
        try:
            await asyncio.to_thread(one.begin, 1.0)
            await asyncio.to_thread(one.finish)
            figures = await asyncio.to_thread(one.settle)
        finally:
            one.close()
    await member.stop()
    assert figures.latency.requests > 30
    assert figures.latency.failures == 0
    assert figures.attack.refused
    assert figures.logged
    assert figures.before_kib <= figures.peak_kib
    assert figures.alive
    assert not figures.tracebacks
