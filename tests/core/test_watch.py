from __future__ import annotations

import io

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from balancer.watch import LATENCIES, ROTATION, Result, Tally, judge, picture


def tally(*results: Result) -> Tally:
    total = Tally()
    for result in results:
        total.add(result)
    return total


def drawn(total: Tally) -> str:
    console = Console(file=io.StringIO(), width=150, color_system=None)
    with console.capture() as captured:
        console.print(picture("http://localhost/", total))
    return captured.get()


@pytest.mark.parametrize(
    ("status", "text", "headers", "who", "failure"),
    [
        (200, "Hello World I am 3f2a! 7 times.\n", {}, "3f2a", ""),
        (200, "<h1>Shop</h1>\nWelcome", {}, "<h1>Shop</h1>", ""),
        (200, "x" * 100, {}, "x" * 60, ""),
        (204, "", {}, "(empty answer)", ""),
        (302, "", {}, "(empty answer)", ""),
        (404, "Not Found\n", {}, "", "404 Not Found"),
        (500, "", {}, "", "500"),
        (503, "503 nobody\n", {"X-Balancer-Error": "no_member"}, "", "503 no_member"),
        (503, "I am 3f2a!", {}, "", "503 I am 3f2a!"),
    ],
)
def test_an_answer_is_judged(status: int, text: str, headers: dict[str, str], who: str, failure: str) -> None:
    assert judge(httpx.Response(status, text=text, headers=headers), 0.5) == Result(0.5, who, failure)


def test_a_tally_counts_answers_by_worker_and_failures_by_cause() -> None:
    total = tally(Result(0.1, "a"), Result(0.2, "b"), Result(3.0, failure="502 member_failed"), Result(0.3, "a"))
    assert total.requests == 4
    assert total.shares == {"a": 2, "b": 1}
    assert total.failures == {"502 member_failed": 1}
    assert list(total.rotation) == ["a", "b", "a"]
    assert total.longest == 3.0


def test_a_failure_does_not_count_as_a_latency() -> None:
    assert tally(Result(0.2, "a"), Result(30.0, failure="late")).percentile(1.0) == 0.2


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0, 1))
def test_a_percentile_is_a_latency_that_its_share_of_answers_did_not_exceed(seconds: list[float], share: float) -> None:
    total = tally(*(Result(it, "a") for it in seconds))
    percentile = total.percentile(share)
    assert percentile in (seconds or [0.0])
    assert sum(it <= percentile for it in seconds) >= share * len(seconds)


@given(st.integers(0, 1200))
def test_a_tally_of_a_long_watch_stays_small(requests: int) -> None:
    total = tally(*(Result(float(it), str(it)) for it in range(requests)))
    assert list(total.rotation) == [str(it) for it in range(requests)][-ROTATION:]
    assert len(total.latencies) == min(requests, LATENCIES)
    assert total.requests == requests


def test_the_summary_has_a_line_for_each_worker_and_each_cause() -> None:
    total = tally(*[Result(0.01, "b")] * 3, Result(0.01, "a"), Result(2.0, failure="502 member_failed"))
    assert total.summary() == [
        "5 requests, 1 failed, median 10.0 ms, p99 10.0 ms, longest 2000.0 ms",
        "  a: 1 (25.0%)",
        "  b: 3 (75.0%)",
        "  failed 1 times: 502 member_failed",
    ]


@pytest.mark.parametrize("results", [(), (Result(1.0, failure="refused"),)])
def test_a_watch_without_an_answer_can_be_summed_up_and_drawn(results: tuple[Result, ...]) -> None:
    total = tally(*results)
    assert total.summary()[0].startswith(f"{len(results)} requests, {len(results)} failed, median 0.0 ms")
    assert f"{len(results)} requests" in drawn(total)


def test_the_picture_shows_rotation_shares_and_failures() -> None:
    lines = drawn(tally(*[Result(0.01, "b")] * 3, Result(0.01, "a"), Result(2.0, failure="refused"))).splitlines()
    assert lines[0].strip() == "http://localhost/"
    assert lines[1].count("●") == 4
    assert [line.split()[:3] for line in lines[3:5]] == [["a", "1", "25.0%"], ["b", "3", "75.0%"]]
    assert lines[5].startswith("5 requests, 1 failed")
    assert lines[6].strip() == "1 times refused"


def test_the_picture_shows_an_answer_verbatim_even_if_it_looks_like_markup() -> None:
    assert "[red]a[/]" in drawn(tally(Result(0.01, "[red]a[/]")))
