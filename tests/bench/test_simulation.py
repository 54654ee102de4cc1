"""The simulation of ``bench.simulate``, small: what it prints depends on its arguments alone, and it counts right."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

import bench
from balancer.members.ejector import Ejector
from balancer.members.member import Member
from bench import simulate
from bench.simulation.members import DELAY, Farewell
from bench.simulation.report import table
from bench.simulation.scenarios import SCENARIOS, Case, nothing, one_slow, unequal
from bench.simulation.world import WARM_UP, Figures, Setup, World, run

ROUND_ROBIN = (("policy", "round_robin"),)
LEAST_REQUESTS = (("policy", "least_requests"),)
# Ten members at half of what they can do: 1000 requests a second.
SETUP = Setup("core", speeds=(1.0,) * 10, balancers=1, requests=2000)


def with_policy(policy: str, **others: object) -> Setup:
    return replace(SETUP, settings={"policy": policy, **others})


def arguments(chart: Path, seed: int) -> list[str]:
    size = "--members", "10", "--balancers", "2", "--requests", "500"
    return ["--only", "equal,rolling,restart", *size, "--seed", str(seed), "--chart", str(chart)]


def printed(capsys: pytest.CaptureFixture[str], chart: Path, seed: int) -> tuple[str, str]:
    simulate.main(arguments(chart, seed))
    return capsys.readouterr().out, chart.read_text()


def printed_elsewhere(chart: Path, seed: int) -> tuple[str, str]:
    """By another process, in which sets of strings have another order."""
    command = [sys.executable, "-m", "bench.simulate", *arguments(chart, seed)]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(bench.__file__).parents[1])}
    words = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return words, chart.read_text()


def test_seed_decides_every_byte(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    once = printed(capsys, tmp_path / "once.svg", 1)
    other = printed(capsys, tmp_path / "other.svg", 2)
    assert once == printed_elsewhere(tmp_path / "again.svg", 1)
    assert once[0].replace("seed 1:", "seed 2:") != other[0]
    assert once[1].replace("seed 1:", "seed 2:") != other[1]


def test_table_and_chart_have_a_row_for_each_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words, svg = printed(capsys, tmp_path / "chart.svg", 1)
    rows = [it.split("|")[1].strip() for it in words.splitlines() if it.startswith("| ") and "---" not in it]
    labels = [it for it in rows if it]
    assert labels.count("round_robin") == labels.count("hash") == 3
    assert len(labels) == 3 * 8 + 1
    texts = [it.text for it in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert [it for it in texts if it in labels] == labels


def test_round_robin_gives_equal_members_the_same() -> None:
    figures = run(with_policy("round_robin"), nothing)
    assert figures.shares == (0.1,) * 10
    assert figures.share_error == pytest.approx(0.0, abs=1e-9)
    assert figures.requests == (1 - WARM_UP) * SETUP.requests
    assert (figures.wasted, figures.queued, figures.failed) == (0, 0, {})


def test_random_does_not_quite() -> None:
    assert run(with_policy("random"), nothing).share_error > 0.01


def renewal_sojourn(load: float, members: int) -> float:
    """Mean stay, in service times, where each member gets every ``members``-th request of a Poisson stream (GI/M/1)."""
    root = 0.5
    for _ in range(1000):
        root = (members * load / (members * load + 1 - root)) ** members
    return 1 / (1 - root)


@pytest.mark.long
def test_latency_is_what_queueing_theory_says() -> None:
    # Members that do one request at a time, for an exponentially distributed time: at random each is an M/M/1 queue, in
    # turn a GI/M/1 queue, and by the shorter of two queues they are as in Mitzenmacher, "The Power of Two Choices".
    load, members = 0.5, 100
    expected = {
        "random": 1 / (1 - load),
        "round_robin": renewal_sojourn(load, members),
        "least_requests": sum(load ** (2**length - 2) for length in range(1, 9)),
    }
    for policy, stay in expected.items():
        setup = replace(with_policy(policy), speeds=(1.0,) * members, requests=20_000, workers=1, load=load)
        # To the member and back, which theory leaves out.
        assert run(setup, nothing).mean - 2 * DELAY == pytest.approx(stay * setup.service, rel=0.05), policy


@pytest.mark.long
def test_queues_that_build_up_by_chance_eject_no_member(monkeypatch: pytest.MonkeyPatch) -> None:
    ejected: list[Member] = []
    monkeypatch.setattr(Ejector, "eject", lambda ejector, member, *arguments: ejected.append(member))
    setup = replace(with_policy("random"), speeds=(1.0,) * 100, requests=20_000, workers=1, load=0.5)
    run(setup, nothing)
    assert ejected == []


def test_share_error_is_what_would_have_to_move() -> None:
    # Of four members three are due 2/7 of the requests each and one 1/7, and each gets a quarter.
    setup = replace(with_policy("round_robin"), speeds=unequal(4), load=0.1)
    assert run(setup, nothing).share_error == pytest.approx(3 * (2 / 7 - 1 / 4), abs=0.001)


def test_least_requests_spares_the_slow() -> None:
    slow = replace(SETUP, speeds=one_slow(10))
    found = {it: run(replace(slow, settings={"policy": it}), nothing) for it in ("round_robin", "least_requests")}
    assert found["least_requests"].shares[0] < found["round_robin"].shares[0] / 2
    assert found["least_requests"].p99 < found["round_robin"].p99 / 2


def test_all_policies_get_the_same_requests() -> None:
    # The service time is fixed, and so is, when nobody waits, what a request takes from end to end.
    found = [
        run(replace(with_policy(it), load=0.001, requests=50), nothing, service_time=lambda: 0.02)
        for it in ("round_robin", "random")
    ]
    assert [it.p999 < 0.03 for it in found] == [True, True]
    assert found[0].mean == pytest.approx(found[1].mean, rel=0.05)


async def leave(world: World, farewell: Farewell) -> None:
    await asyncio.sleep(0.5)
    await next(iter(world.containers.values())).stop(farewell)


async def drain_one(world: World) -> None:
    await leave(world, Farewell.DRAINS)


async def kill_one(world: World) -> None:
    await leave(world, Farewell.DIES)


def test_members_that_die_waste_tries_and_those_that_drain_do_not() -> None:
    drained, killed = (run(with_policy("round_robin"), it) for it in (drain_one, kill_one))
    assert (drained.wasted, drained.failed) == (0, {})
    assert killed.wasted > 0
    # What may have been carried out and may not be repeated has failed, and nothing else.
    assert set(killed.failed) <= {"member_failed"}
    assert sum(killed.failed.values()) <= killed.wasted


def test_request_that_finds_no_member_is_held() -> None:
    setup = with_policy("round_robin", queue_max=100_000)
    all_held = run(setup, SCENARIOS["restart"].events)
    assert all_held.queued > 100
    assert all_held.requests == (1 - WARM_UP) * SETUP.requests
    few_held = run(with_policy("round_robin", queue_max=100), SCENARIOS["restart"].events)
    assert few_held.failed["queue_full"] > 100


def test_run_is_done_once_for_all_who_ask() -> None:
    case = Case("equal", ROUND_ROBIN, members=4, balancers=1, requests=100, seed=1)
    other = replace(case, settings=LEAST_REQUESTS)
    found = simulate.run_all([case, other, case], jobs=1)
    assert list(found) == [case, other]
    assert found[case] == case.run() != found[other]


def test_error_in_what_happens_ends_the_run() -> None:
    async def wrong(world: World) -> None:
        raise LookupError("in the scenario")

    with pytest.raises(LookupError, match="in the scenario"):
        run(with_policy("round_robin"), wrong)


def test_figures_are_written_as_the_docs_want_them() -> None:
    figures = Figures(1000, 0.1234, 0.02, 0.0123, 0.0999, 12.3456, 1234, 5, {"queue_full": 2000}, ())
    assert (
        table({"a": figures}).splitlines()[2] == "| a | 12.3 % | 12.3 | 99.9 | 12,346 | 1,234 | 5 | 2,000 queue_full |"
    )


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--members", "0"]])
def test_wrong_arguments_are_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.main(wrong)
    assert wrong[0] in capsys.readouterr().err
